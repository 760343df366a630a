"""Video files in and out: what a copy through reader and writer keeps, and how both fail."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from liveedit.errors import UsageError, VideoError
from liveedit.runtime.video_reader import BrokenVideo, VideoReader
from liveedit.runtime.video_writer import VideoWriter


def copy(source: Path, target: Path) -> list[str]:
    with (
        VideoReader(source) as reader,
        VideoWriter(target, reader.info, reader.audio_streams) as writer,
    ):
        for frame in reader.frames(writer.copy):
            writer.write(frame.image, frame.pts, frame.duration)
        return writer.notes


def read(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Images and their times in seconds, counted from the first."""
    with VideoReader(path) as reader:
        frames = list(reader.frames())
    base = reader.info.time_base
    return [f.image for f in frames], [float((f.pts - frames[0].pts) * base) for f in frames]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


CLIPS = {
    "plain": {},
    "one frame": {"frames": 1},
    "seven frames": {"frames": 7},
    "odd width": {"size": (48, 63), "pixel_format": "yuv444p"},
    "odd height": {"size": (47, 64), "pixel_format": "yuv444p"},
    "tiny": {"size": (2, 2)},
    "smaller": {"size": (1, 3), "pixel_format": "yuv444p"},
    "portrait": {"size": (80, 48)},
    "yuv444p": {"pixel_format": "yuv444p"},
    "ten bits": {"pixel_format": "yuv420p10le"},
    "10 per second": {"rate": 10},
    "60 per second": {"rate": 60, "frames": 61},
    "variable": {"times": [0, 33, 66, 200, 210, 500, 541, 542, 900, 1000, 1100, 1101, 1500, 1999]},
    "matroska": {"name": "clip.mkv"},
    "mpeg-ts": {"name": "clip.ts", "audio": "aac"},
    "avi": {"name": "clip.avi", "codec": "mpeg4"},
    "mpeg2": {"name": "clip.mpg", "codec": "mpeg2video", "rate": 25},
    "gif": {"name": "clip.gif", "codec": "gif", "pixel_format": "rgb8", "rate": 10},
    "still picture": {"name": "clip.png", "codec": "png", "pixel_format": "rgb24", "frames": 1},
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS.keys())
def test_a_copy_keeps_frames_times_and_size(make_clip, tmp_path, options, suffix):
    source, target = make_clip(**options), tmp_path / f"copy{suffix}"
    copy(source, target)
    before, times_before = read(source)
    after, times_after = read(target)
    assert len(before) == options.get("frames", 14)
    assert [a.shape for a in after] == [b.shape for b in before]
    assert times_after == pytest.approx(times_before, abs=0.0011)
    # Sharp colour edges lose a little in yuv420p; a palette's dither and 2 x 2 pixels lose more.
    least = 20 if before[0].size < 100 or options.get("codec") == "gif" else 30
    assert min(psnr(a, b) for a, b in zip(after, before, strict=True)) > least
    with av.open(str(target)) as container:
        even = not (before[0].shape[0] % 2 or before[0].shape[1] % 2)
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == ("yuv420p" if even else "yuv444p")


@pytest.mark.parametrize(
    ("name", "audio", "suffix", "kept"),
    [
        ("a.mp4", "aac", ".mp4", True),
        ("a.mp4", "aac", ".mkv", True),
        ("a.ts", "aac", ".mp4", True),
        ("a.avi", "pcm_s16le", ".mov", True),
        ("a.mkv", "wavpack", ".mkv", True),
        ("a.mkv", "wavpack", ".mp4", False),
    ],
)
def test_sound_is_copied_packet_by_packet_or_a_sentence_says_why(
    make_clip, tmp_path, name, audio, suffix, kept
):
    source, target = make_clip(name, audio=audio, frames=30), tmp_path / f"copy{suffix}"
    notes = copy(source, target)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return []
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    if kept:
        expected = packets(source)
        if name.endswith(".ts"):  # ADTS headers of 7 bytes are not part of the sound
            expected = [p[7:] for p in expected]
        assert expected
        assert b"".join(packets(target)) == b"".join(expected)
        assert notes == []
    else:
        assert packets(target) == []
        assert len(notes) == 1
        assert ".mp4 cannot hold wavpack; try -o copy.mkv" in notes[0]


def rotated(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same file with another display matrix (a, b, c, d) in its track header."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    a, b, c, d = (one * v for v in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # what a phone held upright writes
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    ],
    ids=["clockwise", "anticlockwise", "half turn", "mirror"],
)
def test_rotation_metadata_is_applied(make_clip, tmp_path, matrix, upright):
    source = make_clip()
    plain, _ = read(source)
    turned, _ = read(rotated(source, matrix))
    assert all(np.array_equal(t, upright(p)) for t, p in zip(turned, plain, strict=True))
    copy(source, tmp_path / "copy.mp4")
    after, _ = read(tmp_path / "copy.mp4")
    assert after[0].shape == turned[0].shape
    assert psnr(after[0], turned[0]) > 32


