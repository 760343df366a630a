"""Attention masks over whole clips, for training and for checking the stream against one pass."""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(
    num_latent_frames: int,
    num_frame_per_block: int,
    frame_seq_length: int,
    local_attn_size: int | None = None,
    sink_size: int = 0,
) -> Tensor:
    """Which keys a query sees when the clip is generated block by block.

    A key is visible when it lies before the end of the query's block and is either one of the
    first ``sink_size`` frames or among the last ``local_attn_size - sink_size`` frames up to that
    end. ``local_attn_size`` None means no window.

    Returns:
        bool [T, T], T = num_latent_frames * frame_seq_length, True where attention is allowed.
    """
    frame = torch.arange(num_latent_frames).repeat_interleave(frame_seq_length)
    end = (frame // num_frame_per_block + 1) * num_frame_per_block
    key = frame.view(1, -1)
    visible = key < end.view(-1, 1)
    if local_attn_size is not None:
        oldest = (end - (local_attn_size - sink_size)).view(-1, 1)
        visible &= (key < sink_size) | (key >= oldest)
    return visible


def teacher_forcing_mask(
    num_latent_frames: int, num_frame_per_block: int, frame_seq_length: int
) -> Tensor:
    """Mask of the sequence [clean clip, noisy clip].

    The clean half is block-causal on itself. A noisy block sees itself and the clean blocks
    strictly before it, which is what a KV cache of clean passes holds.

    Returns:
        bool [2 T, 2 T], T = num_latent_frames * frame_seq_length.
    """
    block = torch.arange(num_latent_frames).repeat_interleave(frame_seq_length)
    block = block // num_frame_per_block
    query, key = block.view(-1, 1), block.view(1, -1)
    nothing = torch.zeros(len(block), len(block), dtype=torch.bool)
    clean = torch.cat((key <= query, nothing), dim=1)
    noisy = torch.cat((key < query, key == query), dim=1)
    return torch.cat((clean, noisy), dim=0)
