"""Two processes train as one: with copies, with shards, in parts; and go on where the other was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CONFIG as PLAIN
from small_runs import random_scenes, start_two

from liveedit.distill.dmd_trainer import DmdTrainer
from liveedit.distill.parallel import local
from liveedit.distill.presets import DmdConfig, PhaseConfig, TrainConfig
from liveedit.distill.train import FlowTrainer
from liveedit.errors import UsageError

STEPS = 8  # past the change of phase
CONFIG = replace(PLAIN, place_weight=0.5, shape_weight=0.2, words_weight=0.2)
SHARD = replace(CONFIG, parallel="shard", gradient_checkpointing=True)
CONFIGS = {
    "replicate": CONFIG,
    "replicate_parts": replace(CONFIG, micro_batch_size=1),
    "shard": SHARD,
    "shard_parts": replace(SHARD, micro_batch_size=1),
}


def steps(config: TrainConfig, out: Path, scenes: Path, count: int) -> FlowTrainer:
    trainer = FlowTrainer(config, out)
    if trainer.path.exists():
        trainer.resume()
    trainer.open_scenes(scenes)
    for _ in range(count):
        trainer.train_step()
    trainer.save()
    return trainer


DMD = replace(
    PLAIN,
    stage="dmd",
    lr=1e-3,
    train_text=False,
    phases=(PhaseConfig(steps=4, num_latent_frames=3, batch_size=4),),
    dmd=DmdConfig(critic_steps=2, critic_lr=1e-3, guidance=2.0, regression=1.0),
)


def distil(config: TrainConfig, folder: Path, name: str) -> None:
    """Two steps of the third stage, the first of which trains the student."""
    teacher = FlowTrainer(replace(config, stage="foundation"), folder / f"{name}-teacher")
    with torch.no_grad():  # an untrained head predicts nothing
        local(teacher.editor.dit.head.head.weight).fill_(0.02)
    teacher.learner.restart_mean()
    teacher.save()
    teacher.processes.gather(None)  # it is written by the first process
    trainer = DmdTrainer(config, folder / name, teacher.path)
    trainer.open_scenes(folder / "scenes")
    for _ in range(2):
        trainer.train_step()
    trainer.save()


def run_all(folder: Path) -> None:
    """In each of two processes."""
    sharded = replace(DMD, parallel="shard", gradient_checkpointing=True, micro_batch_size=1)
    distil(sharded, folder, "dmd-shard")
    for name, config in CONFIGS.items():
        steps(config, folder / name, folder / "scenes", STEPS)
    steps(SHARD, folder / "half", folder / "scenes", STEPS // 2)
    steps(replace(SHARD, precision="bf16"), folder / "bf16", folder / "scenes", STEPS)
    resumed = FlowTrainer(SHARD, folder / "shard")
    resumed.resume()
    (folder / f"again{resumed.processes.rank}").mkdir()
    saved = resumed.state()
    if resumed.processes.first:
        torch.save(saved, folder / "again.pt")
    with pytest.raises(UsageError, match="does not divide into parts"):
        FlowTrainer(replace(CONFIG, micro_batch_size=4), folder / "wrong")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made, and one alone."""
    folder = tmp_path_factory.mktemp("runs")
    random_scenes(folder / "scenes")
    processes = start_two(run_all, folder)
    steps(CONFIG, folder / "alone", folder / "scenes", STEPS)
    distil(DMD, folder, "dmd-alone")
    alone = replace(CONFIG, micro_batch_size=1, gradient_checkpointing=True)
    steps(alone, folder / "alone_parts", folder / "scenes", STEPS)
    for process in processes:
        process.join(timeout=240)
    assert [p.exitcode for p in processes] == [0, 0]
    return folder


def tensors(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every floating-point tensor of a checkpoint by its path."""
    if isinstance(state, torch.Tensor):
        return {prefix: state} if state.is_floating_point() else {}
    items = state.items() if isinstance(state, dict) else ()
    return {k: v for name, value in items for k, v in tensors(value, f"{prefix}/{name}").items()}


def load(path: Path) -> dict[str, torch.Tensor]:
    return tensors(torch.load(path, weights_only=True))


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of weights, means and moments, against each tensor's size."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max() / (a[n].abs().max() + 1e-3)) for n in a)


@pytest.mark.parametrize("name", ["alone_parts", *CONFIGS])
def test_any_division_trains_like_one_process(name: str, runs: Path) -> None:
    alone, other = load(runs / "alone" / "latest.pt"), load(runs / name / "latest.pt")
    assert len(alone) > 100
    assert alone["/probes/weights/place.weight"].abs().max() > 0
    assert alone["/probes/weights/shape.weight"].abs().max() > 0
    assert alone["/probes/weights/words.weight"].abs().max() > 0
    assert difference(alone, other) < 2e-3
    assert difference(load(runs / "bf16" / "latest.pt"), other) > 2e-3  # the bound means something


def test_the_third_stage_trains_alike_in_shards(runs: Path) -> None:
    alone, shards = (load(runs / f"dmd-{name}" / "latest.pt") for name in ("alone", "shard"))
    assert any(name.startswith("/critic/weights") for name in alone)
    assert difference(alone, shards) < 2e-3
    teacher = load(runs / "dmd-alone-teacher" / "latest.pt")
    weight = "/dit/blocks.0.ffn.0.weight"
    assert not torch.equal(shards["/critic/weights" + weight[4:]], teacher[weight])


def test_shards_resume_bit_exact(runs: Path) -> None:
    saved, again = load(runs / "shard" / "latest.pt"), load(runs / "again.pt")
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_one_process_goes_on_where_two_were(runs: Path) -> None:
    trainer = steps(CONFIG, runs / "half", runs / "scenes", STEPS - STEPS // 2)
    assert trainer.step == STEPS
    assert difference(load(runs / "alone" / "latest.pt"), load(trainer.path)) < 2e-3


def test_bf16_keeps_fp32_masters(runs: Path) -> None:
    state = load(runs / "bf16" / "latest.pt")
    assert {t.dtype for t in state.values()} == {torch.float32}
    weights = state["/dit/blocks.0.ffn.0.weight"]
    assert not torch.equal(weights, weights.bfloat16().float())