def test_pixel_aspect_ratio_is_kept_and_turned(make_clip, tmp_path):
    source = make_clip("wide.mkv", options={"aspect": "8:3"})
    with av.open(str(source)) as container:
        before = container.streams.video[0].sample_aspect_ratio
    copy(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == before


def test_a_cover_picture_is_not_a_video(tmp_path, make_clip):
    path = tmp_path / "song.mkv"
    with av.open(str(path), "w") as container:
        container.add_attachment(
            "cover.png",
            "image/png",
            make_clip("c.png", codec="png", pixel_format="rgb24", frames=1).read_bytes(),
        )
        sound = container.add_stream("aac", rate=16000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.sample_rate = 16000
        container.mux(sound.encode(tone))
        container.mux(sound.encode())
    with pytest.raises(VideoError, match="no video stream"):
        VideoReader(path)


def audio_only(make_clip, tmp_path: Path) -> Path:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.sample_rate = 16000
        container.mux(sound.encode(tone))
        container.mux(sound.encode())
    return path


def no_frames(make_clip, tmp_path: Path, suffix: str = "mp4") -> Path:
    path = tmp_path / f"empty.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def all_noise(make_clip, tmp_path: Path) -> Path:
    """The container is whole; every byte of the pictures is noise."""
    path = make_clip("noise.mp4")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = np.random.default_rng(0).bytes(end - start)
    path.write_bytes(data)
    return path


def file_with(content: bytes):
    def make(make_clip, tmp_path: Path) -> Path:
        path = tmp_path / "file.mp4"
        path.write_bytes(content)
        return path

    return make


def without_index(make_clip, tmp_path: Path) -> Path:
    path = make_clip()
    path.write_bytes(cut(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda make_clip, tmp_path: tmp_path / "absent.mp4", "does not exist"),
        (lambda make_clip, tmp_path: tmp_path, "is a directory"),
        (file_with(b""), "cannot be opened as a video"),
        (file_with(b"not a video at all\n" * 50), "cannot be opened as a video"),
        (without_index, "truncated"),
        (audio_only, r"no video stream \(it holds: audio\)"),
        (no_frames, "truncated"),
        (lambda make_clip, tmp_path: no_frames(make_clip, tmp_path, "avi"), "no frame in it"),
        (lambda make_clip, tmp_path: no_frames(make_clip, tmp_path, "mkv"), "ends before"),
        (all_noise, "not one frame can be decoded"),
    ],
)
def test_a_file_that_is_no_video_is_one_sentence(make_clip, tmp_path, make, says):
    with pytest.raises(VideoError, match=says) as caught:
        VideoReader(make(make_clip, tmp_path))
    assert "\n" not in str(caught.value)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def hole(data: bytes) -> bytes:
    start, size = len(data) // 2, len(data) // 8
    return data[:start] + np.random.default_rng(1).bytes(size) + data[start + size :]


@pytest.mark.parametrize(
    ("options", "harm"),
    [
        ({"name": "b.mp4", "options": {"movflags": "faststart"}}, cut),
        ({"name": "b.mkv"}, cut),
        ({"name": "b.mkv", "audio": "aac"}, cut),
        ({"name": "b.mkv"}, hole),
    ],
)
def test_frames_before_the_break_are_handed_out(make_clip, options, harm):
    path = make_clip(frames=60, **options)
    whole, _ = read(path)
    path.write_bytes(harm(path.read_bytes()))
    kept = []

    def read_on(reader: VideoReader) -> None:
        for frame in reader.frames():
            kept.append(frame.image)

    with VideoReader(path) as reader, pytest.raises(BrokenVideo, match="breaks off"):
        read_on(reader)
    assert 5 < len(kept) < 60
    assert all(np.array_equal(a, b) for a, b in zip(kept[:5], whole, strict=False))


def test_reading_does_not_hold_the_clip(make_clip):
    """After any number of frames only the last one is alive."""
    import gc
    import weakref

    with VideoReader(make_clip(frames=40)) as reader:
        alive: list[weakref.ref[np.ndarray]] = []
        for frame in reader.frames():
            alive.append(weakref.ref(frame.image))
            del frame
        gc.collect()
        assert sum(r() is not None for r in alive) == 0
        assert len(alive) == 40


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("out.webm", r"'\.webm'; allowed are \.mp4"),
        ("out", "missing"),
        ("absent/out.mp4", "is not a directory"),
    ],
)
def test_a_target_that_cannot_be_is_refused(make_clip, tmp_path, name, says):
    with VideoReader(make_clip()) as reader, pytest.raises(UsageError, match=says):
        VideoWriter(tmp_path / name, reader.info)


def test_nothing_is_left_when_writing_stops(make_clip, tmp_path):
    target = tmp_path / "out" / "copy.mp4"
    target.parent.mkdir()

    def stop_after_five() -> None:
        with VideoReader(make_clip()) as reader, VideoWriter(target, reader.info) as writer:
            for number, frame in enumerate(reader.frames()):
                writer.write(frame.image, frame.pts, frame.duration)
                if number == 5:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_after_five()
    assert list(target.parent.iterdir()) == []


def test_an_older_file_survives_a_failure(make_clip, tmp_path):
    target = tmp_path / "copy.mp4"
    target.write_bytes(b"older")
    with VideoReader(make_clip()) as reader:
        with pytest.raises(RuntimeError), VideoWriter(target, reader.info):
            raise RuntimeError
    assert target.read_bytes() == b"older"
