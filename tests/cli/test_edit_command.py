"""``liveedit edit``: what it writes, and one sentence for everything that can go wrong."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from toy_bundle import make_bundle

from liveedit.cli import main


def edit(bundle: Path, source: Path, target: Path, *more: str, prompt: str = "make it red") -> int:
    try:
        return main(
            ["edit", str(source), "--prompt", prompt, "-o", str(target), "--backend", "null",
             "--bundle", str(bundle), *more]
        )  # fmt: skip
    except SystemExit as stop:  # argparse
        return int(str(stop.code))


def count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"frames": 1},
        {"frames": 7},
        {"size": (47, 63), "pixel_format": "yuv444p", "frames": 23},
        {"size": (64, 36)},
        {"rate": 60, "frames": 33},
        {"times": [0, 33, 66, 200, 210, 500, 541, 542, 900, 1000, 1100, 1101, 1500, 1999]},
        {"audio": "aac", "frames": 30},
    ],
)
def test_as_many_frames_as_went_in(bundle, out, make_clip, capsys, options):
    target = out / "edited.mp4"
    assert edit(bundle, make_clip(**options), target) == 0
    assert count(target) == options.get("frames", 14)
    printed = capsys.readouterr()
    assert f"{target}: {options.get('frames', 14)} frames" in printed.out
    assert "FPS" in printed.out
    assert "editing" in printed.err
    with av.open(str(target)) as container:
        assert len(container.streams.audio) == ("audio" in options)
    assert [p.name for p in out.iterdir()] == ["edited.mp4"]


def test_composite_and_mask_video(bundle, out, make_clip):
    more = ("--composite", "--save-mask", str(out / "mask.mkv"), "--fit", "crop")
    assert edit(bundle, make_clip(frames=15), out / "edited.mov", *more) == 0
    assert count(out / "edited.mov") == count(out / "mask.mkv") == 15


def test_sound_that_does_not_fit_is_said(bundle, out, make_clip, capsys):
    source = make_clip("a.mkv", audio="wavpack", frames=20)
    assert edit(bundle, source, out / "edited.mp4") == 0
    assert "cannot hold wavpack; try -o edited.mkv" in capsys.readouterr().err


def test_same_seed_same_frames(tmp_path, out, make_clip):
    """On the real backend: the file repeats itself, another seed or prompt does not."""
    toy, source = tmp_path / "toy", make_clip(frames=25)
    make_bundle(toy)

    def pictures(name: str, seed: int, prompt: str = "make it red") -> list[bytes]:
        more = ("--backend", "onnxruntime", "--seed", str(seed))
        assert edit(toy, source, out / name, *more, prompt=prompt) == 0
        with av.open(str(out / name)) as container:
            return [f.to_ndarray(format="rgb24").tobytes() for f in container.decode(video=0)]

    first = pictures("a.mp4", 5)
    assert len(first) == 25
    assert pictures("b.mp4", 5) == first
    assert pictures("c.mp4", 6) != first
    assert pictures("d.mp4", 5, "make it blue") != first


def change_a_byte(bundle: Path) -> None:
    path = bundle / "fp32" / "dit_step.onnx"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def change_the_manifest(bundle: Path) -> None:
    path = bundle / "bundle.json"
    path.write_text(path.read_text().replace('"height_px": 32', '"height_px": 64'))


BAD_BUNDLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed byte": (change_a_byte, "was changed"),
    "changed manifest": (change_the_manifest, "was changed after it was written"),
    "missing graph": (lambda b: (b / "fp32" / "prompt.onnx").unlink(), "is missing"),
    "cut tokenizer": (lambda b: (b / "tokenizer.json").write_text("{"), "has 1 bytes"),
    "no manifest": (lambda b: (b / "bundle.json").unlink(), "liveedit export"),
}


def sentence(capsys) -> str:
    """The last line of stderr, which is the only one that names an error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    errors = [line for line in lines if line.startswith("liveedit: ")]
    assert errors == lines[-1:]
    return errors[0]


@pytest.mark.parametrize(("harm", "says"), BAD_BUNDLE.values(), ids=BAD_BUNDLE.keys())
def test_a_bad_bundle_is_refused(bundle, out, make_clip, capsys, harm, says):
    harm(bundle)
    assert edit(bundle, make_clip(), out / "edited.mp4") == 1
    assert says in sentence(capsys)
    assert list(out.iterdir()) == []


