"""A device in host memory: the kernels' host twins, streams and events that keep CUDA's rules.

For tests without a GPU. It raises on what CUDA forbids: waiting or allocating during a capture,
touching memory that is not allocated, touching pinned memory that a copy may still use. With an
``order`` nothing runs before someone waits for it, and then in any order that the events allow:
work that depends on an order which nothing guarantees gives wrong results.
"""

from __future__ import annotations

import ctypes
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from liveedit.errors import DeviceError
from liveedit.runtime.device import Bytes, Event, Graph, Pinned, Stream
from liveedit.runtime.dlpack import CPU
from liveedit.runtime.kernels import check_launch

ALIGNMENT_BYTES = 256
Clock = dict[int, int]  # stream number -> how many of its operations
Order = Callable[[Sequence[int]], int]  # the stream that goes next, of those that can


def host_bytes(address: int, nbytes: int) -> Bytes:
    """The bytes at an address of this process."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def _reached(clock: Clock, target: Clock) -> bool:
    return all(clock.get(stream, 0) >= count for stream, count in target.items())


def _merge(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


class HostMemory:
    """Aligned host memory that its device knows of."""

    def __init__(self, device: HostDevice, nbytes: int) -> None:
        self._device = device
        self._raw: Bytes | None = np.zeros(nbytes + ALIGNMENT_BYTES, dtype=np.uint8)
        self.address = self._raw.ctypes.data + -self._raw.ctypes.data % ALIGNMENT_BYTES
        self.nbytes = nbytes

    def free(self) -> None:
        self._device.forbid_in_capture("free memory")
        if self._raw is None:
            raise DeviceError("memory was freed twice")
        self._raw = None
        self._device.forget(self)


@dataclass(frozen=True)
class _Use:
    start: int
    stop: int
    stream: int
    index: int
    writes: bool


class HostPinned(HostMemory):
    """Host memory that copies use; it knows which of them the host has not waited for."""

    def __init__(self, device: HostDevice, nbytes: int) -> None:
        super().__init__(device, nbytes)
        self._uses: list[_Use] = []

    def use(self, offset: int, nbytes: int, stream: HostStream, *, writes: bool) -> None:
        if offset < 0 or offset + nbytes > self.nbytes:
            raise DeviceError(
                f"a copy of {nbytes} bytes at {offset} in {self.nbytes} bytes of pinned memory"
            )
        index = stream.clock.get(stream.number, 0) + 1
        self._uses.append(_Use(offset, offset + nbytes, stream.number, index, writes))

    def array(self, offset: int, nbytes: int, *, write: bool = False) -> Bytes:
        if self._raw is None:
            raise DeviceError("pinned memory is used after it was freed")
        known = self._device.known
        self._uses = [u for u in self._uses if known.get(u.stream, 0) < u.index]
        for use in self._uses:
            if use.start < offset + nbytes and offset < use.stop and (write or use.writes):
                raise DeviceError(
                    f"pinned memory is {'written' if write else 'read'} before the copy that "
                    f"{'writes' if use.writes else 'reads'} it was waited for"
                )
        return host_bytes(self.address + offset, nbytes)


class HostEvent:
    """A vector clock."""

    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self.clock: Clock = {}

    def done(self) -> bool:
        device = self._device
        device.forbid_in_capture("ask for an event")
        if not _reached(device._done, self.clock):
            return False
        _merge(device.known, self.clock)
        return True

    def wait(self) -> None:
        device = self._device
        device.forbid_in_capture("wait for an event")
        device.counts["event wait"] += 1
        device.run_until(self.clock)
        _merge(device.known, self.clock)

    def close(self) -> None:
        self._device.counts["events"] -= 1


class HostGraph:
    """Captured operations; a launch is one operation."""

    def __init__(self, operations: list[Callable[[], None]]) -> None:
        self._operations = operations

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, HostStream)
        stream.device.counts["graph launch"] += 1
        stream.queue(self._run)

    def _run(self) -> None:
        for operation in self._operations:
            operation()

    def close(self) -> None:
        self._operations = []


@dataclass
class _Operation:
    run: Callable[[], None]
    needs: Clock


class HostStream:
    """A queue. Its clock says which operations are sure to be done before its next one."""

    def __init__(self, device: HostDevice, number: int) -> None:
        self.device = device
        self.number = self.handle = number
        self.clock: Clock = {}
        self.waiting: deque[_Operation] = deque()
        self._captured: list[Callable[[], None]] | None = None

    def queue(self, run: Callable[[], None]) -> None:
        if self._captured is not None:
            self._captured.append(run)
            return
        operation = _Operation(run, dict(self.clock))
        self.clock[self.number] = self.clock.get(self.number, 0) + 1
        self.waiting.append(operation)
        if self.device.order is None:
            self.device.run_next(self)

    def upload(self, dst: int, src: Pinned, offset: int, nbytes: int) -> None:
        assert isinstance(src, HostPinned)
        self.device.check(dst, nbytes)
        self._outside_capture("copy from the host")
        src.use(offset, nbytes, self, writes=False)
        self._copy(dst, src.address + offset, nbytes)

    def download(self, dst: Pinned, offset: int, src: int, nbytes: int) -> None:
        assert isinstance(dst, HostPinned)
        self.device.check(src, nbytes)
        self._outside_capture("copy to the host")
        dst.use(offset, nbytes, self, writes=True)
        self._copy(dst.address + offset, src, nbytes)

    def copy(self, dst: int, src: int, nbytes: int) -> None:
        self.device.check(dst, nbytes)
        self.device.check(src, nbytes)
        self._copy(dst, src, nbytes)

    def _copy(self, dst: int, src: int, nbytes: int) -> None:
        self.device.counts["copy"] += 1
        self.queue(lambda: self.device.do(ctypes.memmove, dst, src, nbytes))

    def copy_rows(
        self, dst: int, dst_pitch: int, src: int, src_pitch: int, width: int, rows: int
    ) -> None:
        self.device.check(dst, dst_pitch * (rows - 1) + width)
        self.device.check(src, src_pitch * (rows - 1) + width)
        self.device.counts["copy"] += 1

        def run() -> None:
            for row in range(rows if self.device.computes else 0):
                ctypes.memmove(dst + row * dst_pitch, src + row * src_pitch, width)

        self.queue(run)

    def zero(self, dst: int, nbytes: int) -> None:
        self.device.check(dst, nbytes)
        self.device.counts["zero"] += 1
        self.queue(lambda: self.device.do(ctypes.memset, dst, 0, nbytes))

    def launch(self, kernel: str, *arguments: int | float) -> None:
        self.device.counts["launch"] += 1
        run = self.device.kernel(kernel, arguments)
        self.queue(run)

    def call(self, work: Callable[[], None]) -> None:
        self.device.counts["call"] += 1
        self.queue(work)

    def record(self, event: Event) -> None:
        assert isinstance(event, HostEvent)
        self._outside_capture("record an event")
        event.clock = dict(self.clock)

    def wait(self, event: Event) -> None:
        assert isinstance(event, HostEvent)
        self._outside_capture("wait for an event of another stream")
        _merge(self.clock, event.clock)

    def synchronize(self) -> None:
        self.device.forbid_in_capture("synchronise")
        self.device.counts["sync"] += 1
        self.device.run_until(self.clock)
        _merge(self.device.known, self.clock)

    def begin_capture(self) -> None:
        self.device.forbid_in_capture("begin a capture")
        self.device.capturing = self
        self._captured = []

    def end_capture(self) -> Graph:
        assert self._captured is not None
        operations, self._captured, self.device.capturing = self._captured, None, None
        self.device.counts["capture"] += 1
        return HostGraph(operations)

    def close(self) -> None:
        self.device.counts["streams"] -= 1

    def _outside_capture(self, what: str) -> None:
        if self._captured is not None:
            raise DeviceError(f"a stream that is captured cannot {what}")


M = TypeVar("M", bound=HostMemory)


class HostDevice:
    """See the module. ``counts``: what was queued, waited for, and is held."""

    name = "host"
    dlpack_device = (CPU, 0)

    def __init__(
        self,
        library: ctypes.CDLL | None,
        *,
        memory_bytes: int = 1 << 40,
        order: Order | None = None,
    ) -> None:
        """``library``: of `load_kernels`, the host twin; None queues, but does nothing."""
        self._library = library
        self.computes = library is not None
        self._left = memory_bytes
        self.order = order
        self.counts: Counter[str] = Counter()
        self.known: Clock = {}  # what the host has waited for
        self.capturing: HostStream | None = None
        self._done: Clock = {}
        self._streams: list[HostStream] = []
        self._live: list[HostMemory] = []

    # What `Device` promises

    def free_bytes(self) -> int:
        return self._left

    def alloc(self, nbytes: int) -> HostMemory:
        return self._alloc(HostMemory(self, nbytes), "alloc")

    def alloc_pinned(self, nbytes: int) -> HostPinned:
        return self._alloc(HostPinned(self, nbytes), "alloc pinned")

    def _alloc(self, memory: M, what: str) -> M:
        self.forbid_in_capture("allocate")
        self.counts[what] += 1
        self.counts["bytes"] += memory.nbytes
        if memory.nbytes > self._left:
            raise DeviceError(f"out of memory: {memory.nbytes} bytes asked, {self._left} free")
        self._left -= memory.nbytes
        self._live.append(memory)
        return memory

    def stream(self) -> HostStream:
        self.counts["streams"] += 1
        stream = HostStream(self, len(self._streams))
        self._streams.append(stream)
        return stream

    def foreign_stream(self, handle: int) -> HostStream:
        return self._streams[handle]

    def place_of(self, address: int) -> tuple[int, int]:
        mine = any(m.address <= address < m.address + m.nbytes for m in self._live)
        return self.dlpack_device if mine else (CPU, 0)

    def event(self) -> HostEvent:
        self.counts["events"] += 1
        return HostEvent(self)

    def scratch_bytes(self, name: str, *sizes: int) -> int:
        if self._library is None:
            return 1 << 20
        return int(getattr(self._library, f"liveedit_{name}_scratch")(*sizes))

    def close(self) -> None:
        pass

    # For its parts

    def do(self, work: Callable[..., object], *arguments: int) -> None:
        """Touch memory, unless this device only counts."""
        if self.computes:
            work(*arguments)

    def kernel(self, name: str, arguments: Sequence[Any]) -> Callable[[], None]:
        if self._library is None:
            return lambda: None
        function = getattr(self._library, f"liveedit_host_{name}")
        for kind, value in zip(function.argtypes, arguments, strict=True):
            if kind is ctypes.c_void_p and value:
                self.check(int(value), 1)
        return lambda: check_launch(function(*arguments), name)

    def check(self, address: int, nbytes: int) -> None:
        for memory in self._live:
            if memory.address <= address and address + nbytes <= memory.address + memory.nbytes:
                return
        raise DeviceError(
            f"{nbytes} bytes at {address:#x} are not in any one allocation: not allocated, freed, "
            "or past the end"
        )

    def forget(self, memory: HostMemory) -> None:
        self._left += memory.nbytes
        self.counts["bytes"] -= memory.nbytes
        self._live.remove(memory)

    def forbid_in_capture(self, what: str) -> None:
        if self.capturing is not None:
            raise DeviceError(f"the host must not {what} while a stream is captured")

    def run_next(self, stream: HostStream) -> None:
        operation = stream.waiting.popleft()
        assert _reached(self._done, operation.needs)
        operation.run()
        self._done[stream.number] = self._done.get(stream.number, 0) + 1

    def run_until(self, target: Clock) -> None:
        while not _reached(self._done, target):
            assert self.order is not None
            ready = [
                s.number
                for s in self._streams
                if s.waiting and _reached(self._done, s.waiting[0].needs)
            ]
            self.run_next(self._streams[self.order(ready)])
