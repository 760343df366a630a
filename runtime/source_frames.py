"""The newest source frames: where the encoder finds them, and what `passthrough` hands out."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from liveedit.bundle import CodecSpec
from liveedit.runtime.backend import Backend, Frames
from liveedit.runtime.device_frames import ForeignFrames
from liveedit.runtime.pixel_format import FrameLayout

Numbers = TypeVar("Numbers", int, npt.NDArray[np.int64])
Frame = npt.NDArray[np.uint8] | ForeignFrames


class Group(NamedTuple):
    """What the encoder takes at a time."""

    frames: Frames  # their places in the ring
    staged: frozenset[int]  # those that lie on the device already, and not there


class SourceFrames:
    """A ring in the backend's memory, for the chunks on their way and the codec's delay.

    Slots are shifted so that a group never wraps.
    """

    def __init__(
        self,
        backend: Backend,
        layout: FrameLayout,
        codec: CodecSpec,
        num_latents: int,
        *,
        keep: bool,
    ) -> None:
        """``num_latents``: of a chunk. ``keep``: frames that lie on the device come here too."""
        self._backend, self._keep = backend, keep
        self._shift = -codec.encode_first_frames % codec.encode_next_frames
        self._per_chunk = num_latents * codec.encode_next_frames
        self._ring = backend.frame_ring((backend.depth + 2) * self._per_chunk, layout)
        self.reset()

    def reset(self) -> None:
        """Back to the first frame."""
        self._count = 0
        self._staged: list[bool] = []  # of the group that is not complete
        self._last_staged: ForeignFrames | None = None

    @property
    def num_grouped(self) -> int:
        """Frames that wait for their group."""
        return len(self._staged)

    def room(self, count: int) -> Frames:
        """Slots of the next frames, at most ``count`` and at most a chunk's, in one piece."""
        slot = self._slots(self._count)
        return self._ring[slot : slot + min(count, self._per_chunk)]

    def last(self) -> Frame:
        """The newest frame; it can be added again, any number of times."""
        return self._last_staged or self._ring[self._slots(self._count - 1)].copy()

    def show(self, numbers: npt.NDArray[np.int64]) -> Frames:
        """New memory with these frames, of the newest ones."""
        return self._ring[self._slots(numbers)]

    def add(self, frame: Frame) -> None:
        slot = self._ring[self._slots(self._count)]
        self._last_staged = None
        if isinstance(frame, ForeignFrames):
            keep = slot if self._keep else None
            self._last_staged = self._backend.stage_frame(self.num_grouped, frame, keep)
        elif frame.__array_interface__["data"] != slot.__array_interface__["data"]:
            slot[...] = frame
        self._staged.append(self._last_staged is not None)
        self._count += 1

    def take_group(self) -> Group:
        """All frames that wait, and their places. The next frame starts another group."""
        stop = self._slots(self._count - 1) + 1
        staged = frozenset(i for i, there in enumerate(self._staged) if there)
        group = Group(self._ring[stop - self.num_grouped : stop], staged)
        self._staged.clear()
        return group

    def _slots(self, numbers: Numbers) -> Numbers:
        return (numbers + self._shift) % len(self._ring)
