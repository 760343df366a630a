"""Training: the loss falls, a resumed run is the same run, bad inputs are named."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CODEC, MODEL, STREAM

from liveedit.config import from_dict, to_dict
from liveedit.distill import train
from liveedit.distill.batches import crop_start, draw_batch
from liveedit.distill.edits import Scene, SceneConfig, make_scene
from liveedit.distill.latents import (
    ALL_TURNS,
    LatentScene,
    code_scene,
    fill_cache,
    latent_mask,
    load_scene,
    save_scene,
    scene_names,
    to_tensor,
)
from liveedit.distill.loop import run
from liveedit.distill.parallel import Processes
from liveedit.distill.presets import PRESETS, PhaseConfig, TrainConfig, preset
from liveedit.distill.rollout import from_generator, stream_edit
from liveedit.distill.scenes import Footage
from liveedit.distill.stages import flow_loss, stage_mask
from liveedit.errors import CheckpointError, LiveEditError, UsageError
from liveedit.models.dit import CausalWanDiT
from liveedit.models.patch_codec import PatchCodec

CONFIG = TrainConfig(
    model="mini",
    lr=8e-3,
    warmup_steps=3,
    save_every=4,
    phases=(
        PhaseConfig(steps=6, num_latent_frames=1, batch_size=3, crop_columns=2),
        PhaseConfig(steps=200, num_latent_frames=2, batch_size=3, on_policy=0.3),
    ),
)


@pytest.fixture
def scenes(squares: list[Scene]) -> list[LatentScene]:
    torch.manual_seed(0)
    codec = PatchCodec(CODEC)
    return [code_scene(codec, scene) for scene in squares]


def test_scenes_survive_the_disk(scenes: list[LatentScene], tmp_path: Path) -> None:
    save_scene(tmp_path / "0.npz", scenes[0])
    again = load_scene(tmp_path / "0.npz")
    assert again.edits == scenes[0].edits
    for name in ("source", "targets", "masks"):
        assert np.array_equal(getattr(again, name), getattr(scenes[0], name))
    assert [p.name for p in tmp_path.iterdir()] == ["0.npz"]


def test_scenes_are_coded_from_all_sides(footage: Footage, tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec, config = PatchCodec(CODEC), SceneConfig(num_frames=4, height_px=48, width_px=64)
    assert list(fill_cache(tmp_path, codec, footage, config, range(2, 4))) == [2, 3]
    plain = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(plain) == ["0000002.npz", "0000003.npz"]
    assert list(fill_cache(tmp_path, codec, footage, config, range(2, 4), ALL_TURNS)) == [2, 3]
    assert len(list(tmp_path.iterdir())) == 8
    assert all((tmp_path / name).read_bytes() == data for name, data in plain.items())

    scene = make_scene(2, footage, config)
    steps = {"-backwards": (-1, 1), "-mirrored": (1, -1), "-mirrored-backwards": (-1, -1)}
    for suffix, (frames, columns) in steps.items():
        coded = load_scene(tmp_path / f"0000002{suffix}.npz")
        assert [e["instruction"] for e in coded.edits] == [e.instruction for e in scene.edits]
        for i, edit in enumerate(scene.edits):
            target = edit.target[::frames, :, ::columns].copy()
            expected = codec.encode(to_tensor(target))[0].detach().half().numpy()
            assert np.array_equal(coded.targets[i], expected)
            assert np.array_equal(coded.masks[i], latent_mask(edit.mask)[..., ::columns])


def test_empty_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no coded scenes"):
        scene_names(tmp_path)


def test_latent_mask_covers_every_pixel() -> None:
    mask = np.zeros((6, 16, 24), np.uint8)
    mask[5, 15, 0] = 9
    out = latent_mask(mask)
    assert out.shape == (2, 2, 3)
    assert out[1, 1, 0] == 9
    assert out.sum() == 9


def test_crop_holds_the_edit() -> None:
    mask = np.zeros((1, 4, 28), np.float32)
    mask[..., 19] = 1
    for seed in range(50):
        left = crop_start(mask, 16, np.random.default_rng(seed))
        assert left % 2 == 0
        assert left <= 19 < left + 16


def flow_trainer(
    config: TrainConfig, out: Path, scenes: Sequence[LatentScene] = ()
) -> train.FlowTrainer:
    trainer = train.FlowTrainer(config, out)
    trainer.scenes = scenes
    return trainer


def test_loss_falls(scenes: list[LatentScene], tmp_path: Path) -> None:
    phases = [to_dict(PhaseConfig(steps=80, num_latent_frames=2, batch_size=4))]
    config = from_dict(TrainConfig, {**to_dict(CONFIG), "phases": phases})
    trainer = flow_trainer(config, tmp_path, scenes)
    losses = [trainer.train_step()["loss"] for _ in range(80)]
    assert np.mean(losses[-20:]) < 0.85 * np.mean(losses[:10])


def test_resumed_run_is_bit_exact(scenes: list[LatentScene], tmp_path: Path) -> None:
    straight = flow_trainer(CONFIG, tmp_path / "a", scenes)
    for _ in range(9):
        straight.train_step()
    first = flow_trainer(CONFIG, tmp_path / "b", scenes)
    for _ in range(4):
        first.train_step()
    first.save()
    second = flow_trainer(CONFIG, tmp_path / "b", scenes)
    second.resume()
    for _ in range(5):
        second.train_step()
    assert second.step == straight.step == 9
    assert straight.learner.ema is not None
    assert second.learner.ema is not None
    for name, value in straight.editor.state_dict().items():
        assert torch.equal(value, second.editor.state_dict()[name]), name
        assert torch.equal(straight.learner.ema.state[name], second.learner.ema.state[name]), name


def test_run_writes_metrics_and_a_loadable_editor(
    scenes: list[LatentScene], tmp_path: Path
) -> None:
    for i, scene in enumerate(scenes):
        (tmp_path / "cache").mkdir(exist_ok=True)
        save_scene(tmp_path / "cache" / f"{i}.npz", scene)
    short = from_dict(TrainConfig, {**to_dict(CONFIG), "phases": [to_dict(CONFIG.phases[0])]})
    trainer = flow_trainer(short, tmp_path / "run")
    trainer.open_scenes(tmp_path / "cache")
    run(trainer, max_seconds=1e9, log_every=3)
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [3, 6]
    state = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    CausalWanDiT(MODEL.dit).load_state_dict(state["ema"]["dit"])
    assert (tmp_path / "run" / "tokenizer.json").exists()


def test_nan_stops_with_the_last_state_kept(scenes: list[LatentScene], tmp_path: Path) -> None:
    trainer = flow_trainer(CONFIG, tmp_path, scenes)
    trainer.save()
    before = trainer.path.read_bytes()
    with torch.no_grad():
        trainer.editor.dit.head.head.bias.fill_(float("nan"))
    with pytest.raises(
        LiveEditError,
        match=r"nan at step 0, in clips of unnamed scene \('make the",
    ):
        trainer.train_step()
    assert trainer.path.read_bytes() == before


def test_wrong_stage_and_broken_file_are_named(tmp_path: Path) -> None:
    flow_trainer(CONFIG, tmp_path).save()
    other = from_dict(TrainConfig, {**to_dict(CONFIG), "stage": "foundation"})
    with pytest.raises(CheckpointError, match="is a causal run, this is foundation"):
        flow_trainer(other, tmp_path).resume()
    (tmp_path / "latest.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        flow_trainer(CONFIG, tmp_path).resume()


def test_presets_are_known_by_name() -> None:
    for name in PRESETS:
        assert from_dict(TrainConfig, to_dict(preset(name))) == preset(name)
    with pytest.raises(UsageError, match="no training preset"):
        preset("huge")


@pytest.mark.parametrize("stage", ["foundation", "causal"])
@pytest.mark.parametrize("forcing", ["released", "teacher_forcing"])
def test_every_stage_has_a_finite_loss_with_gradient(
    stage: str, forcing: str, scenes: list[LatentScene]
) -> None:
    config = from_dict(TrainConfig, {**to_dict(CONFIG), "stage": stage, "forcing": forcing})
    dit = CausalWanDiT(MODEL.dit)
    batch = draw_batch(scenes, np.random.default_rng(0), config, config.phases[1], 1)
    embeds = torch.randn(3, 12, 16)
    loss, log = flow_loss(dit, embeds, batch, config, config.phases[1], STREAM)
    loss.backward()
    assert torch.isfinite(loss)
    assert log["inside"] > 0
    assert dit.patch_embedding.weight.grad is not None


def test_some_context_has_faded_towards_the_source(scenes: list[LatentScene]) -> None:
    """Its edit is a share of the wanted one, drawn for each clip; the target is untouched."""
    config = replace(CONFIG, other_context=0.0, faded_context=0.5)
    phase = PhaseConfig(steps=1, num_latent_frames=2, batch_size=64)
    batch = draw_batch(scenes, np.random.default_rng(0), config, phase, 1)
    wanted, shown = (x - batch.source for x in (batch.target, batch.context))
    share = (shown * wanted).sum((1, 2, 3, 4)) / wanted.square().sum((1, 2, 3, 4))
    assert torch.allclose(shown, share.view(-1, 1, 1, 1, 1) * wanted, atol=2e-3)
    assert 0 <= float(share.min()) < 0.2
    whole = (share > 0.999).float().mean()
    assert 0.3 < float(whole) < 0.7, "half of the clips keep their context"


def test_some_clips_lose_their_words(scenes: list[LatentScene]) -> None:
    config = replace(CONFIG, drop_prompt=0.25)
    phase = PhaseConfig(steps=1, num_latent_frames=2, batch_size=200)
    prompts = draw_batch(scenes, np.random.default_rng(0), config, phase, 1).prompts
    assert 25 < prompts.count("") < 80


def test_shares_of_two_processes_make_the_whole_batch(scenes: list[LatentScene]) -> None:
    """Mean gradient of two halves equals the gradient of the whole."""
    phase = PhaseConfig(steps=1, num_latent_frames=2, batch_size=4, on_policy=1.0)
    batch = draw_batch(scenes, np.random.default_rng(0), CONFIG, phase, 1)
    torch.manual_seed(0)
    dit = CausalWanDiT(MODEL.dit)
    embeds = torch.randn(4, 12, 16)

    def gradient(rank: int, world: int) -> torch.Tensor:
        rows = embeds.chunk(world)[rank]
        loss, _ = flow_loss(dit, rows, batch.share(rank, world), CONFIG, phase, STREAM)
        return torch.autograd.grad(loss, dit.patch_embedding.weight)[0]

    whole = gradient(0, 1)
    halves = (gradient(0, 2) + gradient(1, 2)) / 2
    assert (whole - halves).abs().max() < 1e-5 * whole.abs().max()


def test_teacher_forcing_equals_the_stream_with_a_cache() -> None:
    """The network sees in training exactly what it sees in the stream."""
    torch.manual_seed(1)
    dit = CausalWanDiT(MODEL.dit).eval()
    source, embeds = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 12, 16)
    one_step = replace(STREAM, denoising_step_list=(1000.0,))
    with torch.no_grad():
        streamed = stream_edit(
            dit, embeds, source, one_step, from_generator(torch.Generator().manual_seed(3))
        )
        rng = torch.Generator().manual_seed(3)
        noise = torch.cat([torch.randn(1, 16, 1, 4, 4, generator=rng) for _ in range(2)], dim=2)
        mask, context = stage_mask(CONFIG, 2, 1, 4, torch.device("cpu"))
        clean = streamed[:, :, :context]
        velocity = dit(
            torch.cat((clean, noise), 2),
            torch.cat((source[:, :, :context], source), 2),
            torch.tensor([[0.0, 1000.0, 1000.0]]),
            embeds,
            mask,
            torch.tensor([0, 0, 1]),
        )[:, :, context:]
    assert (streamed - (noise - velocity)).abs().max() < 1e-5


def test_processes_must_divide_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "__init__", lambda self: self.__dict__.update(rank=0, world=2))
    with pytest.raises(UsageError, match="batch_size 3 does not divide among 2 processes"):
        train.FlowTrainer(CONFIG, tmp_path)


def test_configurations_that_cannot_be_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    options = argparse.Namespace(config=path, stage="causal", preset=None)
    for text, words in (
        ("{", "cannot read .*config.json"),
        ('{"setps": 3}', "TrainConfig: unknown key 'setps'"),
        ('{"precision": "bf16"}', 'precision "bf16" needs parallel "shard"'),
        ('{"cached_text": true}', "cached_text needs train_text false"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            train.read_config(options)
