"""Which tokens a pruned pass recomputes: importance, rank, tokens, buckets. The rule, in numpy.

`released` follows the published code step by step: squared difference of edited and source latent,
the largest `keep_ratio` of latent pixels per frame (with all that tie with the last one), cut to
the shortest frame in raster order, a token where at least 3 of its 2 x 2 latent pixels are kept,
cut again. So `keep_ratio` counts latent pixels there; the token share is lower, the more so the
less compact the edit is. `paper` keeps one map for all frames of the chunk and counts tokens.

The kept tokens are then rounded up to a bucket with the next most important ones, so that shapes
are few; after that frames need not hold equally many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from liveedit.config import StreamConfig
from liveedit.errors import UsageError

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]
Mode = Literal["off", "released", "paper"]


@dataclass(frozen=True, kw_only=True)
class MaskCachePolicy:
    """Which passes are pruned and how much they keep.

    ``keep_ratio`` is a share of latent pixels in `released` mode and of tokens in `paper` mode.
    ``pruned_passes`` counts denoising passes from 0; None takes the mode's own: all but the first
    and last for `released`, all for `paper`. ``importance_dtype`` bfloat16 rounds after every
    operation as the release does, which makes more ties; float32 ranks what the release
    meant to rank. ``token_budget`` keeps exactly that many tokens, the most important ones of the
    mode's own first, so that no chunk waits to learn how many the one before it chose.
    """

    mode: Mode = "released"
    keep_ratio: float = 0.3
    pruned_passes: tuple[int, ...] | None = None
    importance_dtype: Literal["float32", "bfloat16"] = "float32"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("off", "released", "paper"):
            raise UsageError(f"mask cache mode {self.mode!r}; there are off, released, paper")
        if not 0 < self.keep_ratio <= 1:
            raise UsageError(
                f"keep_ratio must be above 0 and at most 1, got {self.keep_ratio}; "
                "turn the mask cache off with mode 'off'"
            )
        if self.token_budget is not None:
            if self.token_budget < 1:
                raise UsageError(
                    f"a token budget must be at least 1, got {self.token_budget}; "
                    "leave it out to keep what the keep ratio makes"
                )
            if self.mode == "off":
                raise UsageError(
                    f"a token budget of {self.token_budget} has no meaning with the mask cache "
                    "off; leave it out, or choose mode released or paper"
                )
        if self.importance_dtype not in ("float32", "bfloat16"):
            raise UsageError(
                f"importance_dtype {self.importance_dtype!r}; there are float32, bfloat16"
            )

    def passes(self, num_passes: int) -> frozenset[int]:
        """The pruned ones of ``num_passes`` denoising passes.

        Raises:
            UsageError: ``pruned_passes`` names a pass that is not there, or, in `released` mode,
                pass 0, whose output fills the dropped tokens.
        """
        if self.mode == "off":
            return frozenset()
        if self.pruned_passes is None:
            released = self.mode == "released"
            return frozenset(range(1, num_passes - 1) if released else range(num_passes))
        for number in self.pruned_passes:
            first = 1 if self.mode == "released" else 0
            if not first <= number < num_passes:
                raise UsageError(
                    f"pruned pass {number} is not one of {first}..{num_passes - 1}, which mode "
                    f"{self.mode!r} can prune with {num_passes} denoising passes"
                )
        return frozenset(self.pruned_passes)


@dataclass(frozen=True, kw_only=True)
class KeepSet:
    """The tokens a pass computes. Arrays belong to the mask cache; the next update changes them."""

    keep_index: Int32  # [num_kept], ascending positions in [0, L)
    token_row: Int32  # [L], row of each token in keep_index or -1
    kept: Bool  # [F, h/2, w/2]
    num_selected: int  # before rounding up to a bucket

    @property
    def num_kept(self) -> int:
        return len(self.keep_index)


def round_bfloat16(x: Float) -> Float:
    """Round to the nearest bfloat16, ties to even; still stored as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    return rounded.view(np.float32)


def mean_square(edited: Float, source: Float, *, bfloat16: bool = False) -> Float:
    """Mean squared difference over channels.

    Args:
        edited: [1, C, F, h, w], the chunk's x0.
        source: the same shape.

    Returns:
        [F, h, w] float32, new memory.
    """
    step = round_bfloat16 if bfloat16 else lambda x: x
    difference = step(np.subtract(step(edited[0]), step(source[0]), dtype=np.float32))
    mean = np.asarray(np.mean(step(np.square(difference)), axis=0, dtype=np.float32))
    return np.asarray(step(mean), dtype=np.float32)


def importance_map(d: Float, *, bfloat16: bool = False) -> Float:
    """`mean_square`, min-max normalised over the chunk: [F, h, w] in [0, 1], new memory."""
    step = round_bfloat16 if bfloat16 else lambda x: x
    low, high = d.min(), d.max()
    scale = step(np.asarray(high - low + np.float32(1e-8), dtype=np.float32))
    return np.asarray(step(step(d - low) / scale), dtype=np.float32)


def keep_pixels(importance: Float, keep_ratio: float) -> Bool:
    """The largest share of each frame, with all that tie with its last one. [F, h, w]."""
    F, h, w = importance.shape
    keep = max(1, int(h * w * keep_ratio))
    flat = importance.reshape(F, h * w)
    threshold = np.partition(flat, h * w - keep, axis=1)[:, h * w - keep]
    return np.asarray(flat >= threshold[:, None]).reshape(F, h, w)


def equalise(kept: Bool) -> Bool:
    """Cut every frame to the shortest one's count, dropping the last in raster order."""
    flat = kept.reshape(len(kept), -1)
    shortest = flat.sum(axis=1).min()
    return np.asarray(flat & (np.cumsum(flat, axis=1) <= shortest)).reshape(kept.shape)


