"""The mask cache against a pixel-by-pixel rewrite of the release's rule."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from liveedit.config import StreamConfig
from liveedit.errors import UsageError
from liveedit.runtime.mask_cache import (
    MaskCachePolicy,
    TokenChoice,
    equalise,
    importance_map,
    keep_pixels,
    mean_square,
    paper_tokens,
    released_tokens,
    round_bfloat16,
)

Float = npt.NDArray[np.float32]
STREAM = StreamConfig(
    height_px=48, width_px=80, num_frame_per_block=3, local_attn_size=6, keep_bucket=4
)
SHAPE = (1, 16, 3, 6, 10)  # 3 frames of 15 tokens


def released_rule(importance: Float, keep_ratio: float) -> list[list[int]]:
    """Kept token positions per frame: threshold, cut, majority, cut. Plain loops."""
    h, w = importance.shape[1:]
    keep = max(1, int(h * w * keep_ratio))
    lists = []
    for frame in importance:
        values = frame.ravel().tolist()
        threshold = sorted(values, reverse=True)[keep - 1]
        lists.append([i for i, v in enumerate(values) if v >= threshold])
    shortest = min(len(x) for x in lists)
    tokens = []
    for x in lists:
        kept = set(x[:shortest])
        tokens.append(
            [
                y * (w // 2) + c
                for y in range(h // 2)
                for c in range(w // 2)
                if sum((2 * y + i) * w + 2 * c + j in kept for i in (0, 1) for j in (0, 1)) >= 3
            ]
        )
    shortest = min(len(x) for x in tokens)
    return [x[:shortest] for x in tokens]


def latents(seed: int, levels: int | None = None) -> tuple[Float, Float]:
    """An edited and a source latent; few ``levels`` make many ties."""
    rng = np.random.default_rng(seed)
    source = rng.standard_normal(SHAPE).astype(np.float32)
    if levels is None:
        return source + rng.standard_normal(SHAPE).astype(np.float32), source
    # Neighbours that are often alike, so that 2 x 2 majorities happen.
    step = rng.integers(0, levels, (1, 1, 3, 3, 5)).repeat(2, 3).repeat(2, 4)
    flips = rng.random((1, 1, *SHAPE[2:])) < 0.15
    return source + (step + flips).astype(np.float32), source


@pytest.mark.parametrize("levels", [None, 2, 3, 8])
@pytest.mark.parametrize("keep_ratio", [0.001, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_released_tokens_equal_the_rule(keep_ratio: float, levels: int | None) -> None:
    for seed in range(20):
        importance = importance_map(mean_square(*latents(seed, levels)))
        rule = released_rule(importance, keep_ratio)
        kept = released_tokens(importance, keep_ratio)
        assert [np.flatnonzero(f).tolist() for f in kept] == rule


def test_ties_with_the_threshold_are_all_kept() -> None:
    importance = np.zeros((2, 4, 4), dtype=np.float32)
    importance[0, 0, :3] = 1
    assert keep_pixels(importance, 2 / 16)[0].sum() == 3
    assert keep_pixels(importance, 2 / 16)[1].all()  # a frame with no change: all tie
    assert keep_pixels(importance, 1e-9)[0].sum() == 3  # at least one, and its ties


def test_cutting_drops_the_bottom_of_the_frame() -> None:
    kept = np.zeros((2, 2, 3), dtype=np.bool_)
    kept[0, 0, 1] = kept[0, 1, 0] = True
    kept[1] = True
    assert equalise(kept).tolist() == [
        [[False, True, False], [True, False, False]],
        [[True, True, False], [False, False, False]],
    ]


def test_importance_is_the_normalised_mean_square() -> None:
    edited, source = latents(1)
    d = ((edited[0].astype(np.float64) - source[0]) ** 2).mean(axis=0)
    expected = (d - d.min()) / (d.max() - d.min())
    importance = importance_map(mean_square(edited, source))
    assert importance == pytest.approx(expected, abs=1e-6)
    assert (importance_map(mean_square(edited, edited)) == 0).all()


def test_bfloat16_rounding() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.0e38, 1e-20], dtype=np.float32)
    rounded = round_bfloat16(values)
    assert rounded[:3].tolist() == [1.0, 1.0, 1.015625]  # ties go to even
    assert (rounded.view(np.uint32) & 0xFFFF == 0).all()
    assert rounded == pytest.approx(values, rel=2**-8)
    edited, source = latents(2)
    fine = importance_map(mean_square(edited, source))
    coarse = importance_map(mean_square(edited, source, bfloat16=True), bfloat16=True)
    assert coarse == pytest.approx(fine, abs=0.02)
    assert len(np.unique(coarse)) < len(np.unique(fine))


def test_paper_mode_keeps_one_map_for_all_frames() -> None:
    importance = importance_map(mean_square(*latents(3)))
    kept = paper_tokens(importance, 0.3)
    assert kept.shape == (3, 3, 5)
    assert (kept == kept[0]).all()
    assert kept[0].sum() == int(15 * 0.3)
    total = importance.reshape(3, 3, 2, 5, 2).sum(axis=(0, 2, 4))
    assert total[kept[0]].min() >= total[~kept[0]].max()


@pytest.mark.parametrize("mode", ["released", "paper"])
@pytest.mark.parametrize("bucket", [1, 4, 7, 64])
def test_rounding_up_takes_the_next_most_important(mode: str, bucket: int) -> None:
    stream = StreamConfig(height_px=48, width_px=80, local_attn_size=6, keep_bucket=bucket)
    choose = released_tokens if mode == "released" else paper_tokens
    for seed in range(10):
        for levels in (None, 3):
            policy = MaskCachePolicy(mode=mode, keep_ratio=0.4)  # type: ignore[arg-type]
            cache = TokenChoice(stream, policy, 4)
            edited, source = latents(seed, levels)
            d, keep = cache(edited, source)
            importance = importance_map(d)
            base = choose(importance, 0.4).ravel()
            assert keep.num_selected == base.sum() or keep is cache.full
            assert keep.num_kept == min(-(-max(1, base.sum()) // bucket) * bucket, 45)
            assert keep.num_kept in cache.sizes()
            assert (np.diff(keep.keep_index) > 0).all()
            chosen = np.zeros(45, dtype=bool)
            chosen[keep.keep_index] = True
            assert (chosen >= base).all()
            assert (keep.kept.ravel() == chosen).all()
            score = importance.reshape(3, 3, 2, 5, 2).sum(axis=(2, 4)).ravel()
            added, left = score[chosen & ~base], score[~chosen]
            if len(added) and len(left):
                assert added.min() >= left.max()
            for token in range(45):
                row = keep.token_row[token]
                assert (keep.keep_index[row] == token) if row >= 0 else not chosen[token]


def test_all_ones_is_the_full_set() -> None:
    cache = TokenChoice(STREAM, MaskCachePolicy(keep_ratio=1.0), 4)
    assert cache(*latents(0))[1] is cache.full
    assert cache.full.keep_index.tolist() == list(range(45))
    assert cache.full.token_row.tolist() == list(range(45))


def test_nothing_selected_still_keeps_a_bucket() -> None:
    # One lone pixel per frame is never 3 of 4, so the release's rule keeps no token at all.
    edited, source = latents(0)
    edited[:] = source
    edited[:, :, :, 3, 3] += 1
    cache = TokenChoice(STREAM, MaskCachePolicy(keep_ratio=0.001), 4)
    keep = cache(edited, source)[1]
    assert (keep.num_selected, keep.num_kept) == (0, 4)
    assert {6, 21, 36} <= set(keep.keep_index.tolist())


@pytest.mark.parametrize("budget", [1, 7, 20, 45])
def test_a_budget_keeps_exactly_so_many(budget: int) -> None:
    policy = MaskCachePolicy(keep_ratio=0.6, token_budget=budget)
    edited, source = latents(4)
    d, keep = TokenChoice(STREAM, policy, 4)(edited, source)
    assert keep.num_kept == budget
    assert TokenChoice(STREAM, policy, 4).sizes() == tuple(sorted({budget, 45}))
    chosen = released_tokens(importance_map(d), 0.6)
    inside = chosen & keep.kept if budget < chosen.sum() else chosen
    assert inside.sum() == min(budget, chosen.sum())
    score = importance_map(d).reshape(3, 3, 2, 5, 2).sum(axis=(2, 4))
    if budget < chosen.sum():
        assert score[keep.kept].min() >= score[chosen & ~keep.kept].max()
    everything = TokenChoice(STREAM, policy, 4).results(edited, source, everything=True)
    assert everything["counts"].tolist() == [45, 45]


def test_which_passes_are_pruned() -> None:
    assert MaskCachePolicy().passes(4) == {1, 2}
    assert MaskCachePolicy().passes(2) == frozenset()
    assert MaskCachePolicy(mode="paper").passes(4) == {0, 1, 2, 3}
    assert MaskCachePolicy(mode="off").passes(4) == frozenset()
    assert MaskCachePolicy(pruned_passes=(3,)).passes(4) == {3}
    cache = TokenChoice(STREAM, MaskCachePolicy(), 4)
    assert cache.pruned_passes == {1, 2}


def test_the_arrays_are_reused() -> None:
    cache = TokenChoice(STREAM, MaskCachePolicy(), 4)
    first, second = cache(*latents(0))[1], cache(*latents(1))[1]
    assert np.shares_memory(first.keep_index, second.keep_index)
    assert np.shares_memory(first.token_row, second.token_row)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="there are off, released, paper"):
        MaskCachePolicy(mode="on")  # type: ignore[arg-type]
    for ratio in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            MaskCachePolicy(keep_ratio=ratio)
    with pytest.raises(UsageError, match=r"pruned pass 4 is not one of 1\.\.3"):
        MaskCachePolicy(pruned_passes=(4,)).passes(4)
    with pytest.raises(UsageError, match="pruned pass 0"):
        MaskCachePolicy(pruned_passes=(0,)).passes(4)
    assert MaskCachePolicy(mode="paper", pruned_passes=(0,)).passes(4) == {0}
    with pytest.raises(UsageError, match="a token budget must be at least 1, got 0"):
        MaskCachePolicy(token_budget=0)
    with pytest.raises(UsageError, match="more than the 45 tokens"):
        TokenChoice(STREAM, MaskCachePolicy(token_budget=46), 4)
