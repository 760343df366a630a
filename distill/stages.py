"""The losses of the training stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from liveedit.config import StreamConfig
from liveedit.distill.batches import Batch, weighted_mean
from liveedit.distill.presets import LossWeight, PhaseConfig, TrainConfig
from liveedit.distill.probes import Probes
from liveedit.models.block_mask import BlockCausal, Rule, TeacherForcing, attention_mask
from liveedit.models.dit import CausalWanDiT
from liveedit.schedule import timestep_table

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Draws:
    """Random numbers of a batch: every clip has its own, whichever process or part it is in.

    So N processes, or N parts one after another, train as one does with the same batch. Numbers
    are made on the CPU, alike for every device, and returned on the batch's.
    """

    def __init__(self, batch: Batch) -> None:
        self.device = batch.target.device
        self.clips = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        self.common = torch.Generator().manual_seed(batch.common_seed)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Gaussian numbers; the first dimension is the clips."""
        rows = [torch.randn(tuple(shape[1:]), generator=clip) for clip in self.clips]
        return torch.stack(rows).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1); the first dimension is the clips."""
        rows = [torch.rand(shape[1:], generator=clip) for clip in self.clips]
        return torch.stack(rows).to(self.device)

    def coin(self, probability: float) -> bool:
        """One toss for everybody."""
        return float(torch.rand((), generator=self.common)) < probability

    def choice(self, count: int) -> int:
        """One number in [0, count) for everybody."""
        return int(torch.randint(count, (), generator=self.common))


def warp(timestep: Tensor, shift: float) -> Tensor:
    """Timesteps in [0, 1000] moved towards noise: s -> shift s / (1 + (shift - 1) s)."""
    return 1000 * shift * timestep / (1000 + (shift - 1) * timestep)


def level_weight(kind: LossWeight, timestep: Tensor, shift: float) -> Tensor:
    """The weight of a squared velocity error at each timestep, see `TrainConfig`."""
    if kind == "flat":
        return torch.ones_like(timestep)
    if kind == "noise":  # the predicted noise is x_t + (1 - sigma) v
        return (1 - timestep / 1000).square()

    def bell(t: Tensor) -> Tensor:
        return torch.exp(-2 * ((t - 500) / 1000).square())

    table = bell(torch.from_numpy(timestep_table(shift)))
    return (bell(timestep) - table.min()) / (table - table.min()).mean()


def draw_timesteps(
    config: TrainConfig, steps: tuple[float, ...], batch: int, blocks: int, draws: Draws
) -> Tensor:
    """[B, blocks] in (0, 1000]: mostly the stream's own steps, its first one above all."""
    rest = max(len(steps) - 1, 1)
    roll = draws.uniform(batch, blocks)
    later = 1 + (roll - config.first_step_share) / (1 - config.first_step_share) * rest
    picked = torch.where(roll < config.first_step_share, 0.0, later).long().clamp(0, len(steps) - 1)
    low = config.timestep_min
    uniform = warp(1000 - (1000 - low) * draws.uniform(batch, blocks), config.timestep_shift)
    from_list = draws.uniform(batch, blocks) < config.step_share
    return torch.where(from_list, torch.tensor(steps, device=picked.device)[picked], uniform)


def stage_mask(
    config: TrainConfig, num_frames: int, block: int, tokens_per_frame: int, device: torch.device
) -> tuple[Tensor | BlockMask | None, int]:
    """Attention mask of a clip and the number of clean context frames put before it."""
    if config.stage == "foundation" or num_frames <= block:
        return None, 0
    if config.forcing == "released":
        rule: Rule = BlockCausal(block, tokens_per_frame)
        return attention_mask(rule, num_frames * tokens_per_frame, device), 0
    context = num_frames - block  # nobody sees the last clean block: it is left out
    rule = TeacherForcing(context, block, tokens_per_frame)
    return attention_mask(rule, (context + num_frames) * tokens_per_frame, device), context


def clip_velocity(
    dit: CausalWanDiT,
    text_embeds: Tensor,
    batch: Batch,
    noisy: Tensor,
    timestep: Tensor,
    mask: Tensor | BlockMask | None,
    clean: Tensor,
    inner: list[Tensor] | None = None,
) -> Tensor:
    """Velocity of whole clips, under a mask of `stage_mask`.

    Args:
        noisy: [B, C, F, h, w].
        timestep: [B, F].
        clean: the context put before the clip, [B, C, 0 or more, h, w].
        inner: takes the tokens after each block, those of the clip last.
    """
    context, positions = clean.shape[2], batch.frame_positions
    out: Tensor = dit(
        torch.cat((clean, noisy), dim=2),
        torch.cat((batch.source[:, :, :context], batch.source), dim=2),
        torch.cat((torch.zeros_like(timestep[:, :context]), timestep), dim=1),
        text_embeds,
        mask,
        torch.cat((positions[:context], positions)),
        inner,
    )
    return out[:, :, context:].float()


