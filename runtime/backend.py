"""The thin line that every engine lies behind: named persistent buffers, and graphs bound to them.

A backend allocates at start. Afterwards a stream only writes small host arrays, runs engines and
copies rows between buffers; no address changes and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from liveedit.bundle import DType, GraphSpec

Array = npt.NDArray[Any]
Frames = npt.NDArray[np.uint8]
Binding = Mapping[str, str]  # tensor name of a graph -> buffer name

KEEP_DIMENSION = "num_keep"  # the one dynamic dimension of a bundle


class Engine(Protocol):
    """One graph whose tensors are bound to buffers once."""

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        """Run with the binding number ``side``; ``num_keep`` rows of the dynamic input count."""


class Backend(Protocol):
    """Buffers and engines of one stream. Every method but `alloc` and `load` is on the hot path."""

    name: str

    def alloc(self, buffer: str, dtype: DType, shape: tuple[int, ...]) -> None:
        """Make a zero-filled buffer that keeps its address until `close`."""

    def load(self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]) -> Engine:
        """Load a graph and bind every tensor of it, once per entry of ``bindings``.

        An output may share an input's buffer if the graph reads that input nowhere but in the
        operator that makes the output; then the buffer is updated in place.

        Raises:
            BackendError: this backend cannot run the graph.
        """

    def write(self, buffer: str, value: npt.ArrayLike) -> None:
        """Host to buffer: a scalar for all of it, or an array for its first rows."""

    def read(self, buffer: str) -> Array:
        """Buffer to host, read only, valid until the next run. Waits for the device."""

    def write_frames(self, buffer: str, frames: Frames, pixel_range: tuple[float, float]) -> None:
        """uint8 [n, H, W, 3] to real [1, 3, n, H, W], 0..255 mapped to ``pixel_range``."""

    def read_frames(self, buffer: str, frames: Frames, pixel_range: tuple[float, float]) -> None:
        """The reverse, rounded to nearest and clamped, into ``frames``. Waits for the device."""

    def write_noise(self, buffer: str, *, seed: int, chunk: int, draw: int) -> None:
        """Fill with the normals of `liveedit.runtime.noise.normal`."""

    def copy(self, src: str, dst: str, *, src_row: int, dst_row: int, count: int) -> None:
        """Copy rows of axis 2 ([1, heads, rows, head_dim], [1, channels, frames, h, w]).

        Source and destination rows do not overlap.
        """

    def zero(self, buffer: str) -> None:
        """Fill with zeros."""

    def close(self) -> None:
        """Free everything. A second call does nothing."""
