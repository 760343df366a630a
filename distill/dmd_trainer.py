"""The third stage: a few-step student learns on its own rollouts from a teacher and a critic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liveedit.config import StreamConfig
from liveedit.distill.batches import Batch
from liveedit.distill.dmd import (
    dmd_gradient,
    dmd_loss,
    draw_timesteps,
    flow_matching,
)
from liveedit.distill.editor import by_part, joined, load_mean_weights, weights_of
from liveedit.distill.guidance import Velocity, guided
from liveedit.distill.presets import TrainConfig
from liveedit.distill.rollout import stream_edit
from liveedit.distill.stages import (
    Draws,
    clip_velocity,
    edit_error,
    flow_loss,
    guided_region,
    inside_outside,
    stage_mask,
)
from liveedit.distill.teacher import Teacher
from liveedit.distill.trainer import Trainer
from liveedit.errors import UsageError
from liveedit.models.dit import CausalWanDiT


def clip_score(
    dit: CausalWanDiT,
    text_embeds: Tensor,
    batch: Batch,
    taught: TrainConfig,
    stream: StreamConfig,
    clean: Tensor,
) -> Velocity:
    """A network's velocities of whole clips, attending as in the stage that it was ``taught`` in.

    Args:
        clean: [B, C, F, h, w] what a teacher-forced network sees of earlier blocks.
    """
    F, h, w = batch.target.shape[2:]
    tokens = h * w // 4
    mask, context = stage_mask(taught, F, stream.num_frame_per_block, tokens, clean.device)

    def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
        frames = timestep.view(-1, 1).expand(-1, F)
        past = clean[:, :, :context].detach()
        return clip_velocity(dit, text_embeds, batch, noisy, frames, mask, past)

    return velocity


class DmdTrainer(Trainer):
    """Student, critic and frozen teacher.

    Args:
        teacher: checkpoint of a foundation run, or of a causal one; the critic starts from it too.

    Raises:
        CheckpointError: the teacher is of another stage or of other networks.
        UsageError: clips are not whole blocks.
    """

    def __init__(self, config: TrainConfig, out: Path, teacher: Path) -> None:
        super().__init__(config, out)
        block = self.stream.num_frame_per_block
        for phase in config.phases:
            if phase.num_latent_frames % block:
                raise UsageError(
                    f"num_latent_frames {phase.num_latent_frames} is not a multiple of the "
                    f"stream's block of {block}, which rollouts need"
                )
        dmd = config.dmd
        self.editor = self.new_editor()
        self.editor.train_text(config.train_text)
        self.teacher = Teacher(self.new_editor(), teacher)
        self.critic_dit = self.new_editor().dit
        self.critic_dit.load_state_dict(self.teacher.editor.dit.state_dict())
        self.learner = self.new_learner(self.editor, config.lr, config.ema)
        self.critic = self.new_learner(self.critic_dit, dmd.critic_lr)
        self.rollout_stream = replace(
            self.stream,
            warp_denoising_step=self.stream.warp_denoising_step or dmd.rollout_steps == "warped",
        )

    def start_from(self, path: Path) -> None:
        """Begin with the mean weights of a causal run, or of an earlier run of this stage."""
        load_mean_weights(self.editor, path, stages=("causal", "dmd"), option="--init")
        self.learner.restart_mean()

    def compile(self) -> None:
        """Fuse the blocks of the two score networks; the rollout's shapes change block by block."""
        for dit in (self.teacher.editor.dit, self.critic_dit):
            for block in dit.blocks:
                block.compile(dynamic=False)

    # State.

    def state(self) -> dict[str, Any]:
        """`dit`, `text` and `ema` alone make an editor."""
        own = self.learner.state()
        weights, mean = own.pop("weights"), own.pop("ema")
        return {
            **super().state(),
            **own,
            **by_part(weights),
            "ema": by_part(mean),
            "critic": self.critic.state(),
            **self.teacher.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.teacher.check(state, self.path)
        self.learner.load({**state, "weights": weights_of(state), "ema": joined(state["ema"])})
        self.critic.load(state["critic"])
        super().load(state)

    # Steps.

    def train_step(self) -> dict[str, float]:
        """One update of the critic, and before it, at every ``critic_steps``-th, of the student.

        Raises:
            LiveEditError: a loss or its gradient is not finite; the last save is intact.
        """
        dmd, rate = self.config.dmd, self.learning_rate()
        parts = self.draw()

        def where() -> str:
            return self.where(parts)

        draws = [Draws(part) for part in parts]
        figures: dict[str, float] = {}
        if self.step % dmd.critic_steps == 0 and self.step >= dmd.critic_warmup:
            figures = self._teach_student(parts, draws, rate)
        losses = []
        for part, drawn in zip(parts, draws, strict=True):
            loss = self.critic_loss(part, drawn)
            (loss / len(parts)).backward()
            losses.append(loss)
        figures["critic_loss"] = self.settle(parts, losses, [{}] * len(parts))["loss"]
        share = rate / self.config.lr
        figures["critic_grad_norm"] = self.critic.update(
            dmd.critic_lr * share, lambda: self.where(parts)
        )
        self.step += 1
        return {**figures, "lr": rate}

    def _teach_student(
        self, parts: list[Batch], draws: list[Draws], rate: float
    ) -> dict[str, float]:
        losses, logs = [], []
        for part, drawn in zip(parts, draws, strict=True):
            loss, log = self.student_loss(part, drawn)
            (loss / len(parts)).backward()
            losses.append(loss)
            logs.append(log)
        figures = self.settle(parts, losses, logs)
        norm = self.learner.update(rate, lambda: self.where(parts))
        if self.learner.updates < self.config.dmd.ema_start:
            self.learner.restart_mean()
        return {**figures, "grad_norm": norm}

    def rollout(self, batch: Batch, draws: Draws) -> Tensor:
        """The student's own clips, with a gradient where there is one: like ``batch.source``."""
        steps, block = len(self.stream.denoising_step_list), self.stream.num_frame_per_block
        blocks = batch.source.shape[2] // block
        exits = {
            "shared": lambda: [draws.choice(steps)] * blocks,
            "per_block": lambda: [draws.choice(steps) for _ in range(blocks)],
            "last": lambda: [steps - 1] * blocks,
        }[self.config.dmd.exit_step]()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_text):
            embeds = self.editor.embed(self.tokenizer, batch.prompts)
        return stream_edit(
            self.editor.dit,
            embeds,
            batch.source,
            self.rollout_stream,
            lambda _block, _draw, shape: draws.normal(shape),
            exits=exits,
            positions=batch.frame_positions[::block].tolist(),
            context_sigma=self.config.dmd.context_sigma,
        )

    def student_loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """The weighted losses of one rollout, and figures for the log."""
        dmd = self.config.dmd
        generated = self.rollout(batch, draws)
        loss = generated.new_zeros((), dtype=torch.float64)
        log: dict[str, float] = {}
        if dmd.weight:
            timestep = draw_timesteps(dmd, len(generated), draws)
            noise = draws.normal(generated.shape)
            gradient = dmd_gradient(
                generated,
                noise,
                timestep,
                self._real(batch, generated),
                self._fake(batch, generated),
            )
            loss = loss + dmd.weight * dmd_loss(generated, gradient)
            log["dmd"] = float(gradient.abs().mean())
        error = (generated - batch.target).square()
        if dmd.regression:
            regression = edit_error(error, batch, self.config)
            loss = loss + dmd.regression * regression
            log["regression"] = float(regression.detach())
        if dmd.flow:
            embeds = self.editor.embed(self.tokenizer, batch.prompts)
            config = replace(self.config, stage="causal")
            phase = self.config.phase_at(self.step)
            flow, _ = flow_loss(self.editor.dit, embeds, batch, config, phase, self.stream)
            loss = loss + dmd.flow * flow
            log["flow"] = float(flow.detach())
        return loss, {**log, **inside_outside(error.detach(), batch)}

    def critic_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """Of a rollout of its own."""
        with torch.no_grad():
            generated = self.rollout(batch, draws)
        timestep = draw_timesteps(self.config.dmd, len(generated), draws)
        noise = draws.normal(generated.shape)
        return flow_matching(self._fake(batch, generated), generated, noise, timestep)

    def _score(
        self, dit: CausalWanDiT, prompts: list[str], batch: Batch, generated: Tensor
    ) -> Velocity:
        with torch.no_grad():
            embeds = self.teacher.editor.embed(self.tokenizer, prompts)
        return clip_score(dit, embeds, batch, self.teacher.taught, self.stream, generated)

    def _real(self, batch: Batch, generated: Tensor) -> Velocity:
        dmd = self.config.dmd
        dit = self.teacher.editor.dit
        real = self._score(dit, batch.prompts, batch, generated)
        if not dmd.guidance:
            return real
        negative = [dmd.negative_prompt] * len(batch.prompts)
        where = guided_region(batch) if dmd.guide == "edit" else 1.0
        return guided(real, self._score(dit, negative, batch, generated), dmd.guidance, where)

    def _fake(self, batch: Batch, generated: Tensor) -> Velocity:
        return self._score(self.critic_dit, batch.prompts, batch, generated)
