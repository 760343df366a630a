"""Each stage from one command, with the default editor: figures fall, pictures appear."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liveedit.cli import main
from liveedit.config import PatchCodecConfig
from liveedit.distill.edits import SceneConfig, make_scene
from liveedit.distill.latents import code_scene, save_scene
from liveedit.distill.scenes import Footage
from liveedit.models.patch_codec import PatchCodec


@pytest.fixture(scope="module")
def codec() -> PatchCodec:
    torch.manual_seed(0)
    made = PatchCodec(PatchCodecConfig())
    torch.nn.init.normal_(made.encoder.weight, std=0.3)  # latents of about unit size
    return made


@pytest.mark.slow
def test_three_commands_make_a_student(
    footage: Footage,
    codec: PatchCodec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    config = SceneConfig(num_frames=24, edits_per_scene=1, band_share=0.0)
    save_scene(scenes / "0.npz", code_scene(codec, make_scene(0, footage, config)))
    torch.save(codec.state_dict(), tmp_path / "codec.pt")
    common = ["--scenes", str(scenes), "--codec", str(tmp_path / "codec.pt"), "--threads", "1"]

    def train(stage: str, *words: str) -> list[dict[str, float]]:
        out = tmp_path / stage
        preset = ["--preset", f"tiny-smoke-{stage}"]
        assert main(["train", stage, *preset, *common, "--out", str(out), *words]) == 0
        lines = (out / "metrics.jsonl").read_text().splitlines()
        assert Image.open(out / "loss.png").width > 300
        assert sorted(p.name for p in (out / "samples").iterdir()) == [
            "0000008.png",
            "0000016.png",
        ]
        assert Image.open(out / "samples" / "0000016.png").size == (3 * 224, 128 + 13)
        return [json.loads(line) for line in lines]

    def falls(rows: list[dict[str, float]], name: str) -> None:
        values = [row[name] for row in rows[:7]]  # the phase of one clip length
        # By the median: a window is two steps of two clips, and a hard draw may double it.
        assert np.median(values[-4:]) < np.mean(values[:2]), values

    foundation, causal = (str(tmp_path / s / "latest.pt") for s in ("foundation", "causal"))
    falls(train("foundation"), "loss")
    falls(train("causal", "--init", foundation), "loss")
    # A stage does not start from the wrong one.
    start = ["--init", foundation, "--teacher", foundation, *common]
    assert main(["train", "dmd", *start, "--out", str(tmp_path / "wrong")]) == 1
    assert "is of stage foundation, and must be of stage causal or dmd" in capsys.readouterr().err
    rows = train("dmd", "--init", causal, "--teacher", foundation)
    falls(rows, "regression")
    falls(rows, "critic_loss")
    assert np.isfinite([value for row in rows for value in row.values()]).all()
