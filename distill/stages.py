"""The losses of the training stages."""

from __future__ import annotations

import torch
from torch import Tensor

from liveedit.config import StreamConfig
from liveedit.distill.batches import Batch
from liveedit.distill.presets import PhaseConfig, TrainConfig
from liveedit.models.block_mask import block_causal_mask, teacher_forcing_mask
from liveedit.models.dit import CausalWanDiT


def draw_timesteps(
    config: TrainConfig, steps: tuple[float, ...], batch: int, blocks: int, rng: torch.Generator
) -> Tensor:
    """[B, blocks] in (0, 1000]: mostly the stream's own steps, its first one above all."""
    listed = torch.tensor(steps)
    share = torch.full((len(steps),), (1 - config.first_step_share) / max(len(steps) - 1, 1))
    share[0] = config.first_step_share
    picked = torch.multinomial(share, batch * blocks, replacement=True, generator=rng)
    uniform = 20 + 980 * torch.rand(batch, blocks, generator=rng)
    from_list = torch.rand(batch, blocks, generator=rng) < config.step_share
    return torch.where(from_list, listed[picked].view(batch, blocks), uniform)


def stage_mask(
    config: TrainConfig, num_frames: int, block: int, tokens_per_frame: int
) -> tuple[Tensor | None, int]:
    """Attention mask of a clip and the number of clean context frames put before it."""
    if config.stage == "foundation" or num_frames <= block:
        return None, 0
    if config.forcing == "released":
        return block_causal_mask(num_frames, block, tokens_per_frame), 0
    # Nobody sees the last clean block: leave it out.
    mask = teacher_forcing_mask(num_frames, block, tokens_per_frame)
    context = num_frames - block
    rows = torch.cat(
        (
            torch.arange(context * tokens_per_frame),
            torch.arange(num_frames * tokens_per_frame, 2 * num_frames * tokens_per_frame),
        )
    )
    return mask[rows][:, rows], context


def flow_loss(
    dit: CausalWanDiT,
    text_embeds: Tensor,
    batch: Batch,
    config: TrainConfig,
    phase: PhaseConfig,
    stream: StreamConfig,
    rng: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Flow-matching loss v = noise - x0, heavier where the edit is.

    Returns:
        The loss, and for the log: mean squared error of the estimated clean latent inside and
        outside the mask.
    """
    B, _, F, h, w = batch.target.shape
    block = stream.num_frame_per_block
    blocks = 1 if config.stage == "foundation" else -(-F // block)
    t = draw_timesteps(config, stream.denoising_step_list, B, blocks, rng)
    timestep = t.repeat_interleave(-(-F // blocks), dim=1)[:, :F]  # [B, F]
    mask, context = stage_mask(config, F, block, h * w // 4)

    def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
        positions = batch.frame_positions
        if not context:
            whole: Tensor = dit(noisy, batch.source, timestep, text_embeds, mask, positions)
            return whole
        clean = batch.context[:, :, :context]
        noise = torch.randn(clean.shape, generator=rng)
        clean = clean + config.context_noise * torch.rand(B, 1, 1, 1, 1, generator=rng) * noise
        out: Tensor = dit(
            torch.cat((clean, noisy), dim=2),
            torch.cat((batch.source[:, :, :context], batch.source), dim=2),
            torch.cat((torch.zeros_like(timestep[:, :context]), timestep), dim=1),
            text_embeds,
            mask,
            torch.cat((positions[:context], positions)),
        )
        return out[:, :, context:]

    def noised(x0: Tensor, sigma: Tensor) -> Tensor:
        return (1 - sigma) * x0 + sigma * torch.randn(x0.shape, generator=rng)

    sigma = (timestep / 1000.0).view(B, 1, F, 1, 1)
    start = batch.target
    if phase.on_policy and torch.rand((), generator=rng) < phase.on_policy:
        # Noise the model's own estimate from a noisier level: what the stream will feed back.
        with torch.no_grad():
            earlier = (timestep + 250.0).clamp(max=1000.0)
            above = (earlier / 1000.0).view(B, 1, F, 1, 1)
            seen = noised(batch.target, above)
            start = seen - above * velocity(seen, earlier)
    noisy = noised(start, sigma)
    wanted = (noisy - batch.target) / sigma
    error = (velocity(noisy, timestep) - wanted).square()
    weight = 1 + config.edit_weight * batch.mask
    if start is not batch.target:
        # Off the data the same mistake weighs 1 / sigma^2: bring it to the scale of the rest.
        weight = weight * sigma.square() * 4.0
    loss = (error * weight).mean() / weight.mean().clamp(min=1.0)
    with torch.no_grad():
        x0_error = error * sigma.square()
        inside = batch.mask.expand_as(x0_error)
        log = {
            "inside": float((x0_error * inside).sum() / inside.sum().clamp(min=1.0)),
            "outside": float((x0_error * (1 - inside)).sum() / (1 - inside).sum().clamp(min=1.0)),
        }
    return loss, log