def edit_weight(batch: Batch, config: TrainConfig) -> Tensor:
    """How much each latent cell counts, [B, 1, F, h, w].

    An object that another instruction would have meant, a ``rival``, counts much as the edited one
    does: were it far lighter, to change both would cost less than to choose. Cells around count by
    ``surround``: an edit that is unsure of its border would rather spread than stop short.
    """
    weight = batch.contested
    if config.surround:
        cells = weight[:, 0]
        for size, share in ((3, config.surround), (5, config.surround / 2)):
            near = functional.max_pool2d(cells, size, stride=1, padding=size // 2)
            weight = torch.maximum(weight, share * near.unsqueeze(1))
    return 1 + config.edit_weight * torch.maximum(batch.mask, config.rival * weight)


def edit_error(squared: Tensor, batch: Batch, config: TrainConfig) -> Tensor:
    """Mean of squared latent errors [B, C, F, h, w], or pseudo-Huber, under `edit_weight`.

    Each clip counts alike, whatever the size of its edit.
    """
    weight = edit_weight(batch, config)
    if config.channel_weights:
        channels = squared.new_tensor(config.channel_weights).view(1, -1, 1, 1, 1)
        squared = squared * (channels / channels.mean())
    if c := config.pseudo_huber:
        squared = (squared.mean(1, keepdim=True) + c * c).sqrt() - c
    return weighted_mean(squared, weight)


@torch.no_grad()
def inside_outside(x0_error: Tensor, batch: Batch) -> dict[str, float]:
    """Mean squared error of the clean latent inside and outside the edit, for the log."""
    inside = batch.mask.expand_as(x0_error)
    return {
        "inside": float((x0_error * inside).sum() / inside.sum().clamp(min=1.0)),
        "outside": float((x0_error * (1 - inside)).sum() / (1 - inside).sum().clamp(min=1.0)),
    }


# (noisy [B, C, F, h, w], timestep [B, F]) -> velocity like noisy
Push = Callable[[Tensor, Tensor], Tensor]


def guided_region(batch: Batch) -> Tensor:
    """Where a teacher may be guided without harm, [B, 1, F, h, w]: inside of a local edit.

    Outside of it, and where the whole picture changes, there is nothing to find, and an overshoot
    would only cost.
    """
    everywhere = batch.mask.mean((1, 2, 3, 4), keepdim=True) > 0.9
    return batch.mask * ~everywhere


def guidance_push(
    dit: CausalWanDiT, text_embeds: Tensor, no_words: Tensor, batch: Batch, guidance: float
) -> Push:
    """What guidance adds to a teacher's velocities, g (c - u), in the `guided_region`.

    A student that learns velocities with it needs no second call.

    Args:
        dit: a foundation model that has seen clips without words.
        text_embeds, no_words: [B, text_len, text_dim], its own.
        batch: clips of one noise level each.
    """
    where = guidance * guided_region(batch)

    @torch.no_grad()
    def push(noisy: Tensor, timestep: Tensor) -> Tensor:
        told, untold = (
            clip_velocity(dit, embeds, batch, noisy, timestep, None, noisy[:, :, :0])
            for embeds in (text_embeds, no_words)
        )
        return where * (told - untold)

    return push


def flow_loss(
    dit: CausalWanDiT,
    text_embeds: Tensor,
    batch: Batch,
    config: TrainConfig,
    phase: PhaseConfig,
    stream: StreamConfig,
    push: Push | None = None,
    probes: Probes | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Flow-matching loss v = noise - x0, heavier where the edit is.

    Args:
        push: is added to the velocity that is asked for.
        probes: add their losses.

    Returns:
        The loss, and for the log: mean squared error of the estimated clean latent inside and
        outside the mask, and what the probes lost.
    """
    B, _, F, h, w = batch.target.shape
    draws = Draws(batch)
    block = stream.num_frame_per_block
    blocks = 1 if config.stage == "foundation" else -(-F // block)
    t = draw_timesteps(config, stream.denoising_step_list, B, blocks, draws)
    timestep = t.repeat_interleave(-(-F // blocks), dim=1)[:, :F]  # [B, F]
    mask, context = stage_mask(config, F, block, h * w // 4, batch.target.device)

    def velocity(noisy: Tensor, timestep: Tensor, inner: list[Tensor] | None = None) -> Tensor:
        clean = batch.context[:, :, :context]
        if context:
            amount = config.context_noise * draws.uniform(B, 1, 1, 1, 1)
            clean = clean + amount * draws.normal(clean.shape)
        return clip_velocity(dit, text_embeds, batch, noisy, timestep, mask, clean, inner)

    def noised(x0: Tensor, sigma: Tensor) -> Tensor:
        return (1 - sigma) * x0 + sigma * draws.normal(x0.shape)

    sigma = (timestep / 1000.0).view(B, 1, F, 1, 1)
    start = batch.target
    if phase.on_policy and draws.coin(phase.on_policy):
        # Noise the model's own estimate from a noisier level: what the stream will feed back.
        with torch.no_grad():
            earlier = (timestep + 250.0).clamp(max=1000.0)
            above = (earlier / 1000.0).view(B, 1, F, 1, 1)
            seen = noised(batch.target, above)
            start = seen - above * velocity(seen, earlier)
    noisy = noised(start, sigma)
    wanted = (noisy - batch.target) / sigma
    if push is not None:
        wanted = wanted + push(noisy, timestep)
    inner: list[Tensor] = []
    velocity_error = (velocity(noisy, timestep, inner) - wanted).square()
    error = velocity_error
    if config.loss_weight != "flat":
        level = level_weight(config.loss_weight, timestep, config.timestep_shift)
        error = error * level.view(B, 1, F, 1, 1)
    if start is not batch.target:
        # Off the data the same mistake weighs 1 / sigma^2: bring it to the scale of the rest.
        error = error * sigma.square() * 4.0
    loss = edit_error(error, batch, config)
    log = inside_outside((velocity_error * sigma.square()).detach(), batch)
    if probes is not None:
        place, shape = probes.losses(inner, batch, edit_weight(batch, config))
        words = probes.colours_lost(text_embeds, batch.colours)
        loss = loss + config.place_weight * place + config.shape_weight * shape
        loss = loss + config.words_weight * words
        lost = {"place": place, "shape": shape, "words": words}
        log |= {name: float(value.detach()) for name, value in lost.items()}
    return loss, log
