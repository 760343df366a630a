"""One denoising or clean pass over one chunk, as a bundle exports it (docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liveedit.config import StreamConfig
from liveedit.models import ops
from liveedit.models.dit import Block, CausalWanDiT


@dataclass
class StepState:
    """What persists between passes, a list entry per block.

    ``k_cache``, ``v_cache``: [1, heads, M, head_dim]; ``attn_store``: [1, L, dim].
    """

    k_cache: list[Tensor]
    v_cache: list[Tensor]
    attn_store: list[Tensor]

    @classmethod
    def zeros(cls, dit: CausalWanDiT, stream: StreamConfig) -> StepState:
        c = dit.config
        dtype = dit.patch_embedding.weight.dtype
        kv = (1, c.num_heads, stream.kv_cache_length, c.head_dim)
        store = (1, stream.block_seq_length, c.dim)
        return cls(*([torch.zeros(s, dtype=dtype) for _ in dit.blocks] for s in (kv, kv, store)))


def to_precision(dit: CausalWanDiT, dtype: torch.dtype) -> CausalWanDiT:
    """Cast in place; time embedding and modulation are small and delicate and stay float32."""
    if dtype == torch.float32:
        return dit.float()
    dit.to(dtype)
    dit.time_embedding.float()
    dit.time_projection.float()
    for module in (*dit.blocks, dit.head):
        module.modulation.data = module.modulation.data.float()
    return dit


class BlockStep(nn.Module):
    """One transformer block over one chunk, with its caches."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        x: Tensor,
        e0: Tensor,
        rope: tuple[Tensor, Tensor],
        indices: tuple[Tensor, Tensor, Tensor, Tensor],
        cross: tuple[Tensor, Tensor],
        caches: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [1, L, dim] -> x, K cache, V cache, attention store."""
        keep_index, token_row, write_index, kv_length = indices
        k_cache, v_cache, store = caches
        attn = self.block.self_attn
        pieces = self.block.pieces(e0)
        shift, scale, gate = pieces[:3]
        h = ops.mask_cache_gather(self.block.norm(x), scale, shift, keep_index)
        q = ops.rotary(attn.heads(attn.norm_q(attn.q(h))), *rope)
        q = (q * attn.head_dim**-0.5).to(x.dtype)
        k = ops.rotary(attn.heads(attn.norm_k(attn.k(h))), *rope).to(x.dtype)
        k_cache = ops.kv_update(k_cache, k, write_index)
        v_cache = ops.kv_update(v_cache, attn.heads(attn.v(h)), write_index)
        out = attn.merge(ops.kv_attention(q, k_cache, v_cache, kv_length))
        x, store = ops.mask_cache_scatter(x, out, store, gate, token_row)
        return self.block.text_and_ffn(x, pieces, *cross), k_cache, v_cache, store


class DiTStep(nn.Module):
    """Flat-input wrapper around `CausalWanDiT` for one chunk."""

    def __init__(self, dit: CausalWanDiT) -> None:
        super().__init__()
        self.dit = dit
        self.steps = nn.ModuleList(BlockStep(block) for block in dit.layers)

    def forward(
        self,
        noisy: Tensor,
        source: Tensor,
        noise: Tensor,
        timestep: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        keep_index: Tensor,
        token_row: Tensor,
        write_index: Tensor,
        kv_length: Tensor,
        cross_k: list[Tensor],
        cross_v: list[Tensor],
        k_cache: list[Tensor],
        v_cache: list[Tensor],
        attn_store: list[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """See docs/architecture.md, `dit_step`, for shapes and types.

        Returns:
            x0, next_latent, and the new K caches, V caches and attention stores.
        """
        frames, height, width = noisy.shape[2:]
        x = self.dit.tokens(noisy, source)
        e, e0 = self.dit.time(timestep)
        e, e0 = e.unsqueeze(0), e0.unsqueeze(0)  # [1, 1, ...]: one time for the whole chunk
        kept = keep_index.clamp(min=0).long()
        rope = (rope_cos.index_select(1, kept), rope_sin.index_select(1, kept))
        indices = (keep_index, token_row, write_index, kv_length)
        new: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for i, step in enumerate(self.steps):
            cross, caches = (cross_k[i], cross_v[i]), (k_cache[i], v_cache[i], attn_store[i])
            x, *updated = step(x, e0, rope, indices, cross, caches)
            for tensors, tensor in zip(new, updated, strict=True):
                tensors.append(tensor)
        velocity = self.dit.unpatchify(self.dit.head(x, e), frames, height // 2, width // 2)
        x0 = noisy.float() - sigma * velocity.float()
        next_latent = (1 - sigma_next) * x0 + sigma_next * noise.float()
        return x0.to(noisy.dtype), next_latent.to(noisy.dtype), *new


class Prompt(nn.Module):
    """Prompt embeddings to the cross-attention K and V of every block."""

    def __init__(self, dit: CausalWanDiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, text_embeds: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """[1, text_len, text_dim] -> two lists of [1, heads, text_len, head_dim]."""
        k, v = zip(*self.dit.text_kv(text_embeds), strict=True)
        return list(k), list(v)
