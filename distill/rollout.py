"""The stream in torch: block after block, few steps, keys and values of clean passes kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from liveedit.config import StreamConfig
from liveedit.models.dit import Block, CausalWanDiT, gated_add, modulate
from liveedit.models.rope import apply_rope, rope_tables


@dataclass
class PastBlocks:
    """Rotated keys and values of finished blocks, per layer a list of [B, heads, L, head_dim]."""

    keys: list[list[Tensor]] = field(default_factory=list)
    values: list[list[Tensor]] = field(default_factory=list)

    def append(self, keys: list[Tensor], values: list[Tensor], sink: int, window: int) -> None:
        """Add a block; of more than ``window`` keep the first ``sink`` and the newest."""
        if not self.keys:
            self.keys, self.values = [[] for _ in keys], [[] for _ in values]
        for store, new in ((self.keys, keys), (self.values, values)):
            for layer, tensor in zip(store, new, strict=True):
                layer.append(tensor)
                if len(layer) > window:
                    del layer[sink]


def block_velocity(
    dit: CausalWanDiT,
    noisy: Tensor,
    source: Tensor,
    timestep: float,
    text_kv: list[tuple[Tensor, Tensor]],
    position: int,
    past: PastBlocks,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Velocity of one block [B, C, F, h, w] given the past; and its own keys and values."""
    frames, height, width = noisy.shape[2:]
    rows, columns = height // 2, width // 2
    x = dit.tokens(noisy, source)
    e, e0 = dit.time(torch.full((noisy.shape[0], 1), timestep, dtype=torch.float64))
    cos, sin = rope_tables(
        dit.config.head_dim, torch.arange(position, position + frames), rows, columns
    )
    keys, values = [], []
    for i, block in enumerate(dit.blocks):
        assert isinstance(block, Block), block
        attn, pieces = block.self_attn, block.pieces(e0)
        shift, scale, gate = pieces[:3]
        h = modulate(block.norm(x), scale, shift)
        q = apply_rope(attn.heads(attn.norm_q(attn.q(h))), cos, sin).to(h.dtype)
        k = apply_rope(attn.heads(attn.norm_k(attn.k(h))), cos, sin).to(h.dtype)
        v = attn.heads(attn.v(h))
        keys.append(k)
        values.append(v)
        if past.keys:
            k, v = torch.cat((*past.keys[i], k), 2), torch.cat((*past.values[i], v), 2)
        out = attn.merge(F.scaled_dot_product_attention(q, k, v))
        x = block.text_and_ffn(gated_add(x, out, gate), pieces, *text_kv[i])
    return dit.unpatchify(dit.head(x, e), frames, rows, columns), keys, values


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
    past = PastBlocks()
    out = []
    for position in range(0, source.shape[2], block):
        y = source[:, :, position : position + block]
        x = torch.randn(y.shape, generator=rng)
        x0 = x
        for i, t in enumerate(steps):
            v, _, _ = block_velocity(dit, x, y, t, text_kv, position, past)
            x0 = x - (t / 1000.0) * v
            if i + 1 < len(steps):
                sigma = steps[i + 1] / 1000.0
                x = (1 - sigma) * x0 + sigma * torch.randn(y.shape, generator=rng)
        _, keys, values = block_velocity(dit, x0, y, 0.0, text_kv, position, past)
        past.append(keys, values, sink, window)
        out.append(x0)
    return torch.cat(out, dim=2)
