"""Distribution matching: samples move along the difference of two scores.

The real score is a frozen teacher's, the fake one a critic's that follows the student's samples.
Both predict velocities v = noise - x0 of whole clips x_t = (1 - sigma) x0 + sigma * noise, with
sigma = t / 1000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from liveedit.distill.guidance import Velocity
from liveedit.distill.presets import DmdConfig
from liveedit.distill.stages import Draws, warp


def draw_timesteps(config: DmdConfig, batch: int, draws: Draws) -> Tensor:
    """[B]: one level per clip, whole thousandths, warped, then clamped."""
    whole = (1000 * draws.uniform(batch)).floor()
    return warp(whole, config.timestep_shift).clamp(config.timestep_min, config.timestep_max)


def noised(x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """x0 [B, ...] at the levels [B]."""
    sigma = _sigma(timestep, x0)
    return (1 - sigma) * x0 + sigma * noise


def clean_estimate(velocity: Velocity, noisy: Tensor, timestep: Tensor) -> Tensor:
    """The clean clip that a velocity points to."""
    return noisy - _sigma(timestep, noisy) * velocity(noisy, timestep)


@torch.no_grad()
def dmd_gradient(
    generated: Tensor, noise: Tensor, timestep: Tensor, real: Velocity, fake: Velocity
) -> Tensor:
    """Where the student's samples should not go: the fake estimate minus the real one.

    Normalised per clip by the mean distance to the real estimate, so that every noise level counts
    alike. Entries that are not finite become 0.

    Args:
        generated, noise: [B, ...].
        timestep: [B].
    """
    noisy = noised(generated, noise, timestep)
    towards = clean_estimate(real, noisy, timestep)
    away = clean_estimate(fake, noisy, timestep)
    distance = (generated - towards).abs().flatten(1).mean(1)
    gradient = (away - towards) / distance.view(-1, *[1] * (generated.ndim - 1))
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def dmd_loss(generated: Tensor, gradient: Tensor) -> Tensor:
    """A number whose derivative by ``generated`` is ``gradient`` over the number of entries."""
    x = generated.double()
    return 0.5 * (x - (x - gradient.double()).detach()).square().mean()


def flow_matching(velocity: Velocity, generated: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Flow matching on the student's samples."""
    wanted = noise - generated
    return (velocity(noised(generated, noise, timestep), timestep) - wanted).square().mean()


def _sigma(timestep: Tensor, like: Tensor) -> Tensor:
    return (timestep / 1000.0).to(like.dtype).view(-1, *[1] * (like.ndim - 1))
