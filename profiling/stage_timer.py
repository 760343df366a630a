"""A tracer that remembers: every range with its start and end on the host's clock.

On the CPU backend a range lasts as long as its work. On a GPU it lasts as long as its submission,
unless `StageTimer.wait` waits for the device at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from liveedit.runtime.tracing import Tracer


@dataclass(slots=True)
class Span:
    """One closed range. Times in ns of `time.perf_counter_ns`."""

    name: str
    fields: dict[str, int | str]
    start: int
    end: int
    depth: int

    @property
    def ms(self) -> float:
        return (self.end - self.start) / 1e6


@dataclass
class StageTimer:
    """Collects spans until they are taken. ``wait`` is called before a range ends."""

    wait: Callable[[], None] | None = None
    spans: list[Span] = field(default_factory=list)
    _depth: int = 0

    def range(self, name: str, **fields: int | str) -> AbstractContextManager[None]:
        return self._range(name, fields)

    @contextmanager
    def _range(self, name: str, fields: dict[str, int | str]) -> Iterator[None]:
        span = Span(name, fields, time.perf_counter_ns(), 0, self._depth)
        self.spans.append(span)
        self._depth += 1
        try:
            yield
        finally:
            if self.wait is not None:
                self.wait()
            self._depth -= 1
            span.end = time.perf_counter_ns()

    def take(self) -> list[Span]:
        """The spans since the last call, in order of their start."""
        spans, self.spans = self.spans, []
        return spans


@dataclass(frozen=True)
class TeeTracer:
    """Opens every range in several tracers."""

    tracers: tuple[Tracer, ...]

    def range(self, name: str, **fields: int | str) -> AbstractContextManager[None]:
        return self._range(name, fields)

    @contextmanager
    def _range(self, name: str, fields: dict[str, int | str]) -> Iterator[None]:
        with ExitStack() as stack:
            for tracer in self.tracers:
                stack.enter_context(tracer.range(name, **fields))
            yield


STAGES = ("upload", "encode", "noise", "pass", "commit", "mask", "decode", "download")


def stage_ms(spans: list[Span]) -> dict[str, float]:
    """Milliseconds per stage; passes are split by kind: ``pass full``, ``pass pruned``, ..."""
    out: dict[str, float] = {}
    for span in spans:
        if span.name in STAGES:
            name = f"pass {span.fields['kind']}" if span.name == "pass" else span.name
            out[name] = out.get(name, 0.0) + span.ms
    return out
