"""One clip through the editor: read, fit, edit, put back, write. The loop of ``liveedit edit``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from liveedit.errors import BackendError, LiveEditError, StreamError
from liveedit.runtime.composite import SoftMask, lay_over, paint_mask
from liveedit.runtime.fit import Fit
from liveedit.runtime.resample import Image
from liveedit.runtime.video_reader import BrokenVideo, SourceFrame, VideoReader
from liveedit.runtime.video_writer import VideoWriter


class Chunk(Protocol):
    """What is used of `liveedit.runtime.stream.EditedChunk`."""

    @property
    def index(self) -> int: ...
    @property
    def first_frame(self) -> int: ...
    @property
    def frames(self) -> npt.NDArray[np.uint8]: ...
    @property
    def latent_rows(self) -> npt.NDArray[np.int64]: ...
    @property
    def importance(self) -> npt.NDArray[np.float32]: ...
    @property
    def peak_change(self) -> float: ...
    @property
    def kept(self) -> npt.NDArray[np.bool_]: ...


class Editor(Protocol):
    """What is used of `liveedit.runtime.stream.StreamEditor`."""

    def push(self, frames: npt.NDArray[np.uint8]) -> Sequence[Chunk]: ...
    def flush(self) -> Sequence[Chunk]: ...


@dataclass(frozen=True)
class Outcome:
    """How many frames were written, and what ended the clip early, if anything did."""

    num_video_frames: int
    ended_by: LiveEditError | None


class ClipEdit:
    """Edits one clip into one or two open writers.

    Args:
        editor: ready to take frames, its prompt set.
        fit: between the source's size and the editor's.
        output: gets the edited frames and the sound.
        composite: lays the edit over the untouched source through this mask.
        mask_video: gets a picture of the edit mask over the source.
        on_progress: called with (frames read, frames written) after every chunk.
    """

    def __init__(
        self,
        editor: Editor,
        fit: Fit,
        output: VideoWriter,
        *,
        composite: SoftMask | None = None,
        mask_video: VideoWriter | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._editor = editor
        self._fit = fit
        self._output = output
        self._composite = composite
        self._mask_video = mask_video
        self._on_progress = on_progress
        self._soft_mask = composite or SoftMask()
        self._waiting: deque[SourceFrame] = deque()
        self._num_read = 0
        self._num_written = 0

    def run(self, reader: VideoReader) -> Outcome:
        """Edit every frame of ``reader``.

        A clip that breaks off, or a stream that cannot go on, ends the output early but in good
        order: what was finished is written and the outcome says why.

        Raises:
            LiveEditError: an output cannot be written, or nothing was finished before the end.
        """
        ended_by: LiveEditError | None = None
        try:
            try:
                for frame in reader.frames(self._output.copy):
                    self._take(frame)
            except BrokenVideo as error:
                ended_by = error
            self._put(self._editor.flush())
        except (StreamError, BackendError) as error:
            if not self._num_written:
                raise
            ended_by = error
        return Outcome(self._num_written, ended_by)

    def _take(self, frame: SourceFrame) -> None:
        self._num_read += 1
        shown = self._fit.to_model(frame.image)
        if not self._needs_source:
            frame = SourceFrame(np.empty((0, 0, 3), np.uint8), frame.pts, frame.duration)
        self._waiting.append(frame)
        self._put(self._editor.push(shown[None]))

    @property
    def _needs_source(self) -> bool:
        """Whether source frames must be held until their edit comes out: a chunk or two."""
        return bool(self._fit.needs_source or self._composite or self._mask_video)

    def _put(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            assert chunk.first_frame == self._num_written, chunk.first_frame
            opacity = self._soft_mask(chunk.importance, chunk.peak_change)  # [F, h, w]
            for edited, latent in zip(chunk.frames, chunk.latent_rows, strict=True):
                self._put_frame(edited, opacity[latent], chunk.kept[latent])
            self._num_written += len(chunk.frames)
            if self._on_progress is not None:
                self._on_progress(self._num_read, self._num_written)

    def _put_frame(self, edited: Image, opacity: Image, kept: npt.NDArray[np.bool_]) -> None:
        source = self._waiting.popleft()
        whole = self._fit.to_source(edited, source.image)
        if self._composite or self._mask_video:
            mask = self._fit.mask_to_source(opacity)
            if self._composite:
                whole = lay_over(source.image, whole, mask)
            if self._mask_video is not None:
                tokens = self._fit.tokens_to_source(kept)
                painted = paint_mask(source.image, mask, tokens)
                self._mask_video.write(painted, source.pts, source.duration)
        self._output.write(whole, source.pts, source.duration)
