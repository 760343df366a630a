"""A teacher's guidance, learnt into single calls, and who may be the teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import CODEC, CONFIG

from liveedit.distill.edits import Scene
from liveedit.distill.guidance import full_attention, guided
from liveedit.distill.latents import LatentScene, code_scene
from liveedit.distill.presets import PhaseConfig, TrainConfig
from liveedit.distill.stages import flow_loss, guidance_push
from liveedit.distill.train import FlowTrainer
from liveedit.errors import CheckpointError, UsageError
from liveedit.models.patch_codec import PatchCodec

PHASES = (PhaseConfig(steps=40, num_latent_frames=1, batch_size=3),)
FOUNDATION = replace(CONFIG, stage="foundation", drop_prompt=0.1, phases=PHASES)
CAUSAL = replace(CONFIG, stage="causal", guidance=2.0, phases=PHASES)


@pytest.fixture(scope="module")
def scenes(squares: list[Scene]) -> list[LatentScene]:
    torch.manual_seed(0)
    codec = PatchCodec(CODEC)
    return [code_scene(codec, scene) for scene in squares]


def taught(config: TrainConfig, out: Path, scenes: list[LatentScene], steps: int = 3) -> Path:
    trainer = FlowTrainer(config, out)
    trainer.scenes = scenes
    for _ in range(steps):
        trainer.train_step()
    trainer.save()
    return trainer.path


@pytest.fixture(scope="module")
def teacher(scenes: list[LatentScene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(FOUNDATION, tmp_path_factory.mktemp("teacher"), scenes)


def guided_trainer(teacher: Path, out: Path, scenes: list[LatentScene]) -> FlowTrainer:
    trainer = FlowTrainer(CAUSAL, out, teacher)
    trainer.scenes = scenes
    trainer.start_from(teacher)
    return trainer


@torch.no_grad()
def test_push_is_guidance_inside_of_the_edit(
    teacher: Path, scenes: list[LatentScene], tmp_path: Path
) -> None:
    trainer = guided_trainer(teacher, tmp_path, scenes)
    assert trainer.teacher is not None
    editor = trainer.teacher.editor
    (batch,) = trainer.draw()
    batch.frame_positions.copy_(torch.arange(1))
    batch.mask[0] = 1.0  # the whole picture
    embeds = editor.embed(trainer.tokenizer, batch.prompts)
    no_words = editor.embed(trainer.tokenizer, [""] * 3)
    noisy = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([1000.0, 750.0, 20.0])
    told = full_attention(editor.dit, embeds, batch.source)
    both = guided(told, full_attention(editor.dit, no_words, batch.source), 2.0)
    wanted = batch.mask * (both(noisy, timestep) - told(noisy, timestep))
    push = guidance_push(editor.dit, embeds, no_words, batch, 2.0)(noisy, timestep[:, None])
    assert torch.count_nonzero(push[0]) == 0
    assert wanted[1:].abs().max() > 0
    torch.testing.assert_close(push[1:], wanted[1:])


def test_student_learns_the_pushed_velocity(
    teacher: Path, scenes: list[LatentScene], tmp_path: Path
) -> None:
    """Of the same draws, the loss against targets with a push changes by what the push says."""
    trainer = guided_trainer(teacher, tmp_path, scenes)
    (batch,) = trainer.draw()
    plain = replace(CAUSAL, edit_weight=0.0, channel_weights=())
    embeds = trainer.editor.embed(trainer.tokenizer, batch.prompts)

    def loss(offset: float) -> float:
        def push(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return torch.full_like(noisy, offset)

        dit, phase, stream = trainer.editor.dit, PHASES[0], trainer.stream
        return float(flow_loss(dit, embeds, batch, plain, phase, stream, push)[0].detach())

    # A mean of squares: its second difference by a constant offset d is 2 d^2.
    assert loss(1.0) - 2 * loss(0.0) + loss(-1.0) == pytest.approx(2.0, rel=1e-3)
    assert trainer.train_step()["loss"] > 0


def test_resumed_run_keeps_its_teacher(
    teacher: Path, scenes: list[LatentScene], tmp_path: Path
) -> None:
    first = guided_trainer(teacher, tmp_path / "run", scenes)
    first.train_step()
    first.save()
    FlowTrainer(CAUSAL, tmp_path / "run", teacher).resume()
    other = taught(FOUNDATION, tmp_path / "other", scenes, steps=1)
    with pytest.raises(CheckpointError, match="was trained with another --teacher"):
        FlowTrainer(CAUSAL, tmp_path / "run", other).resume()


def test_who_cannot_guide_is_named(
    teacher: Path, scenes: list[LatentScene], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="guidance 2 of stage causal needs --teacher"):
        FlowTrainer(CAUSAL, tmp_path / "a")
    with pytest.raises(UsageError, match="guidance 0 of stage causal asks for no --teacher"):
        FlowTrainer(replace(CAUSAL, guidance=0.0), tmp_path / "b", teacher)
    wordy = taught(replace(FOUNDATION, drop_prompt=0.0), tmp_path / "wordy", scenes, steps=0)
    with pytest.raises(UsageError, match=r"cannot guide: .* a foundation run with 0"):
        FlowTrainer(CAUSAL, tmp_path / "c", wordy)
    with pytest.raises(UsageError, match="guidance is of stage causal, this is foundation"):
        replace(CAUSAL, stage="foundation")