def blocks_of_four(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Sum of each 2 x 2 latent pixels, pairs of a row first. [F, h, w] -> [F, h/2, w/2] float32."""
    y = x.astype(np.float32)
    top, bottom = y[:, 0::2], y[:, 1::2]
    summed = (top[..., 0::2] + top[..., 1::2]) + (bottom[..., 0::2] + bottom[..., 1::2])
    return np.asarray(summed, dtype=np.float32)


def released_tokens(importance: Float, keep_ratio: float) -> Bool:
    """[F, h/2, w/2]: at least 3 of 4 latent pixels kept, equally many in each frame."""
    pixels = equalise(keep_pixels(importance, keep_ratio))
    return equalise(blocks_of_four(pixels) > 2)


def paper_tokens(importance: Float, keep_ratio: float) -> Bool:
    """[F, h/2, w/2]: the same largest share of spatial tokens in each frame, no ties added."""
    total = blocks_of_four(importance).sum(axis=0)
    keep = max(1, int(total.size * keep_ratio))
    best = np.argsort(-total.reshape(-1), kind="stable")[:keep]
    kept = np.zeros(total.size, dtype=np.bool_)
    kept[best] = True
    return np.repeat(kept.reshape(1, *total.shape), len(importance), axis=0)


class TokenChoice:
    """Which tokens the next chunk's pruned passes compute, from the chunk before it."""

    def __init__(self, stream: StreamConfig, policy: MaskCachePolicy, num_passes: int) -> None:
        self.policy = policy
        self.pruned_passes = policy.passes(num_passes)
        self.bucket = stream.keep_bucket
        self.grid = (
            stream.num_frame_per_block,
            stream.latent_height // 2,
            stream.latent_width // 2,
        )
        tokens = stream.block_seq_length
        if policy.token_budget is not None and policy.token_budget > tokens:
            raise UsageError(
                f"a token budget of {policy.token_budget} is more than the {tokens} tokens of a "
                f"chunk; choose 1 to {tokens}"
            )
        everything = np.arange(tokens, dtype=np.int32)
        self.full = KeepSet(
            keep_index=everything,
            token_row=everything.copy(),
            kept=np.ones(self.grid, dtype=np.bool_),
            num_selected=tokens,
        )
        self._keep_index = np.empty(tokens, dtype=np.int32)
        self._token_row = np.empty(tokens, dtype=np.int32)
        self._kept = np.empty(self.grid, dtype=np.bool_)

    @property
    def bfloat16(self) -> bool:
        """Whether importance is rounded as the release rounds it."""
        return self.policy.importance_dtype == "bfloat16"

    def __call__(self, edited: Float, source: Float) -> tuple[Float, KeepSet]:
        """From a chunk's latents, [1, C, F, h, w] each.

        Returns:
            Their `mean_square`, and the tokens to keep; the latter's arrays are used again by the
            next call.
        """
        d = mean_square(edited, source, bfloat16=self.bfloat16)
        if not self.pruned_passes:
            return d, self.full
        importance = importance_map(d, bfloat16=self.bfloat16)
        choose = released_tokens if self.policy.mode == "released" else paper_tokens
        return d, self._select(choose(importance, self.policy.keep_ratio), importance)

    def results(
        self, edited: Float, source: Float, *, everything: bool = False
    ) -> dict[str, npt.NDArray[np.generic]]:
        """What `Backend.choose_tokens` writes, by its names. ``everything`` keeps every token."""
        d, keep = self(edited, source)
        if everything:
            keep = self.full
        keep_index = np.full(self.full.num_kept, -1, dtype=np.int32)
        keep_index[: keep.num_kept] = keep.keep_index
        return {
            "importance": importance_map(d, bfloat16=self.bfloat16),
            "peak": d.max(keepdims=True).reshape(1),
            "keep_index": keep_index,
            "token_row": keep.token_row,
            "kept": keep.kept.reshape(-1).view(np.uint8),
            "counts": np.array([keep.num_selected, keep.num_kept], dtype=np.int32),
        }

    def _select(self, tokens: Bool, importance: Float) -> KeepSet:
        chosen = tokens.reshape(-1)
        selected = int(chosen.sum())
        size = self.policy.token_budget or self.bucket_size(selected)
        if size == chosen.size:
            return self.full
        if size != selected:
            # The rule's own tokens first, then the next most important ones.
            order = np.lexsort((-blocks_of_four(importance).reshape(-1), ~chosen))
            chosen = np.zeros_like(chosen)
            chosen[order[:size]] = True
        self._kept.reshape(-1)[:] = chosen
        self._keep_index[:size] = np.flatnonzero(chosen)
        self._token_row.fill(-1)
        self._token_row[self._keep_index[:size]] = np.arange(size, dtype=np.int32)
        return KeepSet(
            keep_index=self._keep_index[:size],
            token_row=self._token_row,
            kept=self._kept,
            num_selected=selected,
        )

    def bucket_size(self, selected: int) -> int:
        """Kept tokens after rounding up: a multiple of the bucket, or all there are."""
        buckets = max(1, -(-selected // self.bucket))
        return min(buckets * self.bucket, self.full.num_kept)

    def sizes(self) -> tuple[int, ...]:
        """Every number of tokens a pass can have, ascending: what a plan's shapes are made for."""
        tokens = self.full.num_kept
        if self.policy.token_budget is not None:
            return tuple(sorted({self.policy.token_budget, tokens}))
        return (*range(self.bucket, tokens, self.bucket), tokens)
