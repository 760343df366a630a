"""Velocities of whole clips as functions, and classifier-free guidance between two of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from liveedit.models.dit import CausalWanDiT

# (noisy [B, ...], timestep [B]) -> velocity like noisy
Velocity = Callable[[Tensor, Tensor], Tensor]


def full_attention(dit: CausalWanDiT, text_embeds: Tensor, source: Tensor) -> Velocity:
    """A foundation model's velocities: every frame sees all, at one level per clip.

    Args:
        text_embeds: [B, text_len, text_dim].
        source: [B, C, F, h, w].
    """

    def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
        frames = timestep.view(-1, 1).expand(-1, source.shape[2])
        out: Tensor = dit(noisy, source, frames, text_embeds)
        return out.to(noisy)

    return velocity


def guided(
    velocity: Velocity,
    unconditional: Velocity | None,
    guidance: float,
    where: Tensor | float = 1.0,
) -> Velocity:
    """c + guidance * (c - u): the scale that other texts call 1 + guidance.

    Args:
        where: share of the guidance in each place, broadcast to the velocity.
    """
    if unconditional is None or guidance == 0:
        return velocity

    def both(noisy: Tensor, timestep: Tensor) -> Tensor:
        conditional = velocity(noisy, timestep)
        away = conditional - unconditional(noisy, timestep)
        return conditional + guidance * where * away

    return both
