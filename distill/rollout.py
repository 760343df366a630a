"""The stream in torch: block after block, few steps, keys and values of clean passes kept."""

from __future__ import annotations

import torch
from torch import Tensor

from liveedit.config import StreamConfig
from liveedit.models.dit import CausalWanDiT

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


def stream_edit(
    dit: CausalWanDiT,
    text_embeds: Tensor,
    source: Tensor,
    stream: StreamConfig,
    rng: torch.Generator,
    steps: tuple[float, ...] | None = None,
) -> Tensor:
    """Edit a coded clip as the runtime does.

    Args:
        text_embeds: [B, text_len, text_dim].
        source: [B, C, F, h, w], F a multiple of the block.
        steps: timesteps from high to low; None takes the stream's.

    Returns:
        The edited latent, like ``source``.

    Unwarped steps: sigma is t / 1000.
    """
    block = stream.num_frame_per_block
    steps = steps or stream.denoising_step_list
    sink, window = stream.sink_size // block, stream.local_attn_size // block - 1
    text_kv = dit.text_kv(text_embeds)
    past = PastBlocks(sink, window)
    out = []

    def clock(t: float) -> Tensor:
        return torch.full((len(source), 1), t, dtype=torch.float64, device=source.device)

    for position in range(0, source.shape[2], block):
        y = source[:, :, position : position + block]
        x = torch.randn(y.shape, generator=rng)
        x0, seen = x, past.joined()
        for i, t in enumerate(steps):
            v, _ = dit.stream(x, y, clock(t), text_kv, position, seen)
            x0 = x - (t / 1000.0) * v
            if i + 1 < len(steps):
                sigma = steps[i + 1] / 1000.0
                x = (1 - sigma) * x0 + sigma * torch.randn(y.shape, generator=rng)
        _, own = dit.stream(x0, y, clock(0.0), text_kv, position, seen)
        past.append(own)
        out.append(x0)
    return torch.cat(out, dim=2)
