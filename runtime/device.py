"""What a stream needs of a device: memory, streams, events, graphs. Nothing of engines.

Two implementations: `liveedit.runtime.cuda_device.CudaDevice`, and
`liveedit.runtime.host_device.HostDevice`, which does the same in host memory for tests. Addresses
are plain integers. Work on one stream runs in order; between streams only events order it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Memory(Protocol):
    """A part of the device's memory."""

    address: int
    nbytes: int

    def free(self) -> None:
        """Give it back. It must not be in use."""


class Pinned(Protocol):
    """Host memory that copies to and from the device need not wait for."""

    address: int
    nbytes: int

    def array(self, offset: int, nbytes: int, *, write: bool = False) -> Bytes:
        """A part of it. The caller knows that no queued copy still writes (or reads) it."""

    def free(self) -> None:
        """Give it back. It must not be in use."""


class Event(Protocol):
    """A place in a stream's work; before its first record it has happened."""

    def done(self) -> bool:
        """Whether it has happened."""

    def wait(self) -> None:
        """Block until it has happened."""

    def close(self) -> None: ...


class Graph(Protocol):
    """Captured work."""

    def launch(self, stream: Stream) -> None: ...

    def close(self) -> None: ...


class Stream(Protocol):
    """A queue of work. Each method queues and returns."""

    handle: int  # a cudaStream_t

    def upload(self, dst: int, src: Pinned, offset: int, nbytes: int) -> None: ...

    def download(self, dst: Pinned, offset: int, src: int, nbytes: int) -> None: ...

    def copy(self, dst: int, src: int, nbytes: int) -> None: ...

    def copy_rows(
        self, dst: int, dst_pitch: int, src: int, src_pitch: int, width: int, rows: int
    ) -> None:
        """``rows`` pieces of ``width`` bytes, their starts a pitch apart."""

    def zero(self, dst: int, nbytes: int) -> None: ...

    def launch(self, kernel: str, *arguments: int | float) -> None:
        """A launcher of plugins/launchers.h, without its stream."""

    def call(self, work: Callable[[], None]) -> None:
        """``work`` queues something on ``handle`` by itself: an engine's own call."""

    def record(self, event: Event) -> None: ...

    def wait(self, event: Event) -> None: ...

    def synchronize(self) -> None:
        """Block until everything queued is done."""

    def begin_capture(self) -> None:
        """What is queued from now on is not done but remembered. No waiting, no allocation."""

    def end_capture(self) -> Graph: ...

    def close(self) -> None: ...


class Device(Protocol):
    """One device of this process."""

    name: str
    dlpack_device: tuple[int, int]  # DLPack's kind and number of its memory

    def free_bytes(self) -> int:
        """What can still be allocated."""

    def alloc(self, nbytes: int) -> Memory: ...

    def alloc_pinned(self, nbytes: int) -> Pinned: ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def foreign_stream(self, handle: int) -> Stream:
        """A stream of another library of this process. Not to be closed."""

    def place_of(self, address: int) -> tuple[int, int]:
        """DLPack's kind and number of the memory there, whoever allocated it."""

    def scratch_bytes(self, name: str, *sizes: int) -> int:
        """A function ``liveedit_NAME_scratch`` of the kernel library."""

    def close(self) -> None:
        """Free what the device object holds. Memory, streams and events are their owners'."""
