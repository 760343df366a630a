"""A backend that does nothing and counts: host overhead, call and allocation budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveedit.bundle import DType, GraphSpec
from liveedit.runtime.backend import Array, Binding, Frames


class NullEngine:
    """Counts its runs."""

    def __init__(self, graph: str, counts: Counter[str]) -> None:
        self._key = f"run {graph}"
        self._counts = counts

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        self._counts[self._key] += 1


class NullBackend:
    """Every call is counted in ``counts``; what is read is a fixed random array of small values.

    ``sizes`` holds the bytes of each buffer as a real backend would allocate them.
    """

    name = "null"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}
        self._specs: dict[str, tuple[DType, tuple[int, ...]]] = {}
        self._arrays: dict[str, Array] = {}

    def alloc(self, buffer: str, dtype: DType, shape: tuple[int, ...]) -> None:
        assert buffer not in self._specs, buffer
        self.counts["alloc"] += 1
        self._specs[buffer] = (dtype, shape)
        item_bytes = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        self.sizes[buffer] = int(np.prod(shape)) * item_bytes

    def load(
        self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]
    ) -> NullEngine:
        for binding in bindings:
            for tensor in (*spec.inputs, *spec.outputs):
                assert binding[tensor.name] in self._specs, tensor.name
        self.counts["load"] += 1
        return NullEngine(graph, self.counts)

    def write(self, buffer: str, value: npt.ArrayLike) -> None:
        self.counts["write"] += 1

    def read(self, buffer: str) -> Array:
        self.counts["sync"] += 1
        if buffer not in self._arrays:
            dtype, shape = self._specs[buffer]
            rng = np.random.default_rng(len(self._arrays))
            values = rng.random(shape, dtype=np.float32)
            self._arrays[buffer] = values.astype("float32" if dtype == "bfloat16" else dtype)
        return self._arrays[buffer]

    def write_frames(self, buffer: str, frames: Frames, pixel_range: tuple[float, float]) -> None:
        self.counts["write_frames"] += 1

    def read_frames(self, buffer: str, frames: Frames, pixel_range: tuple[float, float]) -> None:
        self.counts["sync"] += 1

    def write_noise(self, buffer: str, *, seed: int, chunk: int, draw: int) -> None:
        self.counts["write_noise"] += 1

    def copy(self, src: str, dst: str, *, src_row: int, dst_row: int, count: int) -> None:
        self.counts["copy"] += 1

    def zero(self, buffer: str) -> None:
        self.counts["zero"] += 1

    def close(self) -> None:
        self._arrays.clear()
