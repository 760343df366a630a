"""The verdict on edits with known results, on long streams and on speed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from liveedit.errors import UsageError
from liveedit.evaluation.known_edits import EditScore, KnownEdit
from liveedit.export.drift import Drift, curve, longest_held, needed_chunks
from liveedit.export.edit_quality import Quality
from liveedit.export.verdict import Limits, Speed, benchmark, reach


def score(region_db: float, *, named: bool | None = True, background_db: float = 25) -> EditScore:
    return EditScore(
        named_colour=named, followed=named, region_db=region_db, region_ssim=0.8,
        background_db=background_db, background_ssim=0.9,
    )  # fmt: skip


def pair(base: EditScore, quantised: EditScore) -> Quality:
    return Quality(
        clip="c", mask_cache="off", agreement_db=20, edited_db=20, edited_ssim=1,
        background_db=20, background_loss_db=9, base=base, quantised=quantised,
    )  # fmt: skip


def test_a_lossless_bundle_passes() -> None:
    same = [pair(score(20 + i), score(20 + i)) for i in range(4)]
    verdict = reach(Limits(), same)
    assert verdict.refused == ()
    assert verdict.benchmark is not None
    assert verdict.benchmark.region_db is not None
    assert verdict.benchmark.region_db.loss == 0
    assert verdict.benchmark.region_db.base == 21.5


@pytest.mark.parametrize(
    ("quantised", "sentence"),
    [
        (score(19.4), r"edited region loses 0\.60 dB PSNR \(20\.00 to 19\.40\), 0\.5 is allowed"),
        (score(20, background_db=24.6), r"background loses 0\.40 dB PSNR"),
        (score(20, named=False), r"of 100 edits 98\.0 % reach the named colour"),
    ],
)
def test_each_loss_is_refused(quantised: EditScore, sentence: str) -> None:
    bad = 100 if quantised.named_colour else 3
    rows = [pair(score(20), quantised if i < bad else score(20)) for i in range(100)]
    if bad == 3:
        assert not reach(Limits(), rows[1:] + rows[-1:]).refused  # two of a hundred are allowed
        sentence = sentence.replace("98", "97")
    found = reach(Limits(), rows).refused
    assert any(re.search(sentence, f) for f in found), found


def test_one_edit_is_less_than_can_be_seen() -> None:
    rows = [pair(score(20), score(20, named=i > 0)) for i in range(10)]
    assert not reach(Limits(), rows).refused
    rows[1] = pair(score(20), score(20, named=False))
    assert len(reach(Limits(), rows).refused) == 2  # neither named nor followed


def test_only_what_both_have_is_compared() -> None:
    rows = [
        pair(score(20, named=None), score(20, named=None)),
        pair(score(20, named=True), score(20, named=False)),
    ]
    found = benchmark(rows)
    assert found is not None
    assert found.named_colour is not None
    assert (found.edits, found.named_colour.count, found.named_colour.loss) == (2, 1, 1.0)
    assert benchmark([]) is None


@pytest.mark.parametrize(("fps", "refused"), [(10.5, True), (11.1, False)])
def test_a_slow_bundle_is_refused_where_speed_was_measured(fps: float, refused: bool) -> None:
    verdict = reach(Limits(), [], speed=Speed(base_fps=10, quantised_fps=fps))
    assert bool(verdict.refused) is refused
    assert not reach(Limits(), [], speed=Speed(not_measured="no GPU")).refused


def test_drift_is_what_the_quantised_stream_falls_more() -> None:
    steady = tuple(20.0 + (i % 6) for i in range(200))
    both = tuple(v - 0.01 * i for i, v in enumerate(steady))
    worse = tuple(v - 0.02 * i for i, v in enumerate(steady))
    same = Drift(clip="c", mask_cache="off", chunks=200, period=6, base=both, quantised=both)
    assert same.last_like_second() == 200
    assert same.excess_db == 0
    assert not reach(Limits(), [], same).refused
    more = Drift(clip="c", mask_cache="off", chunks=200, period=6, base=both, quantised=worse)
    assert more.excess_db == pytest.approx(0.01 * 193)
    (found,) = reach(Limits(), [], more).refused
    assert "over 200 chunks it loses 1.93 dB more" in found


class EchoTrial:
    """Gives every frame back as it came."""

    def stream(self, prompt: str, source: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        first = 0
        for frames in source:
            yield first, frames
            first += len(frames)


def test_the_drift_clip_goes_there_and_back_exactly() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    mask = np.full((6, 8, 8), 255, np.uint8)
    echo = KnownEdit(name="e", kind="recolour", prompt="p", source=source, target=source, mask=mask)
    assert curve(EchoTrial(), echo, 9, 3) == (100.0,) * 9  # type: ignore[arg-type]
    assert needed_chunks(6, 3) == (4, 10)
    with pytest.raises(UsageError, match="7 frames, which is no multiple of the 3"):
        needed_chunks(7, 3)


class FadingTrial(EchoTrial):
    """Loses the edit called "fades" from the fourth chunk on."""

    def stream(self, prompt: str, source: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        for number, (first, frames) in enumerate(super().stream(prompt, source)):
            yield first, 255 - frames if prompt == "fades" and number > 3 else frames


def test_drift_is_judged_on_an_edit_that_lasts() -> None:
    source = np.zeros((6, 8, 8, 3), np.uint8)
    mask = np.full((6, 8, 8), 255, np.uint8)
    edits = [
        KnownEdit(name=p, kind="recolour", prompt=p, source=source, target=source, mask=mask)
        for p in ("fades", "lasts", "fades")
    ]
    assert longest_held(FadingTrial(), edits, 10, 3) is edits[1]  # type: ignore[arg-type]
    assert longest_held(FadingTrial(), edits[:1], 10, 3) is edits[0]  # type: ignore[arg-type]
