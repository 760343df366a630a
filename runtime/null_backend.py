"""A backend that does nothing and counts: host overhead, call and allocation budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveedit.bundle import DType, GraphSpec
from liveedit.runtime.backend import (
    Array,
    Binding,
    ChunkOutput,
    Frames,
    OnNonFinite,
    Region,
)
from liveedit.runtime.host_order import HostOrder, HostOutput
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import TokenChoice
from liveedit.runtime.rope import RotaryTable


class NullEngine:
    """Counts its runs."""

    def __init__(self, graph: str, counts: Counter[str]) -> None:
        self._key = f"run {graph}"
        self._counts = counts

    def rows(self, num_keep: int) -> int:
        return num_keep

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        self._counts[self._key] += 1


class NullBackend(HostOrder):
    """Every call is counted in ``counts``; what is read is a fixed random array of small values.

    ``sizes`` holds the bytes of each buffer as a real backend would allocate them.
    """

    name = "null"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}
        self._specs: dict[str, tuple[DType, tuple[int, ...]]] = {}
        self._arrays: dict[str, Array] = {}
        self._results: dict[str, Array] = {}
        self._latents: list[npt.NDArray[np.float32]] = []

    def alloc(
        self, buffer: str, dtype: DType, shape: tuple[int, ...], region: Region = "state"
    ) -> None:
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

    def write_frames(
        self, buffer: str, frames: Frames, staged: Collection[int] = frozenset()
    ) -> None:
        self.counts["write_frames"] += 1

    def fetch_frames(self, buffer: str, skip: int, out: ChunkOutput, start: int) -> None:
        self.counts["fetch_frames"] += 1

    def fetch_results(self, out: ChunkOutput) -> None:
        assert isinstance(out, HostOutput)
        self.counts["fetch_results"] += 1
        out.kept.update(self._results)
        out.kept["outcome"] = np.zeros(1, dtype=np.int32)

    def begin_chunk(self, kv: KVCache, buffers: Mapping[str, str]) -> None:
        self.counts["begin_chunk"] += 1

    def write_noise(self, buffer: str, *, control: str, draw: int) -> None:
        self.counts["write_noise"] += 1

    def rotary(self, control: str, table: RotaryTable, frequency: str, cos: str, sin: str) -> None:
        self.counts["rotary"] += 1

    def copy(self, src: str, dst: str, *, src_row: int, dst_row: int, count: int) -> None:
        self.counts["copy"] += 1

    def copy_all(self, src: str, dst: str) -> None:
        self.counts["copy"] += 1

    def commit(self, buffers: Sequence[str], table: str, control: str, most_rows: int) -> None:
        self.counts["commit"] += 1

    def guard(self, policy: OnNonFinite, buffers: Mapping[str, str]) -> None:
        self.counts["guard"] += 1

    def choose_tokens(self, choice: TokenChoice, buffers: Mapping[str, str]) -> None:
        self.counts["choose_tokens"] += 1
        if not self._latents:
            rng = np.random.default_rng(0)
            shape = self._specs[buffers["edited"]][1]
            self._latents = [rng.random(shape, dtype=np.float32) for _ in range(2)]
        self._results = choice.results(*self._latents)

    def zero(self, buffer: str) -> None:
        self.counts["zero"] += 1

    def close(self) -> None:
        self._arrays.clear()
