"""A-B-A: our full pass, the PyTorch reference, our full pass again, in one process.

The reference is the network the graphs were exported from, with the same shapes and random weights,
eager or through `torch.compile`. Running ours twice shows whether the machine changed meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from liveedit.bundle import Manifest, read_manifest
from liveedit.errors import UsageError
from liveedit.profiling.pass_runner import PassRunner
from liveedit.runtime.backend import Backend
from liveedit.runtime.graphs import choose_precision
from liveedit.runtime.onnx_backend import OnnxBackend

ReferenceMode = Literal["eager", "compile"]


@dataclass(frozen=True, kw_only=True)
class ReferenceSpeed:
    """Medians of a full pass in ms."""

    mode: ReferenceMode
    ours_before_ms: float
    reference_ms: float
    ours_after_ms: float
    rounds: int

    @property
    def speedup(self) -> float:
        """The reference's time over ours."""
        return 2 * self.reference_ms / (self.ours_before_ms + self.ours_after_ms)

    @property
    def drift(self) -> float:
        """Ours after over ours before: far from 1, the comparison is not worth much."""
        return self.ours_after_ms / self.ours_before_ms


def measure(
    bundle: Path,
    mode: ReferenceMode,
    *,
    precision: str | None = None,
    threads: int | None = None,
    rounds: int = 8,
    backend: Backend | None = None,
) -> ReferenceSpeed:
    """Compare full passes of the DiT.

    Raises:
        UsageError: torch is not installed.
    """
    manifest = read_manifest(bundle)
    name = choose_precision(bundle, manifest, precision)
    ours_backend: Backend = backend or OnnxBackend(threads=threads)
    try:
        runner = PassRunner(bundle, manifest, name, ours_backend)
        reference = torch_pass(manifest, mode, threads=threads)
        before = _median_ms(runner.run, rounds)
        middle = _median_ms(reference, rounds)
        after = _median_ms(runner.run, rounds)
    finally:
        ours_backend.close()
    return ReferenceSpeed(
        mode=mode,
        ours_before_ms=before,
        reference_ms=middle,
        ours_after_ms=after,
        rounds=rounds,
    )


def torch_pass(
    manifest: Manifest,
    mode: ReferenceMode,
    *,
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Callable[[], None]:
    """A function that runs one full pass of the reference and waits for it.

    Raises:
        UsageError: torch is not installed.
    """
    try:
        import torch

        from liveedit.models.dit import CausalWanDiT
        from liveedit.models.dit_step import DiTStep, StepState
    except ImportError as error:
        raise UsageError(
            f"the PyTorch reference needs torch ({error}). Install: pip install "
            "'liveedit-trt[export]'"
        ) from None
    if threads:
        torch.set_num_threads(threads)
    stream, real = manifest.stream, getattr(torch, dtype)
    torch.manual_seed(0)
    with torch.device(device):
        dit = CausalWanDiT(manifest.model.dit).to(real).eval()
        state = StepState.zeros(dit, stream)
        length, c = stream.block_seq_length, manifest.model.dit
        frames, h, w = stream.num_frame_per_block, stream.latent_height, stream.latent_width
        latent = (1, c.latent_channels, frames, h, w)
        angles = torch.ones(1, length, c.head_dim // 2)
        text = [
            torch.randn(1, c.num_heads, c.text_len, c.head_dim, dtype=real)
            for _ in range(c.num_layers)
        ]
        every = torch.arange(length, dtype=torch.int32)
        inputs: dict[str, Any] = {
            **{n: torch.randn(latent, dtype=real) for n in ("noisy", "source", "noise")},
            **{n: torch.ones(1) for n in ("timestep", "sigma", "sigma_next")},
            "rope_cos": angles,
            "rope_sin": angles * 0,
            "keep_index": every,
            "token_row": every.clone(),
            "write_index": torch.tensor([stream.kv_cache_length - length]),
            "kv_length": torch.tensor([stream.kv_cache_length], dtype=torch.int32),
            "cross_k": text,
            "cross_v": text,
            "k_cache": [t.to(device) for t in state.k_cache],
            "v_cache": [t.to(device) for t in state.v_cache],
            "attn_store": [t.to(device) for t in state.attn_store],
        }
    step: Any = DiTStep(dit)
    if mode == "compile":
        step = torch.compile(step)

    def run() -> None:
        with torch.inference_mode():
            step(**inputs)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def _median_ms(run: Callable[[], None], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6
