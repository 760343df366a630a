"""Passes of an exported step beside the PyTorch reference, with the same weights and inputs.

The reference runs in float32. It runs a second time in the graphs' own precision: how far that is
off is what a backend's error is to be read against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liveedit.bundle import Manifest, read_manifest
from liveedit.errors import LiveEditError
from liveedit.profiling.gpu_setting import Figures
from liveedit.profiling.pass_runner import PassRunner
from liveedit.profiling.records import single
from liveedit.runtime.backends import Opening, open_backend

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float32]]
LATENTS = ("noisy", "source", "noise")
KEEP = 0.3  # share of tokens in the pruned pass


@dataclass(frozen=True)
class Pass:
    """A pass that writes K and V from ``row`` on and computes ``kept`` tokens.

    ``sign``: what its latents are multiplied by, so that chunks differ.
    """

    name: str
    row: int
    kept: int
    sign: int


def passes(manifest: Manifest) -> tuple[Pass, ...]:
    """A first chunk, the next one, which attends to it, and a pruned pass of that one."""
    stream = manifest.stream
    tokens, bucket = stream.block_seq_length, stream.keep_bucket
    kept = min(tokens, bucket * -(-round(KEEP * tokens) // bucket))
    return (
        Pass("first", 0, tokens, -1),
        Pass("full", tokens, tokens, 1),
        Pass("pruned", tokens, kept, 1),
    )


def random_inputs(manifest: Manifest, seed: int = 0) -> dict[str, Array]:
    """What the passes share, float32: latents, rotary tables, K and V of a prompt."""
    c, stream = manifest.model.dit, manifest.stream
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32)

    latent = (stream.num_frame_per_block, stream.latent_height, stream.latent_width)
    angle = random.uniform(0, 2 * np.pi, (1, stream.block_seq_length, c.head_dim // 2))
    out = {name: normal(1, c.latent_channels, *latent) for name in LATENTS}
    out |= {"rope_cos": np.cos(angle).astype(np.float32)}
    out |= {"rope_sin": np.sin(angle).astype(np.float32)}
    for number in range(c.num_layers):
        for name in ("cross_k", "cross_v"):
            out[f"{name}_{number:02}"] = normal(1, c.num_heads, c.text_len, c.head_dim)
    return out


def backend_passes(
    root: Path, name: str, precision: str, inputs: Mapping[str, Array]
) -> list[Array]:
    """x0 of every pass.

    Raises:
        LiveEditError: the backend cannot run.
    """
    manifest = read_manifest(root)
    opening = Opening(root=root, manifest=manifest, precision=precision, overlap=False)
    backend = open_backend(name, opening)
    try:
        runner = PassRunner(root, manifest, precision, backend)
        for buffer, value in inputs.items():
            backend.write(buffer, value)
        out = []
        for one in passes(manifest):
            for buffer in LATENTS:
                backend.write(buffer, one.sign * inputs[buffer])
            runner.place(one.row)
            runner.keep(one.kept)
            runner.run()
            out.append(backend.read("x0").astype(np.float32))
    finally:
        backend.close()
    return out


def reference_passes(
    manifest: Manifest,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Array],
    *,
    device: str,
    dtype: str,
) -> list[Array]:
    """The same from the network itself, eager, in ``dtype``.

    Raises:
        LiveEditError: the GPU has too little memory for it.
    """
    import torch

    try:
        return _reference_passes(manifest, weights, inputs, device, getattr(torch, dtype))
    except torch.OutOfMemoryError as error:
        raise LiveEditError(f"no room for the PyTorch reference in {dtype}: {error}") from None
    finally:
        if device != "cpu":
            torch.cuda.empty_cache()  # backends allocate beside torch


def _reference_passes(
    manifest: Manifest,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Array],
    device: str,
    real: torch.dtype,
) -> list[Array]:
    import torch

    from liveedit.models.dit import CausalWanDiT
    from liveedit.models.dit_step import DiTStep, StepState, to_precision

    stream = manifest.stream
    tokens, two_chunks = stream.block_seq_length, 2 * stream.num_frame_per_block
    blocks = range(manifest.model.dit.num_layers)

    def on(name: str, kind: torch.dtype = real) -> Tensor:
        return torch.from_numpy(inputs[name]).to(device, kind)

    with torch.device(device), torch.inference_mode():
        dit = CausalWanDiT(manifest.model.dit)
        dit.load_state_dict(dict(weights))
        dit = to_precision(dit, real).eval()
        # No pass reads the rest of the window.
        state = StepState.zeros(dit, replace(stream, local_attn_size=two_chunks, sink_size=0))
        step, out = DiTStep(dit), []
        latents = {name: on(name) for name in LATENTS}
        shared: dict[str, Any] = {n: on(n, torch.float32) for n in ("rope_cos", "rope_sin")}
        shared |= {n: [on(f"{n}_{b:02}") for b in blocks] for n in ("cross_k", "cross_v")}
        for name, value in PassRunner.SCALARS.items():
            shared[name] = torch.full((1,), value)
        for one in passes(manifest):
            index = np.linspace(0, tokens - 1, one.kept).round().astype(np.int32)
            keep, row = torch.from_numpy(index).to(device), torch.full((tokens,), -1).int()
            row[keep.long()] = torch.arange(one.kept).int()
            x0, _, *new = step(
                **{name: one.sign * latent for name, latent in latents.items()},
                **shared,
                keep_index=keep,
                token_row=row,
                write_index=torch.tensor([one.row]),
                kv_length=torch.tensor([one.row + one.kept]).int(),
                k_cache=state.k_cache,
                v_cache=state.v_cache,
                attn_store=state.attn_store,
            )
            state = StepState(*new)
            out.append(x0.float().cpu().numpy())
    return out


def errors(label: str, got: list[Array], exact: list[Array], manifest: Manifest) -> Figures:
    """Root mean square of the error of x0 over that of x0, for each pass."""
    return {
        f"{label}.x0_error.{one.name}": single(
            float(np.linalg.norm(mine - right) / np.linalg.norm(right)), "ratio", "lower"
        )
        for one, mine, right in zip(passes(manifest), got, exact, strict=True)
    }
