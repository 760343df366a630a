"""How much faster a pruned pass is than a full one, against what its FLOPs promise.

Both run on one thread and are timed with that thread's own CPU time, alternating, and the lower
quartile of each is compared: on a busy machine wall time scatters several times more than the
difference being measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liveedit.bundle import read_manifest
from liveedit.errors import UsageError
from liveedit.profiling.pass_runner import PassRunner
from liveedit.runtime.graphs import choose_precision
from liveedit.runtime.onnx_backend import OnnxBackend


@dataclass(frozen=True, kw_only=True)
class PassSpeed:
    """Lower quartiles of thread CPU time, and the speed-up the FLOPs predict."""

    kept: int
    tokens: int
    full_ms: float
    pruned_ms: float
    predicted: float
    rounds: int

    @property
    def speedup(self) -> float:
        return self.full_ms / self.pruned_ms

    @property
    def share_of_prediction(self) -> float:
        return self.speedup / self.predicted


def measure(
    bundle: Path, keep: float, *, precision: str | None = None, rounds: int = 12
) -> PassSpeed:
    """Compare passes of ONNX Runtime on the CPU.

    Raises:
        UsageError: the keep ratio leaves nothing to compare.
    """
    manifest = read_manifest(bundle)
    tokens = manifest.stream.block_seq_length
    kept = round(keep * tokens)
    if not 0 < kept < tokens:
        raise UsageError(f"keep {keep} of {tokens} tokens leaves no pruned pass to measure")
    backend = OnnxBackend(threads=1)
    try:
        runner = PassRunner(
            bundle, manifest, choose_precision(bundle, manifest, precision), backend
        )
        times: dict[int, list[int]] = {tokens: [], kept: []}
        for i in range(rounds + 1):
            for n in (tokens, kept):
                runner.keep(n)
                start = time.thread_time_ns()
                runner.run()
                if i:  # the first round warms both shapes up
                    times[n].append(time.thread_time_ns() - start)
        full, pruned = (float(np.percentile(times[n], 25)) / 1e6 for n in (tokens, kept))
        predicted = runner.flops(tokens) / runner.flops(kept)
    finally:
        backend.close()
    return PassSpeed(
        kept=kept,
        tokens=tokens,
        full_ms=full,
        pruned_ms=pruned,
        predicted=predicted,
        rounds=rounds,
    )
