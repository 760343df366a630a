"""Whether a long stream gets worse: one known edit, looped, in both precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from liveedit.errors import UsageError
from liveedit.evaluation.known_edits import KnownEdit
from liveedit.evaluation.quality import SURE, psnr
from liveedit.export.graph_trial import Trial
from liveedit.runtime.backend import Frames


@dataclass(frozen=True, kw_only=True)
class Drift:
    """PSNR in dB in the edited region against the exact result, chunk by chunk.

    The clip runs forwards and backwards, so that after ``period`` chunks its content repeats. The
    first chunk is left out: it fills the window and has no mask.
    """

    clip: str
    mask_cache: str
    chunks: int
    period: int
    base: tuple[float, ...]  # per chunk, rounded to 0.001
    quantised: tuple[float, ...]

    def fall(self, curve: tuple[float, ...]) -> float:
        """From the first period after the first chunk to the last period."""
        first, last = self._ends()
        return float(np.mean([curve[i] for i in first]) - np.mean([curve[i] for i in last]))

    @property
    def excess_db(self) -> float:
        """By how much more the quantised stream falls."""
        return self.fall(self.quantised) - self.fall(self.base)

    def last_like_second(self) -> int:
        """The last chunk that shows what chunk 2 shows, counted from 1."""
        return 2 + (self.chunks - 2) // self.period * self.period

    def _ends(self) -> tuple[range, range]:
        last = self.last_like_second()
        return range(1, 1 + self.period), range(last - self.period, last)


def needed_chunks(num_frames: int, chunk_frames: int) -> tuple[int, int]:
    """Chunks after which a clip that goes there and back repeats, and the fewest to judge.

    Raises:
        UsageError: the clip is not a whole number of chunks.
    """
    if num_frames % chunk_frames or not num_frames:
        raise UsageError(
            f"the drift clip has {num_frames} frames, which is no multiple of the "
            f"{chunk_frames} frames of a chunk"
        )
    period = 2 * num_frames // chunk_frames
    return period, 2 * period + 2


def longest_held(
    trial: Trial, edits: Sequence[KnownEdit], num_chunks: int, chunk_frames: int
) -> KnownEdit:
    """The edit that loses least over ``num_chunks`` from its second chunk on.

    One that high precision loses by itself shows nothing of what quantising does to a stream.
    """
    if len(edits) == 1:
        return edits[0]
    falls = []
    for edit in edits:
        scores = curve(trial, edit, num_chunks, chunk_frames)
        half = num_chunks // 2
        falls.append(float(np.mean(scores[1:half]) - np.mean(scores[half:])))
    return edits[int(np.argmin(falls))]


def curve(trial: Trial, edit: KnownEdit, num_chunks: int, chunk_frames: int) -> tuple[float, ...]:
    """Edit the looped clip and score every chunk."""
    there_and_back = np.arange(2 * len(edit.source))
    there_and_back[len(edit.source) :] = there_and_back[: len(edit.source)][::-1]

    def source() -> Iterator[Frames]:
        for chunk in range(num_chunks):
            at = (chunk * chunk_frames + np.arange(chunk_frames)) % len(there_and_back)
            yield edit.source[there_and_back[at]]

    out = []
    for first_frame, frames in trial.stream(edit.prompt, source()):
        at = there_and_back[(first_frame + np.arange(len(frames))) % len(there_and_back)]
        value = psnr(frames, edit.target[at], edit.mask[at] >= SURE)
        out.append(round(min(float(np.nan_to_num(value, nan=100.0)), 100.0), 3))
    return tuple(out)
