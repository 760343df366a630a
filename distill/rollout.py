"""The stream in torch: block after block, few steps, keys and values of clean passes kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from liveedit.config import StreamConfig
from liveedit.distill.guidance import Velocity
from liveedit.models.dit import CausalWanDiT
from liveedit.schedule import denoising_steps

KeysValues = list[tuple[Tensor, Tensor]]  # per layer, [B, heads, L, head_dim]


class PastBlocks:
    """Rotated keys and values of finished blocks: the first ones for ever, and the newest.

    Args:
        sink, window: how many blocks stay at the front, and how many stay in all.
    """

    def __init__(self, sink: int, window: int) -> None:
        self.sink, self.window = sink, window
        self.blocks: list[KeysValues] = []

    def append(self, own: KeysValues) -> None:
        self.blocks.append(own)
        if len(self.blocks) > self.window:
            del self.blocks[self.sink]

    def joined(self) -> KeysValues:
        """All kept blocks, oldest first; empty before the first one."""
        return [
            (torch.cat([k for k, _ in layer], 2), torch.cat([v for _, v in layer], 2))
            for layer in zip(*self.blocks, strict=True)
        ]


# Gaussian numbers of the given shape for (block, draw): draw 0 starts a block, draw i comes before
# pass i, and the number after the last pass's is noise on the context.
Noise = Callable[[int, int, Sequence[int]], Tensor]


def from_generator(rng: torch.Generator) -> Noise:
    """Noise in the order it is asked for."""
    return lambda _block, _draw, shape: torch.randn(tuple(shape), generator=rng)


def stream_edit(
    dit: CausalWanDiT,
    text_embeds: Tensor,
    source: Tensor,
    stream: StreamConfig,
    noise: Noise,
    *,
    exits: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    context_sigma: float = 0.0,
) -> Tensor:
    """Edit a coded clip as the runtime does, or as training does: with a gradient in one pass.

    Args:
        text_embeds: [B, text_len, text_dim].
        source: [B, C, F, h, w], F a multiple of the block.
        exits: per block the pass whose estimate is the result. It alone carries a gradient; later
            passes do not run. None runs all, with whatever gradient mode is on.
        positions: index of each block's first frame; None counts from 0.
        context_sigma: noise share of the finished block when its keys and values are kept.

    Returns:
        The edited latent, like ``source``. The past that a block sees is detached.
    """
    block, steps = stream.num_frame_per_block, denoising_steps(stream)
    text_kv = dit.text_kv(text_embeds)
    fixed_kv = [(k.detach(), v.detach()) for k, v in text_kv]
    past = PastBlocks(stream.sink_size // block, stream.local_attn_size // block - 1)
    out = []

    def clock(t: float) -> Tensor:
        return torch.full((len(source), 1), t, dtype=torch.float64, device=source.device)

    for n in range(source.shape[2] // block):
        y = source[:, :, n * block : (n + 1) * block]
        position = n * block if positions is None else int(positions[n])
        last = len(steps) - 1 if exits is None else exits[n]
        x = noise(n, 0, y.shape).to(y)
        x0, seen = x, past.joined()
        for i, step in enumerate(steps[: last + 1]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and (exits is None or i == last)):
                v, _ = dit.stream(x, y, clock(step.timestep), text_kv, position, seen)
                x0 = x - step.sigma * v.to(x)
                if i < last:
                    fresh = noise(n, i + 1, y.shape).to(y)
                    x = (1 - step.sigma_next) * x0 + step.sigma_next * fresh
        with torch.no_grad():
            kept = x0
            if context_sigma:
                fresh = noise(n, len(steps), y.shape).to(y)
                kept = (1 - context_sigma) * x0 + context_sigma * fresh
            _, own = dit.stream(kept, y, clock(0.0), fixed_kv, position, seen)
        past.append(own)
        out.append(x0)
    return torch.cat(out, dim=2)


@torch.no_grad()
def whole_clip_edit(
    velocity: Velocity, source: Tensor, sigmas: Sequence[float], noise: Noise
) -> Tensor:
    """Edit a coded clip at once, by Euler steps: how a foundation model edits.

    Args:
        source: [B, C, F, h, w].
        sigmas: falling from 1; each is one call of the velocity. The last step ends at 0.

    Returns:
        The edited latent, like ``source``.
    """
    x = noise(0, 0, source.shape).to(source)
    for sigma, below in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        timestep = torch.full((len(source),), 1000 * sigma, device=source.device)
        x = x + (below - sigma) * velocity(x, timestep)
    return x
