"""``liveedit demo``: the shipped clip is there, small, real, and goes through."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from liveedit.cli import main
from liveedit.cli.demo import png
from liveedit.runtime.shipped import shipped
from liveedit.runtime.video_reader import VideoReader


def test_demo_writes_a_video_and_a_picture(bundle, tmp_path, capsys):
    out = tmp_path / "new" / "demo"
    options = ["--bundle", str(bundle), "--backend", "null", "--prompt", "make it red"]
    assert main(["demo", "-o", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"edited.mp4", "side_by_side.png"}
    assert str(out / "edited.mp4") in printed
    assert "FPS" in printed
    assert "MiB" in printed
    with VideoReader(out / "edited.mp4") as edited:
        assert (edited.info.width_px, edited.info.height_px) == (640, 480)
    picture = np.asarray(Image.open(out / "side_by_side.png"))
    assert picture.shape == (720, 640, 3)
    with VideoReader(shipped("clip.mp4")) as source:
        first = list(source.frames())[15].image  # the middle of the first third
    left = np.asarray(Image.fromarray(first).resize((320, 240), Image.Resampling.BILINEAR))
    assert np.abs(picture[:240, :320].astype(int) - left).mean() < 1


def test_the_shipped_clip_is_small_and_licensed():
    path = shipped("clip.mp4")
    assert path.stat().st_size < 1 << 20
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader.frames()) == 93
    assert "clip.mp4" in shipped("LICENSES.md").read_text()


def test_a_folder_that_cannot_be_made_is_one_sentence(bundle, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["--bundle", str(bundle), "--backend", "null"]
    assert main(["demo", "-o", str(tmp_path / "file" / "demo"), *options]) == 2
    assert "cannot make" in capsys.readouterr().err


def test_png_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (13, 7, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), image)
