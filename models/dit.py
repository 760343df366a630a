"""The causal Wan diffusion transformer of LiveEdit. Parameter names are the checkpoint's own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from liveedit.config import DiTConfig
from liveedit.models.block_mask import attend
from liveedit.models.rope import apply_rope, rope_tables

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def timestep_embedding(timestep: Tensor, freq_dim: int) -> Tensor:
    """Sinusoids of t, cosines first: [...] -> [..., freq_dim], in the type of ``timestep``."""
    half = freq_dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / half)).to(
        timestep
    )
    angles = timestep.unsqueeze(-1) * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def per_frame(x: Tensor, piece: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 views of x [B, T, dim] and piece [B, F, dim] that broadcast frame by frame."""
    if piece.shape[1] == 1:
        return x.float(), piece
    return x.float().unflatten(1, (piece.shape[1], -1)), piece.unsqueeze(2)


def modulate(normed: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """adaLN in float32: x [B, T, dim], scale and shift [B, F or 1, dim]; keeps the type of x."""
    x, scale = per_frame(normed, scale)
    _, shift = per_frame(normed, shift)
    return (x * (1 + scale) + shift).to(normed.dtype).view_as(normed)


def gated_add(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate in float32: x [B, T, dim], gate [B, F or 1, dim]; keeps the type of x."""
    u, gate = per_frame(update, gate)
    return (x.float() + (u * gate).view_as(x)).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over all channels, before the head split. Float32 in, float32 out."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return F.rms_norm(x, (x.shape[-1],), self.weight.float(), self.eps)


class Attention(nn.Module):
    """Projections shared by self- and cross-attention: q, k, v, o and full-width q/k norms."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def heads(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, heads, T, head_dim]."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """[B, heads, T, head_dim] -> [B, T, dim], through the output projection."""
        return self.o(x.transpose(1, 2).flatten(2))

    def text_kv(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values [B, heads, text_len, head_dim], once per prompt."""
        k = self.heads(self.norm_k(self.k(context)).to(context.dtype))
        return k, self.heads(self.v(context))

    def over_text(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend x [B, T, dim] to the prompt. Padding rows of the text are attended to as well."""
        q = self.heads(self.norm_q(self.q(x)).to(x.dtype))
        return self.merge(F.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    """Self-attention, cross-attention and FFN; the first and last are modulated by time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.dim, self.eps = config.dim, config.eps
        self.self_attn = Attention(config)
        self.cross_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), eps=self.eps)

    def pieces(self, e0: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale, gate of attention, then of the FFN: float32 [B, F, dim] each."""
        return (self.modulation.float() + e0.float()).unbind(-2)

    def text_and_ffn(self, x: Tensor, pieces: tuple[Tensor, ...], k: Tensor, v: Tensor) -> Tensor:
        """The part of the block that always runs on all tokens."""
        x = x + self.cross_attn.over_text(self.norm3(x), k, v)
        shift, scale, gate = pieces[3:]
        return gated_add(x, self.ffn(modulate(self.norm(x), scale, shift)), gate)

    def text_kv(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values of embedded text [B, text_len, dim]."""
        return self.cross_attn.text_kv(context)

    def rotated_qkv(self, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention q, k, v [B, heads, T, head_dim] of modulated tokens, q and k rotated."""
        attn = self.self_attn
        q = apply_rope(attn.heads(attn.norm_q(attn.q(h))), cos, sin).to(h.dtype)
        k = apply_rope(attn.heads(attn.norm_k(attn.k(h))), cos, sin).to(h.dtype)
        return q, k, attn.heads(attn.v(h))

    def forward(
        self,
        x: Tensor,
        e0: Tensor,
        cos: Tensor,
        sin: Tensor,
        context: Tensor,
        mask: Tensor | BlockMask | None,
    ) -> Tensor:
        """Whole-clip form, for training.

        Args:
            x: [B, T, dim].
            e0: [B, F, 6, dim] time modulation of each frame.
            cos, sin: [1, T, head_dim / 2].
            context: [B, text_len, dim] embedded text.
            mask: bool [T, T], True where attention is allowed, or FlexAttention's form of one;
                None means everywhere.
        """
        pieces = self.pieces(e0)
        shift, scale, gate = pieces[:3]
        q, k, v = self.rotated_qkv(modulate(self.norm(x), scale, shift), cos, sin)
        out = self.self_attn.merge(attend(q, k, v, mask))
        # Not self.text_kv: sharding gives back the block's weights at the end of that method.
        kv = self.cross_attn.text_kv(context)
        return self.text_and_ffn(gated_add(x, out, gate), pieces, *kv)

    def stream(
        self,
        x: Tensor,
        e0: Tensor,
        cos: Tensor,
        sin: Tensor,
        text_kv: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One chunk after a KV cache, for rollouts.

        Args:
            text_kv: from ``text_kv``.
            past: rotated keys and values [B, heads, past, head_dim]; None at the start.

        Returns:
            The tokens, and this chunk's own keys and values.
        """
        pieces = self.pieces(e0)
        shift, scale, gate = pieces[:3]
        q, k, v = self.rotated_qkv(modulate(self.norm(x), scale, shift), cos, sin)
        keys, values = k, v
        if past is not None:
            keys, values = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        out = self.self_attn.merge(F.scaled_dot_product_attention(q, keys, values))
        return self.text_and_ffn(gated_add(x, out, gate), pieces, *text_kv), k, v


class Head(nn.Module):
    """Final norm, time modulation, projection to a patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.dim, self.eps = config.dim, config.eps
        self.head = nn.Linear(config.dim, 4 * config.latent_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, T, dim], e [B, F, dim] (the embedding itself, not its projection)."""
        shift, scale = (self.modulation.float() + e.float().unsqueeze(-2)).unbind(-2)
        return self.head(modulate(F.layer_norm(x, (self.dim,), eps=self.eps), scale, shift))


class CausalWanDiT(nn.Module):
    """Predicts the velocity v = noise - x0 of an edited clip, given the source clip and a prompt.

    ``forward`` runs a whole clip at once under a mask, for training and as the oracle of the
    stream. The step that a bundle exports is `liveedit.models.dit_step.DiTStep`.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        patch = (1, 2, 2)
        self.patch_embedding = nn.Conv3d(config.in_channels, config.dim, patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.dim, config.dim),
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.gradient_checkpointing = False

    @property
    def layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def tokens(self, noisy: Tensor, source: Tensor) -> Tensor:
        """Two latents [B, 16, F, h, w] -> [B, F * h/2 * w/2, dim]. The source comes second."""
        both = torch.cat((noisy, source), dim=1).to(self.patch_embedding.weight.dtype)
        return self.patch_embedding(both).flatten(2).transpose(1, 2)

    def unpatchify(self, patches: Tensor, frames: int, rows: int, columns: int) -> Tensor:
        """[B, T, 64], patch order (row, column, channel) -> [B, 16, F, 2 rows, 2 columns]."""
        x = patches.unflatten(-1, (2, 2, self.config.latent_channels))
        x = x.unflatten(1, (frames, rows, columns))  # [B, F, rows, columns, 2, 2, C]
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """t [...] -> embedding e [..., dim] and block modulation e0 [..., 6, dim]."""
        dtype = next(self.time_embedding.parameters()).dtype
        e = self.time_embedding(timestep_embedding(timestep, self.config.freq_dim).to(dtype))
        return e, self.time_projection(e).unflatten(-1, (6, self.config.dim))

    def text_kv(self, text_embeds: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Prompt embeddings [B, text_len, text_dim], zero past the prompt -> K, V of each block."""
        context = self.context(text_embeds)
        return [block.text_kv(context) for block in self.layers]

    def context(self, text_embeds: Tensor) -> Tensor:
        """Prompt embeddings [B, text_len, text_dim] at the width of the blocks."""
        dtype = next(self.text_embedding.parameters()).dtype
        return self.text_embedding(text_embeds.to(dtype))

    def stream(
        self,
        noisy: Tensor,
        source: Tensor,
        timestep: Tensor,
        text_kv: list[tuple[Tensor, Tensor]],
        position: int,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Velocity of one chunk after a KV cache, as the runtime computes it.

        Args:
            noisy, source: [B, 16, F, h, w].
            timestep: [B, 1] in [0, 1000], float64.
            text_kv: per layer, from ``text_kv``.
            position: latent-frame index of the first frame.
            past: per layer rotated keys and values [B, heads, past, head_dim]; empty at the start.

        Returns:
            [B, 16, F, h, w], and this chunk's keys and values per layer.
        """
        _, _, frames, height, width = noisy.shape
        rows, columns = height // 2, width // 2
        x = self.tokens(noisy, source)
        e, e0 = self.time(timestep)
        positions = torch.arange(position, position + frames)
        cos, sin = rope_tables(self.config.head_dim, positions, rows, columns)
        cos, sin = cos.to(x.device), sin.to(x.device)
        own = []
        save_memory = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for i, block in enumerate(self.layers):
            given = (x, e0, cos, sin, text_kv[i], past[i] if past else None)
            if save_memory:
                x, k, v = checkpoint(block.stream, *given, use_reentrant=False)
            else:
                x, k, v = block.stream(*given)
            own.append((k, v))
        return self.unpatchify(self.head(x, e), frames, rows, columns), own

    def forward(
        self,
        noisy: Tensor,
        source: Tensor,
        timestep: Tensor,
        text_embeds: Tensor,
        mask: Tensor | BlockMask | None = None,
        frame_positions: Tensor | None = None,
        inner: list[Tensor] | None = None,
    ) -> Tensor:
        """Velocity of every frame.

        Args:
            noisy, source: [B, 16, F, h, w].
            timestep: [B, F] in [0, 1000].
            text_embeds: [B, text_len, text_dim], zero rows after the prompt.
            mask: over tokens, see `liveedit.models.block_mask`; None is full attention.
            frame_positions: [F] absolute index of each frame; None is 0..F-1.
            inner: takes the tokens [B, T, dim] after each block.

        Returns:
            [B, 16, F, h, w].
        """
        _, _, frames, height, width = noisy.shape
        rows, columns = height // 2, width // 2
        x = self.tokens(noisy, source)
        e, e0 = self.time(timestep.double())
        if frame_positions is None:
            frame_positions = torch.arange(frames)
        cos, sin = rope_tables(self.config.head_dim, frame_positions.cpu(), rows, columns)
        cos, sin = cos.to(x.device), sin.to(x.device)
        context = self.context(text_embeds)
        # Each block projects the text itself: sharded weights are whole only while it runs.
        for block in self.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, e0, cos, sin, context, mask, use_reentrant=False)
            else:
                x = block(x, e0, cos, sin, context, mask)
            if inner is not None:
                inner.append(x)
        return self.unpatchify(self.head(x, e), frames, rows, columns)
