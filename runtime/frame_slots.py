"""Where finished chunks arrive on the host: pinned slots, lent out without a copy if possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from liveedit.errors import UsageError
from liveedit.runtime.backend import Array, Frames
from liveedit.runtime.device import Device, Event, Pinned, Stream
from liveedit.runtime.device_frames import LentFrames

# Chunks whose frames a caller can hold on the device: a flush returns up to three at once. On the
# host what is more is copied.
MOST_LENT = 4


@dataclass(frozen=True)
class ResultField:
    """One buffer of the `result` region, by its place in it."""

    offset: int
    nbytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Lease:
    """Keeps a slot from being used again while an array shows it."""

    def __init__(self, slot: FrameSlot, array: Frames) -> None:
        self._slot = slot
        self.__array_interface__ = array.__array_interface__
        slot.holders += 1
        slot.lent += 1

    def __del__(self) -> None:
        self._slot._returned()


class FrameSlot:
    """Pinned room for one chunk: its `result` region and its frames, with their events."""

    def __init__(self, slots: FrameSlots, device: Device, number: int) -> None:
        self._slots = slots
        # Frames that stay on the device need no room here.
        self._on_device = slots.device_frames and slots.device_frames + number * slots.frames_bytes
        frames_bytes = 0 if self._on_device else slots.frames_bytes
        self._pinned: Pinned = device.alloc_pinned(slots.frames_at + frames_bytes)
        self._results_event: Event = device.event()
        self._events: list[Event] = [device.event() for _ in range(slots.num_parts)]
        self._stops: list[int] = []
        self.holders = 0  # the stream, while the chunk is on its way, and every array
        self.lent = 0  # arrays that show it

    # What a backend queues

    def take_results(self, stream: Stream, address: int) -> None:
        stream.download(self._pinned, 0, address, self._slots.results_bytes)
        stream.record(self._results_event)

    def take_frames(self, stream: Stream, address: int, start: int, count: int) -> None:
        size = self._slots.frame_bytes
        if self._on_device:
            stream.copy(self._on_device + start * size, address, count * size)
        else:
            stream.download(
                self._pinned, self._slots.frames_at + start * size, address, count * size
            )
        stream.record(self._events[len(self._stops)])
        self._stops.append(start + count)

    # What `ChunkOutput` promises

    def ready(self) -> bool:
        events = (self._results_event, *self._events[: len(self._stops)])
        return all(event.done() for event in events)

    def results(self) -> Mapping[str, Array]:
        self._results_event.wait()
        raw = self._pinned.array(0, self._slots.results_bytes)
        return {
            name: raw[f.offset : f.offset + f.nbytes].view(f.dtype).reshape(f.shape)
            for name, f in self._slots.fields.items()
        }

    def frames(self, start: int, stop: int) -> Frames | LentFrames:
        slots, begin = self._slots, 0
        for event, end in zip(self._events, self._stops, strict=False):
            if begin < stop and start < end:
                event.wait()
            begin = end
        at, size = slots.frames_at, slots.frame_bytes
        if self._on_device:
            return self._lend(start, stop)
        raw = self._pinned.array(at + start * size, (stop - start) * size)
        frames = raw.reshape(stop - start, *slots.frame_shape)
        if not slots.can_lend(self):
            return frames.copy()
        return np.asarray(_Lease(self, frames))

    def _lend(self, start: int, stop: int) -> LentFrames:
        slots = self._slots
        assert self._on_device
        if not slots.can_lend(self):
            raise UsageError(
                f"the frames of {slots.num_lent} chunks are still held, and more do not fit on "
                "the device. Let go of them, or copy them, before the next push."
            )
        self.holders += 1
        self.lent += 1
        address = self._on_device + start * slots.frame_bytes
        shape = (stop - start, *slots.frame_shape)
        return LentFrames(address, shape, slots.dlpack_device, self._returned)

    def _returned(self) -> None:
        self.lent -= 1
        self.let_go()

    def release(self) -> None:
        # Frames that a flush has made up were never asked for, but still arrive here.
        self._results_event.wait()
        for event in self._events[: len(self._stops)]:
            event.wait()
        self.let_go()

    # Life

    def open(self) -> FrameSlot:
        self._stops.clear()
        self.holders = 1
        return self

    def let_go(self) -> None:
        self.holders -= 1
        if self.holders == 0:
            self._slots.give_back(self)

    def free(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._pinned.free)
            for event in (self._results_event, *self._events):
                stack.callback(event.close)


class FrameSlots:
    """All slots of a stream. An array lent out stays valid until it is dropped."""

    def __init__(
        self,
        device: Device,
        *,
        depth: int,
        fields: Mapping[str, ResultField],
        results_bytes: int,
        num_frames: int,
        num_parts: int,
        frame_shape: tuple[int, ...],
        device_frames: int | None = None,
    ) -> None:
        """``depth`` chunks on their way at a time, each in ``num_parts`` copies of frames.

        ``device_frames``: where ``depth + MOST_LENT`` chunks stay on the device, if they do.
        """
        self.device_frames = device_frames
        self.dlpack_device = device.dlpack_device
        self.num_lent = MOST_LENT if device_frames else 2
        self.fields = fields
        self.results_bytes = results_bytes
        self.frames_at = -(-results_bytes // 256) * 256
        self.frame_shape = frame_shape
        self.frame_bytes = math.prod(frame_shape)
        self.frames_bytes = num_frames * self.frame_bytes
        self.num_parts = num_parts
        self._closed = False
        self._all = [FrameSlot(self, device, number) for number in range(depth + self.num_lent)]
        self._free = list(self._all)

    def can_lend(self, slot: FrameSlot) -> bool:
        """Whether an array may show the slot; else it must be copied, or none would be left."""
        return bool(slot.lent) or sum(bool(s.lent) for s in self._all) < self.num_lent

    def open(self) -> FrameSlot:
        """A slot of the caller's, until it lets go."""
        assert self._free, "every slot is on its way"
        return self._free.pop().open()

    def give_back(self, slot: FrameSlot) -> None:
        if not self._closed:
            self._free.append(slot)
        elif not slot.lent:
            slot.free()

    def close(self) -> None:
        """Free what no array shows, also what was on its way. The device is idle."""
        self._closed = True
        with ExitStack() as stack:  # each is tried, also where one before it fails
            for slot in self._all:
                if slot.lent:
                    slot.holders = slot.lent
                else:
                    stack.callback(slot.free)