def test_an_unknown_bundle_is_refused(out, tmp_path, make_clip, capsys):
    assert edit(tmp_path / "nowhere", make_clip(), out / "edited.mp4") == 1
    assert "no bundle at" in sentence(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "the prompt is empty"),
        ("  \t ", "the prompt is empty"),
        ("make the car " * 40, "at most 5"),
    ],
)
def test_a_bad_prompt_is_refused(bundle, out, make_clip, capsys, prompt, says):
    assert edit(bundle, make_clip(), out / "edited.mp4", prompt=prompt) == 2
    assert says in sentence(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--keep-ratio", "0"), 2, "keep_ratio"),
        (("--token-budget", "0"), 2, "a token budget must be at least 1, got 0"),
        (("--token-budget", "9999"), 2, "a token budget of 9999 is more than the"),
        (("--token-budget", "9", "--mask-cache", "off"), 2, "no meaning with the mask cache off"),
        (("--threads", "0"), 2, "threads must be at least 1"),
        (("--backend", "abacus"), 1, "no backend 'abacus'"),
        (("--precision", "int3"), 1, "holds no int3 graphs"),
        (("--save-mask", "{out}/edited.mp4"), 2, "named twice"),
        (("--save-mask", "{out}/mask.gif"), 2, "allowed are .mp4"),
    ],
)
def test_a_bad_option_is_refused(bundle, out, make_clip, capsys, more, code, says):
    more = tuple(m.format(out=out) for m in more)
    assert edit(bundle, make_clip(), out / "edited.mp4", *more) == code
    assert says in sentence(capsys)
    assert list(out.iterdir()) == []


def test_argparse_errors_exit_with_2(bundle, out, make_clip, capsys):
    assert edit(bundle, make_clip(), out / "edited.mp4", "--fit", "zoom") == 2
    assert "'stretch', 'crop', 'pad'" in capsys.readouterr().err


def test_the_source_is_never_overwritten(bundle, make_clip, capsys):
    source = make_clip()
    before = source.read_bytes()
    assert edit(bundle, source, source) == 2
    assert "is the source itself" in sentence(capsys)
    assert source.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"no video\n" * 99])
def test_a_bad_source_is_refused(bundle, out, tmp_path, capsys, content):
    source = tmp_path / "source.mp4"
    if content is not None:
        source.write_bytes(content)
    assert edit(bundle, source, out / "edited.mp4") == 1
    assert str(source) in sentence(capsys)
    assert list(out.iterdir()) == []


def test_a_source_that_breaks_off_keeps_its_frames(bundle, out, make_clip, capsys):
    source = make_clip("b.mkv", frames=60)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 7 // 10])
    assert edit(bundle, source, out / "edited.mp4") == 1
    said = sentence(capsys)
    kept = count(out / "edited.mp4")
    assert f"The {kept} frames before that are kept in {out / 'edited.mp4'}" in said
    assert 5 < kept < 60


def test_an_unwritable_folder_is_refused(bundle, out, make_clip, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != out)
    assert edit(bundle, make_clip(), out / "edited.mp4") == 2
    assert f"{out} is not writable" in sentence(capsys)


def test_a_folder_that_became_read_only_is_refused(bundle, out, make_clip, capsys, monkeypatch):
    def refuse(**options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert edit(bundle, make_clip(), out / "edited.mp4") == 1
    assert "read-only file system" in sentence(capsys)


def in_child(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A Python child that runs ``script`` and then the command with ``arguments``."""
    code = textwrap.dedent(script) + "\nimport sys\nfrom liveedit.cli import main\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("limit_bytes", [1, 3000, 20000])
def test_a_full_output_is_one_sentence(bundle, out, make_clip, limit_bytes):
    """A limit on the file size stands for a full disk: both fail in the middle of a write."""
    source = make_clip(frames=40, size=(240, 320))
    child = in_child(
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes},) * 2)",
        "edit", source, "--prompt", "make it red", "-o", out / "edited.mp4",
        "--backend", "null", "--bundle", bundle,
    )  # fmt: skip
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1, said
    assert "Traceback" not in said
    assert "file size limit" in said.strip().splitlines()[-1]
    assert list(out.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit_bytes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_says_so(bundle, out, make_clip, monkeypatch, capsys):
    """Every write to the temporary file hits a full device."""
    import liveedit.runtime.video_writer as video_writer

    real = video_writer.av.open

    def open_full(name: str, mode: str = "r", **options: object) -> object:
        ours = mode == "w" and Path(name).parent == out
        return real("/dev/full" if ours else name, mode, **options)

    monkeypatch.setattr(video_writer.av, "open", open_full)
    assert edit(bundle, make_clip(frames=40), out / "edited.mp4") == 1
    assert "is full" in sentence(capsys)
    assert list(out.iterdir()) == []


def test_ctrl_c_leaves_nothing(bundle, out, make_clip):
    child = in_child(
        """
        import time
        from liveedit.runtime.video_writer import VideoWriter
        write = VideoWriter.write
        def slowly(self, image, pts, duration):
            write(self, image, pts, duration)
            time.sleep(0.2)
        VideoWriter.write = slowly
        """,
        "edit", make_clip(frames=200), "--prompt", "make it red", "-o", out / "edited.mp4",
        "--backend", "null", "--bundle", bundle,
    )  # fmt: skip
    assert child.stderr is not None
    for line in child.stderr:
        if " frames, " in line:  # the first chunk is written
            break
    assert any(out.iterdir())
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert said.strip().splitlines()[-1].startswith("liveedit: stopped by Ctrl-C")
    assert "Traceback" not in said
    assert list(out.iterdir()) == []
