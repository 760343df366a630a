"""Operators that have no single PyTorch call: torch references, traced as one node each.

Their ONNX forms are in `liveedit.export.functions`, their CUDA kernels in ``plugins/``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from liveedit.models.rope import apply_rope

NAMESPACE = "liveedit"


@torch.library.custom_op(f"{NAMESPACE}::mask_cache_gather", mutates_args=())
def mask_cache_gather(x: Tensor, scale: Tensor, shift: Tensor, keep_index: Tensor) -> Tensor:
    """Kept rows of a normalised tensor, modulated: x[keep] * (1 + scale) + shift.

    Args:
        x: [1, L, D] float32, float16 or bfloat16.
        scale, shift: [1, 1, D] float32.
        keep_index: [K] int32; an index outside [0, L) gives a row of zeros.

    Returns:
        [1, K, D] in the type of x, rounded once from float32.
    """
    inside = (keep_index >= 0) & (keep_index < x.shape[1])
    rows = x[:, torch.where(inside, keep_index, 0).long()].float()
    out = rows * (1 + scale) + shift
    return torch.where(inside.view(1, -1, 1), out, 0.0).to(x.dtype)


@mask_cache_gather.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, keep_index: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], keep_index.shape[0], x.shape[2])


@torch.library.custom_op(f"{NAMESPACE}::mask_cache_scatter", mutates_args=())
def mask_cache_scatter(
    x: Tensor, update: Tensor, store: Tensor, gate: Tensor, token_row: Tensor
) -> tuple[Tensor, Tensor]:
    """Residual add of fresh rows where tokens were kept and of stored rows elsewhere.

    Args:
        x, store: [1, L, D], the residual stream and the stored attention output.
        update: [1, K, D], fresh attention output of the kept tokens.
        gate: [1, 1, D] float32.
        token_row: [L] int32, row of ``update`` for each token; outside [0, K) means not kept.

    Returns:
        x + filled * gate (float32 arithmetic, rounded once) and filled, both [1, L, D].
    """
    inside = (token_row >= 0) & (token_row < update.shape[1])
    fresh = update[:, torch.where(inside, token_row, 0).long()]
    filled = torch.where(inside.view(1, -1, 1), fresh, store)
    return (x.float() + filled.float() * gate).to(x.dtype), filled


@mask_cache_scatter.register_fake
def _(
    x: Tensor, update: Tensor, store: Tensor, gate: Tensor, token_row: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(store)


@torch.library.custom_op(f"{NAMESPACE}::kv_update", mutates_args=())
def kv_update(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """Write rows into a KV cache: out[:, :, w : w + K] = update.

    Args:
        cache: [1, heads, M, head_dim].
        update: [1, heads, K, head_dim].
        write_index: [1] int64, w with w + K <= M.
    """
    rows = write_index + torch.arange(update.shape[2], device=cache.device)
    return cache.index_copy(2, rows, update)


@kv_update.register_fake
def _(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    return torch.empty_like(cache)


@torch.library.custom_op(f"{NAMESPACE}::kv_attention", mutates_args=())
def kv_attention(q: Tensor, k: Tensor, v: Tensor, kv_length: Tensor) -> Tensor:
    """Attention over the first ``kv_length`` rows of a cache.

    Args:
        q: [1, heads, K, head_dim], already multiplied by 1 / sqrt(head_dim).
        k, v: [1, heads, M, head_dim].
        kv_length: [1] int32.

    Returns:
        [1, heads, K, head_dim].
    """
    n = int(kv_length)
    out = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :n], v[:, :, :n], scale=1.0)
    return out.contiguous()  # compiled code relies on the layout that the fake states


@kv_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kv_length: Tensor) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op(f"{NAMESPACE}::rotary", mutates_args=())
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs: x [1, heads, T, head_dim], cos and sin [1, T, head_dim / 2]."""
    return apply_rope(x, cos, sin).contiguous()


@rotary.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x.new_empty(x.shape)
