"""Attention masks over whole clips, for training and for checking the stream against one pass.

A rule says which keys a query sees. It is written once, and becomes a dense mask on the CPU and a
block mask for FlexAttention on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Rule(Protocol):
    """Masks are kept by rule."""

    def __hash__(self) -> int: ...

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Bool, for token positions of any shapes that broadcast."""


@dataclass(frozen=True)
class BlockCausal:
    """Which keys a query sees when the clip is generated block by block.

    A key is visible when it lies before the end of the query's block and is either one of the
    first ``sink_size`` frames or among the last ``local_attn_size - sink_size`` frames up to that
    end. ``local_attn_size`` None means no window.
    """

    num_frame_per_block: int
    frame_seq_length: int
    local_attn_size: int | None = None
    sink_size: int = 0

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        block = self.num_frame_per_block
        key = key // self.frame_seq_length
        end = (query // self.frame_seq_length // block + 1) * block
        seen = key < end
        if self.local_attn_size is None:
            return seen
        oldest = end - (self.local_attn_size - self.sink_size)
        return seen & ((key < self.sink_size) | (key >= oldest))


@dataclass(frozen=True)
class TeacherForcing:
    """Rule of the sequence [clean context, noisy clip], both starting at the clip's first frame.

    The clean part is block-causal on itself. A noisy block sees itself and the clean blocks
    strictly before it, which is what a KV cache of clean passes holds.
    """

    num_context_frames: int
    num_frame_per_block: int
    frame_seq_length: int

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        query_clean, query_block = self._place(query)
        key_clean, key_block = self._place(key)
        clean = key_clean & ((key_block < query_block) | (query_clean & (key_block == query_block)))
        return clean | (~key_clean & ~query_clean & (key_block == query_block))

    def _place(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a token is of the clean part, and its block."""
        context = self.num_context_frames * self.frame_seq_length
        clean = position < context
        inside = position - torch.where(clean, 0, context)
        return clean, inside // (self.num_frame_per_block * self.frame_seq_length)


def dense_mask(rule: Rule, length: int) -> Tensor:
    """Bool [length, length], True where attention is allowed."""
    position = torch.arange(length)
    return rule.visible(position.view(-1, 1), position.view(1, -1))


@functools.lru_cache(maxsize=8)
def attention_mask(rule: Rule, length: int, device: torch.device) -> Tensor | BlockMask:
    """The rule in the form that attention on a device takes fastest."""
    if device.type != "cuda":
        return dense_mask(rule, length).to(device)
    # Compiled: otherwise it makes the dense mask on its way.
    return block_mask(rule, length, device, compiled=True)


def block_mask(
    rule: Rule, length: int, device: torch.device, *, compiled: bool = False
) -> BlockMask:
    """FlexAttention's form of a rule."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule.visible(query, key)

    create: Any = torch.compile(create_block_mask) if compiled else create_block_mask
    mask: BlockMask = create(visible, None, None, length, length, device=str(device))
    return mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
    """Attention [B, heads, T, head_dim] under a mask of either form; None is full attention."""
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out: Tensor = _flex_attention(q.is_cuda)(q, k, v, block_mask=mask)
    return out


@functools.cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def block_causal_mask(
    num_latent_frames: int,
    num_frame_per_block: int,
    frame_seq_length: int,
    local_attn_size: int | None = None,
    sink_size: int = 0,
) -> Tensor:
    """The dense mask of `BlockCausal` over a clip: bool [T, T], True where attention is allowed,
    T = num_latent_frames * frame_seq_length.
    """
    rule = BlockCausal(num_frame_per_block, frame_seq_length, local_attn_size, sink_size)
    return dense_mask(rule, num_latent_frames * frame_seq_length)
