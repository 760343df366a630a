"""What a backend is that does everything at once: no queues, no events, nothing to capture."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from liveedit.runtime.backend import Array, Frames, Stage
from liveedit.runtime.device_frames import ForeignFrames, Intake
from liveedit.runtime.pixel_format import FrameLayout

_HERE: AbstractContextManager[None] = nullcontext()


class HostOutput:
    """A chunk's results and frames in memory of its own."""

    def __init__(self, num_frames: int, layout: FrameLayout) -> None:
        self.kept: dict[str, Array] = {}
        self.pixels: Frames = np.empty((num_frames, *layout.shape), dtype=np.uint8)

    def ready(self) -> bool:
        return True

    def results(self) -> Mapping[str, Array]:
        return self.kept

    def frames(self, start: int, stop: int) -> Frames:
        return self.pixels[start:stop]

    def release(self) -> None:
        pass


class HostOrder:
    """The ordering half of `Backend` where every call is done when it returns."""

    depth = 1
    immediate = True
    intake: Intake | None = None
    _layout = FrameLayout(0, 0)

    def start(self) -> None:
        pass

    def frame_ring(self, count: int, layout: FrameLayout) -> Frames:
        self._layout = layout
        return np.empty((count, *layout.shape), dtype=np.uint8)

    def output(self, num_frames: int) -> HostOutput:
        return HostOutput(num_frames, self._layout)

    def stage_frame(self, index: int, frame: ForeignFrames, keep: Frames | None) -> ForeignFrames:
        raise AssertionError("frames on a device were let through")

    def stage(self, stage: Stage) -> AbstractContextManager[None]:
        return _HERE

    def record(self, event: str) -> None:
        pass

    def wait(self, event: str) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def write_addresses(self, table: str, buffers: Sequence[str]) -> None:
        pass

    def replay(self, key: Hashable, body: Callable[[], None]) -> None:
        body()
