"""Stage 3: each of its two learners learns, a resumed run is the same, wrong starts are named."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CODEC, CONFIG

from liveedit import config as config_module
from liveedit.distill import train
from liveedit.distill.dmd_trainer import DmdTrainer
from liveedit.distill.edits import Scene
from liveedit.distill.latents import LatentScene, code_scene
from liveedit.distill.presets import DmdConfig, PhaseConfig, Stage, TrainConfig
from liveedit.distill.stages import Draws, guided_region
from liveedit.errors import CheckpointError, UsageError
from liveedit.models.patch_codec import PatchCodec

Start = Callable[..., DmdTrainer]

FLOW = replace(CONFIG, phases=(PhaseConfig(steps=60, num_latent_frames=2, batch_size=3),))
DMD = replace(
    CONFIG,
    stage="dmd",
    lr=2e-3,
    phases=(PhaseConfig(steps=40, num_latent_frames=2, batch_size=2),),
    dmd=DmdConfig(critic_steps=2, critic_lr=4e-3, context_sigma=0.005, ema_start=2),
)


@pytest.fixture(scope="module")
def scenes(squares: list[Scene]) -> list[LatentScene]:
    torch.manual_seed(0)
    codec = PatchCodec(CODEC)
    return [code_scene(codec, scene) for scene in squares]


@pytest.fixture(scope="module")
def teachers(
    scenes: list[LatentScene], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Short runs of the first two stages: foundation from nothing, causal from it."""
    root = tmp_path_factory.mktemp("stages")
    paths: dict[str, Path] = {}
    for stage in ("foundation", "causal"):
        trainer = train.FlowTrainer(replace(FLOW, stage=stage), root / stage)
        trainer.scenes = scenes
        if paths:
            trainer.start_from(paths["foundation"])
        for _ in range(25):
            trainer.train_step()
        trainer.save()
        paths[stage] = trainer.path
    return paths


@pytest.fixture
def start(teachers: dict[str, Path], scenes: list[LatentScene], tmp_path: Path) -> Start:
    def make(config: TrainConfig = DMD, name: str = "run") -> DmdTrainer:
        trainer = DmdTrainer(config, tmp_path / name, teachers["foundation"])
        trainer.scenes = scenes
        trainer.start_from(teachers["causal"])
        return trainer

    return make


def test_student_and_critic_take_turns(start: Start) -> None:
    trainer = start()
    before = {n: p.clone() for n, p in trainer.editor.state_dict().items()}
    teacher = {n: p.clone() for n, p in trainer.teacher.editor.state_dict().items()}
    rows = [trainer.train_step() for _ in range(4)]
    assert ["dmd" in row for row in rows] == [True, False, True, False]
    assert all(np.isfinite(v) for row in rows for v in row.values())
    assert (trainer.learner.updates, trainer.critic.updates) == (2, 4)
    assert any(not torch.equal(p, before[n]) for n, p in trainer.editor.state_dict().items())
    assert all(torch.equal(p, teacher[n]) for n, p in trainer.teacher.editor.state_dict().items())


def test_critic_learns_the_students_samples(start: Start) -> None:
    trainer = start(replace(DMD, dmd=replace(DMD.dmd, critic_warmup=1000)))
    batches = [trainer.draw()[0] for _ in range(6)]  # one batch's noise says too little

    def loss() -> float:  # the same noise at every call
        with torch.no_grad():
            return sum(float(trainer.critic_loss(batch, Draws(batch))) for batch in batches)

    before = loss()
    for _ in range(24):
        trainer.train_step()
    assert loss() < 0.97 * before
    assert trainer.learner.updates == 0


def test_regression_brings_the_rollout_to_the_target(start: Start) -> None:
    dmd = replace(DMD.dmd, critic_steps=1, regression=1.0, weight=0.05, exit_step="last")
    trainer = start(replace(DMD, dmd=dmd))
    (batch,) = trainer.draw()

    def error() -> float:  # of the same noise at every call
        with torch.no_grad():
            return trainer.student_loss(batch, Draws(batch))[1]["regression"]

    before = error()
    for _ in range(20):
        trainer.train_step()
    assert error() < 0.985 * before


def test_resumed_run_is_bit_exact(start: Start) -> None:
    straight = start(name="a")
    for _ in range(5):
        straight.train_step()
    first = start(name="b")
    for _ in range(3):
        first.train_step()
    first.save()
    second = start(name="b")
    second.resume()
    for _ in range(2):
        second.train_step()
    for mine, other in ((straight.learner, second.learner), (straight.critic, second.critic)):
        for name, value in mine.module.state_dict().items():
            assert torch.equal(value, other.module.state_dict()[name]), name
    for name, value in straight.learner.ema.state.items():
        assert torch.equal(value, second.learner.ema.state[name]), name


