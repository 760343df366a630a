"""Run long and watch: resident memory, latency, non-finite chunks, calls and bytes per chunk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from liveedit.bundle import GraphSpec, read_manifest
from liveedit.errors import UsageError
from liveedit.profiling.accounting import video_frames_per_chunk
from liveedit.profiling.frames import moving_square
from liveedit.profiling.memory import release_free_memory, rss_bytes
from liveedit.profiling.prompting import give_prompt
from liveedit.profiling.records import Figure, distribution, single
from liveedit.runtime.backend import Backend, Binding, Engine
from liveedit.runtime.backends import Opening, open_backend, resolve
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.stream import StreamEditor

MAX_RSS_GROWTH = 1 << 20  # bytes over the whole run
MAX_LATENCY_RATIO = 1.05  # last quarter's median over the first's


class CountingBackend:
    """Passes every call on and counts it, with the bytes of the arrays that cross."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.counts: Counter[str] = Counter()

    def load(self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]) -> Engine:
        self.counts["load"] += 1
        return _CountingEngine(f"run {graph}", self.inner.load(graph, spec, path, bindings), self)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.inner, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            for argument in arguments:
                self.counts["bytes"] += int(getattr(argument, "nbytes", 0))
            return attribute(*arguments, **options)

        setattr(self, name, call)
        return call


@dataclass(frozen=True)
class _CountingEngine:
    key: str
    inner: Engine
    backend: CountingBackend

    def rows(self, num_keep: int) -> int:
        return self.inner.rows(num_keep)

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        self.backend.counts[self.key] += 1
        self.inner.run(side=side, num_keep=num_keep)


@dataclass(frozen=True, kw_only=True)
class SoakResult:
    """What a long run did. Slopes are least-squares fits after the warm-up."""

    chunks: int
    seconds: float
    rss_growth: int  # last tenth's median minus first tenth's, bytes
    rss_slope: float  # bytes per chunk
    latency_ms: tuple[float, ...]
    latency_ratio: float
    latency_slope_us: float  # per chunk
    non_finite: int
    calls: dict[str, int]  # of one chunk
    constant_calls: bool

    def failures(self, *, latency: bool = False) -> list[str]:
        """One sentence per broken promise. Latency is only judged where the machine is quiet."""
        out = []
        if self.rss_growth > MAX_RSS_GROWTH:
            out.append(
                f"memory grew by {self.rss_growth / 1e6:.2f} MB in {self.chunks} chunks "
                f"({self.rss_slope:.0f} bytes per chunk); at most {MAX_RSS_GROWTH / 1e6:.2f} MB"
            )
        if self.non_finite:
            out.append(f"{self.non_finite} chunks were not finite")
        if not self.constant_calls:
            out.append("calls or bytes per chunk were not constant")
        if latency and self.latency_ratio > MAX_LATENCY_RATIO:
            out.append(
                f"latency rose {self.latency_ratio:.3f}x from the first to the last quarter; at "
                f"most {MAX_LATENCY_RATIO}x"
            )
        return out

    def figures(self) -> dict[str, Figure]:
        return {
            "chunks": single(self.chunks, "chunk"),
            "chunk_ms": distribution(self.latency_ms, "ms", "lower"),
            "latency_ratio": single(self.latency_ratio, "x", "lower"),
            "latency_slope": single(self.latency_slope_us, "us/chunk", "lower"),
            "rss_growth": single(self.rss_growth / 1e6, "MB", "lower"),
            "rss_slope": single(self.rss_slope, "byte/chunk", "lower"),
            "non_finite": single(self.non_finite, "chunk", "lower"),
            "calls_per_chunk": single(sum(self.calls.values()), "call or byte"),
        }


def soak(
    bundle: Path,
    *,
    chunks: int | None = None,
    minutes: float | None = None,
    backend: str = "onnxruntime",
    precision: str | None = None,
    threads: int | None = None,
    policy: MaskCachePolicy | None = None,
    leak_bytes: int = 0,
    progress: Callable[[int, float], None] = lambda chunk, seconds: None,
) -> SoakResult:
    """Run until ``chunks`` or ``minutes`` are over, whichever comes first.

    Args:
        leak_bytes: keep this many bytes per chunk alive, to see that a leak is caught.

    Raises:
        UsageError: neither a number of chunks nor a time is given, or too few to judge.
    """
    if chunks is None and minutes is None:
        raise UsageError("a soak needs --chunks or --minutes")
    if (chunks is not None and chunks < 20) or (minutes is not None and minutes <= 0):
        raise UsageError("a soak needs at least 20 chunks, and more than no time")
    manifest = read_manifest(bundle)
    backend, name = resolve(bundle, manifest, backend, precision)
    stream = manifest.stream
    opening = Opening(root=bundle, manifest=manifest, precision=name, threads=threads)
    counting = CountingBackend(open_backend(backend, opening))
    per_chunk = video_frames_per_chunk(stream)
    frames = moving_square(per_chunk, stream.height_px, stream.width_px)
    warmup = stream.local_attn_size // stream.num_frame_per_block + 3
    times: list[float] = []
    memory: list[int] = []
    leak: list[Any] = []
    non_finite, constant, calls = 0, True, dict[str, int]()
    with StreamEditor(
        bundle,
        manifest,
        cast(Backend, counting),
        precision=name,
        mask_cache=policy or MaskCachePolicy(),
        on_non_finite="last-good",
    ) as editor:
        give_prompt(editor, "a", name)
        for _ in range(warmup):
            editor.push(frames)
        # Without this a leak would first fill memory that the warm-up has freed.
        release_free_memory()
        for _ in range(warmup):
            editor.push(frames)
        begin = time.perf_counter()
        limit = float("inf") if minutes is None else minutes * 60
        while len(times) < (chunks or 10**9) and time.perf_counter() - begin < limit:
            before = Counter(counting.counts)
            start = time.perf_counter_ns()
            edited = editor.push(frames)
            times.append((time.perf_counter_ns() - start) / 1e6)
            non_finite += sum(c.recovered is not None for c in edited)
            mine = dict(counting.counts - before)
            calls = calls or mine
            constant = constant and mine == calls
            if leak_bytes:
                leak.append(bytearray(b"\1" * leak_bytes))
            memory.append(rss_bytes())
            progress(len(times), time.perf_counter() - begin)
    return _result(times, memory, time.perf_counter() - begin, non_finite, calls, constant)


def _result(
    times: list[float],
    memory: list[int],
    seconds: float,
    non_finite: int,
    calls: dict[str, int],
    constant: bool,
) -> SoakResult:
    n = len(times)
    tenth, quarter = max(1, n // 10), max(1, n // 4)
    x = np.arange(n)
    return SoakResult(
        chunks=n,
        seconds=seconds,
        rss_growth=int(np.median(memory[-tenth:]) - np.median(memory[:tenth])),
        rss_slope=float(np.polyfit(x, memory, 1)[0]),
        latency_ms=tuple(times),
        latency_ratio=float(np.median(times[-quarter:]) / np.median(times[:quarter])),
        latency_slope_us=float(np.polyfit(x, times, 1)[0]) * 1e3,
        non_finite=non_finite,
        calls=calls,
        constant_calls=constant,
    )
