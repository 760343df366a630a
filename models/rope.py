"""Three-axis rotary embedding: time, height and width share a head's channel pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head given to time, height and width. 128 gives 44, 42, 42."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rope_tables(
    head_dim: int, frame_positions: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's angles, computed in float64.

    Args:
        frame_positions: [F] absolute latent-frame index of each frame, any real type.
        rows, columns: token grid of one frame.

    Returns:
        Two float32 tensors [1, F * rows * columns, head_dim / 2]; pair i of an axis with d channels
        turns by position * 10000 ** (-2 i / d).
    """
    angles = []
    positions = (
        frame_positions.double().view(-1, 1, 1),
        torch.arange(rows, dtype=torch.float64).view(1, -1, 1),
        torch.arange(columns, dtype=torch.float64).view(1, 1, -1),
    )
    grid = (frame_positions.numel(), rows, columns)
    for dims, position in zip(axis_dims(head_dim), positions, strict=True):
        rates = 10000.0 ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
        angles.append((position.unsqueeze(-1) * rates).expand(*grid, dims // 2))
    table = torch.cat(angles, dim=-1).reshape(1, -1, head_dim // 2)
    return table.cos().float(), table.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs (2 i, 2 i + 1).

    Args:
        x: [B, heads, T, head_dim].
        cos, sin: [1 or B, T, head_dim / 2].
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
