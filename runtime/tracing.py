"""The hook that lets a profiler see what the loop is doing. The default does nothing.

Range names are a contract with `liveedit.profiling` (docs/architecture.md, "Ranges"); fields are
small numbers and words, never tensors, so that a range costs no synchronisation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Tracer(Protocol):
    """Opens nested ranges on the calling thread."""

    def range(self, name: str, **fields: int | str) -> AbstractContextManager[None]:
        """A range that lasts as long as the ``with`` block."""


class _NullRange:
    """Reusable and re-entrant: it has no state."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_NULL_RANGE = _NullRange()


class NullTracer:
    """No ranges, nothing allocated but the fields of the call."""

    def range(self, name: str, **fields: int | str) -> AbstractContextManager[None]:
        return _NULL_RANGE


NULL_TRACER: Tracer = NullTracer()
