"""Distribution matching on Gaussians, where theory gives every number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from liveedit.distill.dmd import (
    clean_estimate,
    dmd_gradient,
    dmd_loss,
    flow_matching,
)
from liveedit.distill.guidance import Velocity, guided
from liveedit.distill.stages import level_weight

MEAN, DEVIATION = 1.5, 0.5  # the teacher's distribution


def gaussian_velocity(mean: Tensor | float, deviation: Tensor | float) -> Velocity:
    """The exact velocity field of samples N(mean, deviation^2)."""

    def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
        s = (timestep / 1000).view(-1, 1)
        variance = ((1 - s) * deviation) ** 2 + s**2
        x0 = mean + (1 - s) * deviation**2 / variance * (noisy - (1 - s) * mean)
        return (noisy - x0) / s

    return velocity


@pytest.mark.parametrize("mean", [-1.0, 4.0])
def test_gradient_points_from_the_student_to_the_teacher(mean: float) -> None:
    """Equal widths: the two estimates differ by a constant, away from the teacher's mean."""
    rng = torch.Generator().manual_seed(0)
    generated = mean + DEVIATION * torch.randn(64, 1, generator=rng)
    noise, timestep = torch.randn(64, 1, generator=rng), torch.full((64,), 600.0)
    real, fake = gaussian_velocity(MEAN, DEVIATION), gaussian_velocity(mean, DEVIATION)
    gradient = dmd_gradient(generated, noise, timestep, real, fake)
    noisy = 0.4 * generated + 0.6 * noise
    distance = (generated - clean_estimate(real, noisy, timestep)).abs()
    # E[x0 | x_t] moves by sigma^2 / (variance of x_t) per unit of the mean.
    share = 0.6**2 / ((0.4 * DEVIATION) ** 2 + 0.6**2)
    assert torch.allclose(
        gradient * distance, torch.full((64, 1), share * (mean - MEAN)), atol=1e-4
    )


def test_loss_has_that_gradient_and_no_other() -> None:
    generated = torch.randn(3, 4, requires_grad=True)
    gradient = torch.randn(3, 4)
    dmd_loss(generated, gradient).backward()
    assert generated.grad is not None
    assert torch.allclose(generated.grad, gradient / 12, atol=1e-7)


def test_equal_scores_leave_the_student_alone_and_nothing_is_not_a_number() -> None:
    real = gaussian_velocity(MEAN, DEVIATION)
    generated, noise = torch.randn(4, 1), torch.randn(4, 1)
    timestep = torch.full((4,), 500.0)
    assert dmd_gradient(generated, noise, timestep, real, real).abs().max() < 1e-5
    # A sample the teacher would not change at all: 0 / 0.
    still: Velocity = lambda noisy, t: (noisy - generated) / 0.5  # noqa: E731
    assert torch.equal(dmd_gradient(generated, noise, timestep, still, still), torch.zeros(4, 1))


def test_toy_student_and_learnt_critic_reach_the_teacher() -> None:
    """Student x = m + exp(s) z, critic a small network of (x, t), as stage 3 alternates them."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    m, s = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    student = torch.optim.Adam([m, s], lr=3e-2)
    net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
    critic = torch.optim.Adam(net.parameters(), lr=8e-3)

    def fake(noisy: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = net(torch.cat((noisy, timestep.view(-1, 1) / 500 - 1), dim=1))
        return out

    real = gaussian_velocity(MEAN, DEVIATION)
    for step in range(600):
        for update in (critic, student) if step % 3 == 0 else (critic,):
            generated = m + s.exp() * torch.randn(128, 1, generator=rng)
            noise = torch.randn(128, 1, generator=rng)
            timestep = 20 + 960 * torch.rand(128, generator=rng)
            if update is student:
                # Per batch, not per clip: a toy clip has one entry.
                gradient = dmd_gradient(generated, noise, timestep, real, fake)
                loss = dmd_loss(generated, gradient.clamp(-2, 2))
            else:
                loss = flow_matching(fake, generated.detach(), noise, timestep)
            update.zero_grad()
            loss.backward()
            update.step()
    assert float(m.detach()) == pytest.approx(MEAN, abs=0.15)
    assert float(s.detach().exp()) == pytest.approx(DEVIATION, abs=0.15)


def test_guidance_is_counted_from_the_conditional() -> None:
    """g = 3 is what other texts call scale 4: u + 4 (c - u)."""
    c: Velocity = lambda noisy, t: noisy + 1  # noqa: E731
    u: Velocity = lambda noisy, t: noisy - 1  # noqa: E731
    x, t = torch.zeros(2, 3), torch.ones(2)
    assert torch.equal(guided(c, u, 3.0)(x, t), torch.full((2, 3), 7.0))
    where = torch.tensor([0.0, 0.5, 1.0])
    assert guided(c, u, 3.0, where)(x, t)[0].tolist() == [1, 4, 7]
    assert guided(c, None, 3.0) is c
    assert guided(c, u, 0.0) is c


def test_bell_weight_is_the_released_one() -> None:
    t = torch.tensor([1000.0, 937.5, 833.33, 750.0, 500.0, 250.0, 100.0])
    expected = torch.tensor([0.0, 0.48, 1.22, 1.73, 2.47, 1.73, 0.77])
    assert (
        level_weight("bell", t, 8.0) - expected
    ).abs().max() < 0.02  # the release looks up the nearest entry
    assert torch.equal(level_weight("flat", t, 8.0), torch.ones(7))


def test_noise_weight_is_the_error_of_the_predicted_noise() -> None:
    x0, noise, error = torch.randn(5), torch.randn(5), 0.3
    sigma = 0.7
    noisy = (1 - sigma) * x0 + sigma * noise
    predicted = noisy + (1 - sigma) * (noise - x0 + error)
    weight = float(level_weight("noise", torch.tensor(700.0), 1.0))
    assert torch.allclose((predicted - noise).square(), torch.full((5,), weight * error**2))
