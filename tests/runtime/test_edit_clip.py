"""The loop over one clip, with editors made up for the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from liveedit.errors import BackendError, LiveEditError, StreamError, UsageError
from liveedit.runtime.composite import SoftMask, lay_over, paint_mask
from liveedit.runtime.edit_clip import ClipEdit, Outcome
from liveedit.runtime.fit import FIT_POLICIES, Fit, FitPolicy, Size
from liveedit.runtime.video_reader import BrokenVideo, VideoReader
from liveedit.runtime.video_writer import VideoWriter

MODEL = Size(48, 64)
GRID = (3, 6, 8)


@dataclass
class FakeChunk:
    index: int
    first_frame: int
    frames: np.ndarray
    latent_rows: np.ndarray
    importance: np.ndarray
    peak_change: float
    kept: np.ndarray


class FakeEditor:
    """Hands chunks of 9, 12, 12, ... frames out again, three frames late, changed by ``paint``.

    ``changed`` gives the importance of latent frame k of the stream, [6, 8] or a number.
    """

    def __init__(
        self,
        paint: Callable[[np.ndarray], np.ndarray] = lambda x: x,
        changed: Callable[[int], object] = lambda k: 0.0,
        fails_at: int | None = None,
        failure: type[LiveEditError] = StreamError,
    ) -> None:
        self.paint, self.changed, self.fails_at = paint, changed, fails_at
        self.failure = failure
        self.held: list[np.ndarray] = []
        self.index = self.first = 0

    def push(self, frames: np.ndarray) -> list[FakeChunk]:
        assert frames.shape[1:] == (MODEL.height_px, MODEL.width_px, 3)
        assert frames.dtype == np.uint8
        self.held.extend(frames.copy())
        size = 9 if self.index == 0 else 12
        return [self.chunk(size)] if len(self.held) >= size + 3 else []

    def flush(self) -> list[FakeChunk]:
        chunks = []
        while self.held:
            chunks.append(self.chunk(9 if self.index == 0 else 12))
        return chunks

    def chunk(self, size: int) -> FakeChunk:
        if self.index == self.fails_at:
            raise self.failure("the stream cannot go on.")
        frames = np.stack([self.paint(f) for f in self.held[:size]])
        del self.held[:size]
        importance = np.zeros(GRID, np.float32)
        for f in range(3):
            importance[f] = self.changed(3 * self.index + f)
        rows = np.repeat([0, 1, 2], [1 if self.index == 0 else 4, 4, 4])[: len(frames)]
        kept = np.ones((3, 3, 4), np.bool_)
        out = FakeChunk(self.index, self.first, frames, rows, importance, 1.0, kept)
        self.index, self.first = self.index + 1, self.first + len(frames)
        return out


def edit(
    source: Path,
    target: Path,
    editor: FakeEditor,
    *,
    fit: FitPolicy = "stretch",
    composite: bool = False,
    mask: Path | None = None,
) -> Outcome:
    with VideoReader(source) as reader, VideoWriter(target, reader.info) as output:
        size = Size(reader.info.height_px, reader.info.width_px)
        soft = SoftMask() if composite else None
        if mask is None:
            return ClipEdit(editor, Fit(size, MODEL, fit), output, composite=soft).run(reader)
        with VideoWriter(mask, reader.info) as painted:
            return ClipEdit(
                editor, Fit(size, MODEL, fit), output, composite=soft, mask_video=painted
            ).run(reader)


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.stack([f.image for f in reader.frames()])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("count", [1, 7, 9, 10, 12, 21, 22, 40])
def test_every_frame_comes_out_at_its_own_place(make_clip, tmp_path, count):
    source, target = make_clip(frames=count), tmp_path / "out.mp4"
    assert edit(source, target, FakeEditor()) == Outcome(count, None)
    before, after = frames_of(source), frames_of(target)
    assert len(after) == count
    for number in range(count):
        distances = [distance(after[number], b) for b in before]
        assert distances[number] < 3
        assert int(np.argmin(distances)) == number


@pytest.mark.parametrize("fit", FIT_POLICIES)
@pytest.mark.parametrize("size", [(48, 64), (71, 33), (120, 160)])
def test_an_edit_lands_on_the_source_geometry(make_clip, tmp_path, fit, size):
    """An editor that changes nothing gives the source back, whatever the fit."""
    source = make_clip(frames=5, size=size, pixel_format="yuv444p")
    edit(source, tmp_path / "out.mp4", FakeEditor(), fit=fit)
    before, after = frames_of(source), frames_of(tmp_path / "out.mp4")
    assert after.shape == before.shape
    assert distance(after, before) < 5


def red(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.array([220, 20, 20], np.uint8), image.shape).copy()


def test_composite_keeps_the_source_outside_the_mask(make_clip, tmp_path):
    left = np.zeros(GRID[1:], np.float32)
    left[:, :3] = 1
    source, target = make_clip(frames=20), tmp_path / "out.mp4"
    edit(source, target, FakeEditor(red, lambda k: left), composite=True)
    before, after = frames_of(source), frames_of(target)
    assert distance(after[:, :, 44:], before[:, :, 44:]) < 3
    assert distance(after[:, :, :20], np.full((20, 48, 20, 3), (220, 20, 20))) < 6


def test_each_latent_frame_covers_its_four_pixel_frames(make_clip, tmp_path):
    """Latent frame k shows frames 4 k - 3 to 4 k: only those are edited when only k changed."""
    source, target = make_clip(frames=33), tmp_path / "out.mp4"
    edit(source, target, FakeEditor(red, lambda k: float(k in (2, 5))), composite=True)
    before, after = frames_of(source), frames_of(target)
    changed = [n for n in range(33) if distance(after[n], before[n]) > 20]
    assert changed == [5, 6, 7, 8, 17, 18, 19, 20]


def test_the_mask_video_has_every_frame(make_clip, tmp_path):
    source, mask = make_clip(frames=15, size=(47, 65), pixel_format="yuv444p"), tmp_path / "m.mkv"
    corner = np.zeros(GRID[1:], np.float32)
    corner[:2, :2] = 1
    edit(source, tmp_path / "out.mp4", FakeEditor(changed=lambda k: corner), mask=mask)
    before, painted = frames_of(source), frames_of(mask)
    assert painted.shape == before.shape
    assert distance(painted[:, -10:, -10:], before[:, -10:, -10:]) < 4
    reddish = painted[:, :8, :8, 0].astype(int) - before[:, :8, :8, 0]
    assert reddish.mean() > 40


def test_a_clip_that_breaks_off_keeps_what_came_before(make_clip, tmp_path):
    source, target = make_clip("b.mkv", frames=60), tmp_path / "out.mp4"
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 7 // 10])
    outcome = edit(source, target, FakeEditor())
    assert isinstance(outcome.ended_by, BrokenVideo)
    assert 5 < outcome.num_video_frames < 60
    assert len(frames_of(target)) == outcome.num_video_frames


@pytest.mark.parametrize("failure", [StreamError, BackendError])
def test_a_stream_that_stops_keeps_finished_chunks(make_clip, tmp_path, failure):
    source, target = make_clip(frames=40), tmp_path / "out.mp4"
    outcome = edit(source, target, FakeEditor(fails_at=2, failure=failure))
    assert isinstance(outcome.ended_by, failure)
    assert outcome.num_video_frames == 21
    assert len(frames_of(target)) == 21


def test_a_stream_that_never_starts_leaves_nothing(make_clip, tmp_path):
    target = tmp_path / "out" / "out.mp4"
    target.parent.mkdir()
    with pytest.raises(StreamError):
        edit(make_clip(frames=40), target, FakeEditor(fails_at=0))
    assert list(target.parent.iterdir()) == []


def test_lay_over_is_exact_at_both_ends():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
    opacity = rng.choice([0, 255], (9, 7)).astype(np.uint8)
    assert np.array_equal(lay_over(a, b, opacity), np.where(opacity[..., None] == 255, b, a))
    middle = lay_over(a, b, np.full((9, 7), 128, np.uint8))
    assert np.abs(middle - (a.astype(float) + b) / 2).max() <= 1


def test_soft_mask_is_monotone_and_wider_than_the_edit():
    importance = np.zeros((1, 7, 9), np.float32)
    importance[0, 3, 4] = 1
    opacity = SoftMask()(importance, 1.0)
    assert (opacity[0, 2:5, 3:6] == 255).all()
    assert opacity.sum() == 9 * 255
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (1, 3, 1))
    assert (np.diff(SoftMask()(ramp, 1.0).astype(int), axis=2) >= 0).all()
    with pytest.raises(UsageError, match="low"):
        SoftMask(low=0.5, high=0.2)


def test_skipped_tokens_are_darkened():
    image = np.full((4, 4, 3), 200, np.uint8)
    kept = np.zeros((4, 4), np.bool_)
    kept[0] = True
    painted = paint_mask(image, np.zeros((4, 4), np.uint8), kept)
    assert (painted[0] == 200).all()
    assert (painted[1:] == 100).all()


def test_tokens_follow_the_fit():
    kept = np.zeros((2, 4), np.bool_)
    kept[0, 0] = True
    stretched = Fit(Size(64, 32), Size(32, 64)).tokens_to_source(kept)
    assert stretched[:32, :8].all()
    assert stretched.sum() == 32 * 8
    padded = Fit(Size(64, 32), Size(32, 64), "pad").tokens_to_source(kept)
    assert not padded.any()  # the first token lies in the left border
    cropped = Fit(Size(64, 32), Size(32, 64), "crop").tokens_to_source(kept)
    assert cropped[:24].all()
    assert not cropped[24:40, 8:].any()


def test_a_chunk_without_an_edit_stays_the_source() -> None:
    """Importance always reaches 1 somewhere; how much that is decides."""
    importance = np.zeros((1, 7, 9), np.float32)
    importance[0, 3, 4] = 1
    assert SoftMask()(importance, 0.02).max() == 0
    assert SoftMask()(importance, 0.5).max() == 255
