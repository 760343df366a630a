"""One `dit_step` engine alone, in its steady state: full and pruned passes on demand."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from liveedit.bundle import Manifest
from liveedit.profiling.accounting import dit_pass, total_flops
from liveedit.runtime.backend import KEEP_DIMENSION, Backend


class PassRunner:
    """Runs passes of the last chunk of a full window. Inputs are zeros but for small noise."""

    SCALARS: ClassVar[dict[str, float]] = {"timestep": 500.0, "sigma": 0.5, "sigma_next": 0.25}

    def __init__(self, root: Path, manifest: Manifest, precision: str, backend: Backend) -> None:
        self._manifest, self._backend = manifest, backend
        self._tokens = manifest.stream.block_seq_length
        spec = manifest.graphs[precision]["dit_step"]
        binding = {t.name: t.name for t in (*spec.inputs, *spec.outputs)} | spec.aliases
        made: set[str] = set()
        for tensor in (*spec.inputs, *spec.outputs):
            buffer = binding[tensor.name]
            if buffer not in made:
                made.add(buffer)
                shape = tuple(self._tokens if d == KEEP_DIMENSION else int(d) for d in tensor.shape)
                backend.alloc(buffer, tensor.dtype, shape, "result" if buffer == "x0" else "state")
        backend.alloc("control", "int64", (8,))
        self.engine = backend.load("dit_step", spec, root / spec.file, [binding])
        backend.start()
        for i, name in enumerate(("noisy", "source", "noise")):
            backend.write_noise(name, control="control", draw=i)
        for name, value in self.SCALARS.items():
            backend.write(name, value)
        backend.write("rope_cos", 1.0)
        self.kept = self._tokens
        self.place(manifest.stream.kv_cache_length - self._tokens)

    def place(self, row: int) -> None:
        """Let the next passes write K and V from ``row`` on, and attend to all rows before it."""
        self._past = row
        self._backend.write("write_index", row)
        self.keep(self.kept)

    def keep(self, kept: int) -> None:
        """Choose ``kept`` tokens, spread evenly; the next passes compute those."""
        index = np.linspace(0, self._tokens - 1, kept).round().astype(np.int32)
        row = np.full(self._tokens, -1, dtype=np.int32)
        row[index] = np.arange(kept, dtype=np.int32)
        self._backend.write("keep_index", index)
        self._backend.write("token_row", row)
        self._backend.write("kv_length", self._past + kept)
        self.kept = kept

    def run(self) -> None:
        """One pass, captured where the backend captures. Waits for its result."""
        kept = self.kept
        self._backend.replay(("pass", kept), lambda: self.engine.run(num_keep=kept))
        self._backend.read("x0")

    def flops(self, kept: int | None = None) -> float:
        """FLOPs of a pass with ``kept`` tokens, by the accounting."""
        n = self.kept if kept is None else kept
        return total_flops(
            dit_pass(
                self._manifest.model.dit,
                tokens=self._tokens,
                keys=self._manifest.stream.kv_cache_length,
                kept=n if n < self._tokens else None,
            )
        )
