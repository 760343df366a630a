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

from liveedit.bundle import read_manifest
from liveedit.config import DiTConfig, StreamConfig
from liveedit.errors import UsageError
from liveedit.profiling.pass_runner import PassRunner
from liveedit.runtime.backends import GPU_BACKENDS, Opening, open_backend, resolve

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
    backend: str = "onnxruntime",
) -> ReferenceSpeed:
    """Compare full passes of the DiT where ``backend`` runs them; on a GPU the reference does, too.

    The reference is half precision there unless the graphs are fp32, and float32 on the CPU.

    Raises:
        UsageError: torch is not installed.
        BackendError: the backend is not here.
    """
    manifest = read_manifest(bundle)
    backend, name = resolve(bundle, manifest, backend, precision)
    on_gpu = backend in GPU_BACKENDS
    opening = Opening(
        root=bundle, manifest=manifest, precision=name, threads=threads, overlap=False
    )
    ours_backend = open_backend(backend, opening)
    try:
        runner = PassRunner(bundle, manifest, name, ours_backend)
        reference = torch_pass(
            manifest.model.dit,
            manifest.stream,
            mode,
            threads=threads,
            device="cuda" if on_gpu else "cpu",
            dtype="float16" if on_gpu and name != "fp32" else "float32",
        )
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
    config: DiTConfig,
    stream: StreamConfig,
    mode: ReferenceMode,
    *,
    kept: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    compiler: str = "inductor",
) -> Callable[[], None]:
    """A function that runs one pass of the reference in its steady state and waits for it.

    Args:
        kept: tokens that it computes in self-attention; None for all.
        dtype: of the network and its caches, e.g. ``bfloat16``.
        compiler: the backend of ``torch.compile`` in mode ``compile``.

    Raises:
        UsageError: torch is not installed.
    """
    try:
        import torch

        from liveedit.models.dit import CausalWanDiT
        from liveedit.models.dit_step import DiTStep, StepState, to_precision
    except ImportError as error:
        raise UsageError(
            f"the PyTorch reference needs torch ({error}). Install: pip install "
            "'liveedit-trt[export]'"
        ) from None
    if threads:
        torch.set_num_threads(threads)
    real, c, length = getattr(torch, dtype), config, stream.block_seq_length
    n = length if kept is None else kept
    frames, h, w = stream.num_frame_per_block, stream.latent_height, stream.latent_width
    torch.manual_seed(0)
    with torch.device(device):
        dit = to_precision(CausalWanDiT(config), real).eval()
        state = StepState.zeros(dit, stream)
        keep = torch.linspace(0, length - 1, n).round().int()
        row = torch.full((length,), -1, dtype=torch.int32)
        row[keep.long()] = torch.arange(n, dtype=torch.int32)
        text = [
            torch.randn(1, c.num_heads, c.text_len, c.head_dim, dtype=real)
            for _ in range(c.num_layers)
        ]
        latents = {
            name: torch.randn(1, c.latent_channels, frames, h, w, dtype=real)
            for name in ("noisy", "source", "noise")
        }
        scalars = {name: torch.ones(1) for name in ("timestep", "sigma", "sigma_next")}
        inputs: dict[str, Any] = {
            **latents,
            **scalars,
            "rope_cos": torch.ones(1, length, c.head_dim // 2),
            "rope_sin": torch.zeros(1, length, c.head_dim // 2),
            "keep_index": keep,
            "token_row": row,
            "write_index": torch.tensor([stream.kv_cache_length - length]),
            "kv_length": torch.tensor([stream.kv_cache_length - length + n], dtype=torch.int32),
            "cross_k": text,
            "cross_v": text,
            "k_cache": state.k_cache,
            "v_cache": state.v_cache,
            "attn_store": state.attn_store,
        }
    step: Any = DiTStep(dit)
    if mode == "compile":
        # Else the second shape of a process would be compiled for shapes that vary.
        step = torch.compile(step, backend=compiler, dynamic=False)

    def run() -> None:
        with torch.inference_mode():
            step(**inputs)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def times_ms(run: Callable[[], None], rounds: int) -> list[float]:
    """Wall time of ``rounds`` calls after one that warms up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _median_ms(run: Callable[[], None], rounds: int) -> float:
    return float(np.median(times_ms(run, rounds)))