@pytest.mark.parametrize("exit_step", ["shared", "per_block", "last"])
@pytest.mark.parametrize("rollout_steps", ["stream", "warped"])
def test_named_options_of_the_rollout(start: Start, exit_step: str, rollout_steps: str) -> None:
    dmd = replace(
        DMD.dmd,
        exit_step=exit_step,
        rollout_steps=rollout_steps,
        guidance=3.0,
        regression=0.5,
        flow=0.5,
    )
    trainer = start(replace(DMD, train_text=False, dmd=dmd))
    text = {n: p.clone() for n, p in trainer.editor.text.state_dict().items()}
    row = trainer.train_step()
    assert {"dmd", "regression", "flow", "critic_loss", "inside"} <= set(row)
    assert all(torch.equal(p, text[n]) for n, p in trainer.editor.text.state_dict().items())


def test_a_causal_teacher_sees_the_students_own_past(
    teachers: dict[str, Path], start: Start
) -> None:
    trainer = start()
    causal = DmdTrainer(DMD, trainer.out.parent / "other", teachers["causal"])
    causal.scenes = trainer.scenes
    (batch,) = causal.draw()
    draws = Draws(batch)
    with torch.no_grad():
        generated = causal.rollout(batch, draws)
        score = causal._real(batch, generated)
        t = torch.full((2,), 500.0)
        noisy = draws.normal(generated.shape)
        base = score(noisy, t)
        later = noisy.clone()
        later[:, :, 1] += 1
        assert torch.equal(score(later, t)[:, :, 0], base[:, :, 0])  # no look ahead
        bidirectional = trainer._real(batch, generated)
        assert not torch.equal(bidirectional(later, t)[:, :, 0], bidirectional(noisy, t)[:, :, 0])


def test_a_guide_of_the_edit_leaves_the_background_alone(start: Start) -> None:
    trainer = start()
    (batch,) = trainer.draw()
    inside = guided_region(batch)
    noisy, t = torch.randn(batch.target.shape), torch.full((2,), 500.0)
    scores = {}
    for g, guide in ((0.0, "edit"), (2.0, "everywhere"), (2.0, "edit")):
        dmd = replace(DMD.dmd, guidance=g, guide=guide)
        trainer.config = replace(DMD, dmd=dmd)
        with torch.no_grad():
            scores[g, guide] = trainer._real(batch, batch.source)(noisy, t)
    plain, everywhere, edit = scores.values()
    assert 0 < float(inside.mean()) < 1
    assert not torch.allclose(plain, everywhere)
    torch.testing.assert_close(edit, plain + inside * (everywhere - plain))


def test_wrong_starts_are_named(
    teachers: dict[str, Path], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start()
    trainer.save()
    with pytest.raises(CheckpointError, match=r"--init .* is of stage foundation, and must be"):
        trainer.start_from(teachers["foundation"])
    with pytest.raises(CheckpointError, match=r"--teacher .* is of stage dmd, and must be"):
        DmdTrainer(DMD, tmp_path / "x", trainer.path)
    causal = train.FlowTrainer(replace(CONFIG, stage="causal"), tmp_path / "y")
    with pytest.raises(CheckpointError, match=r"--init .* is of stage dmd"):
        causal.start_from(trainer.path)
    other = DmdTrainer(DMD, trainer.out, teachers["causal"])
    with pytest.raises(CheckpointError, match="was trained with another --teacher"):
        other.resume()
    phases = (PhaseConfig(steps=1, num_latent_frames=2, batch_size=1),)
    model, stream = config_module.MODELS["mini"]
    stream = replace(stream, num_frame_per_block=3, sink_size=0)
    monkeypatch.setitem(config_module.MODELS, "mini", (model, stream))
    with pytest.raises(UsageError, match="num_latent_frames 2 is not a multiple"):
        DmdTrainer(replace(DMD, phases=phases), tmp_path / "z", teachers["foundation"])


def test_command_line_asks_for_both_checkpoints(tmp_path: Path) -> None:
    def new(stage: Stage, *words: str) -> object:
        parser = argparse.ArgumentParser()
        train.add_arguments(parser, stage)
        options = parser.parse_args([*words, "--scenes", "s", "--out", str(tmp_path / "run")])
        return train.new_trainer(train.read_config(options), options)

    with pytest.raises(UsageError, match="needs --teacher"):
        new("dmd")
    with pytest.raises(SystemExit):
        new("foundation", "--teacher", "x")
