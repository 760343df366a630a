"""Pictures of a run: they are there, and drawing them changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import CODEC, CONFIG, random_scenes

from liveedit.distill import train
from liveedit.distill.loop import run
from liveedit.distill.pictures import Pictures
from liveedit.distill.presets import PhaseConfig, Stage
from liveedit.models.patch_codec import PatchCodec


@pytest.mark.parametrize("stage", ["foundation", "causal"])
def test_drawing_does_not_touch_the_run(stage: Stage, tmp_path: Path) -> None:
    scenes = random_scenes(tmp_path / "scenes")
    phases = (PhaseConfig(steps=4, num_latent_frames=2, batch_size=4),)
    config = replace(CONFIG, stage=stage, save_every=2, phases=phases)
    weights = []
    for codec in (None, PatchCodec(CODEC)):
        trainer = train.FlowTrainer(config, tmp_path / str(codec is None))
        trainer.open_scenes(scenes)
        run(trainer, 1e9, 1, Pictures(trainer, codec).draw)
        weights.append(trainer.editor.state_dict())
        assert Image.open(trainer.out / "loss.png").width > 300
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not (tmp_path / "True" / "samples").exists()
    grids = sorted((tmp_path / "False" / "samples").iterdir())
    assert [p.name for p in grids] == ["0000002.png", "0000004.png"]
    assert Image.open(grids[0]).size == (3 * 32, 3 * (32 + 13))  # three scenes there are


def test_the_mean_weights_are_borrowed(tmp_path: Path) -> None:
    trainer = train.FlowTrainer(CONFIG, tmp_path)
    trainer.open_scenes(random_scenes(tmp_path / "scenes"))
    trainer.train_step()
    own = {name: p.clone() for name, p in trainer.editor.state_dict().items()}
    mean = trainer.learner.ema
    assert mean is not None
    with trainer.learner.averaged():
        assert all(torch.equal(p, mean.state[n]) for n, p in trainer.editor.state_dict().items())
    assert all(torch.equal(p, own[n]) for n, p in trainer.editor.state_dict().items())
    assert any(not torch.equal(p, mean.state[n]) for n, p in own.items())
