"""What CUDA forbids, the device in host memory refuses."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from liveedit.errors import BackendError, DeviceError
from liveedit.runtime.host_device import HostDevice, host_bytes


def test_copies_and_captures_do_what_they_say(host_library: ctypes.CDLL) -> None:
    device = HostDevice(host_library)
    memory, pinned, stream = device.alloc(1024), device.alloc_pinned(64), device.stream()
    assert memory.address % 256 == 0
    pinned.array(0, 64, write=True)[:] = np.arange(64)
    stream.upload(memory.address, pinned, 0, 64)
    stream.copy_rows(memory.address + 512, 16, memory.address, 8, 4, 3)
    stream.begin_capture()
    stream.zero(memory.address, 8)
    stream.copy(memory.address + 8, memory.address + 512, 4)
    graph = stream.end_capture()
    assert host_bytes(memory.address, 8).tolist() == list(range(8))
    graph.launch(stream)
    stream.synchronize()
    assert host_bytes(memory.address, 12).tolist() == [0] * 8 + [0, 1, 2, 3]
    assert host_bytes(memory.address + 512, 40).reshape(-1, 8)[::2, :4].tolist() == [
        [0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]
    ]  # fmt: skip
    assert device.counts["capture"] == device.counts["graph launch"] == 1


def test_pinned_memory_is_touched_after_its_event_only(host_library: ctypes.CDLL) -> None:
    for order in (None, min):
        device = HostDevice(host_library, order=order)
        memory, pinned = device.alloc(256), device.alloc_pinned(64)
        stream, event = device.stream(), device.event()
        stream.upload(memory.address, pinned, 0, 32)
        assert pinned.array(0, 32).tolist() == [0] * 32  # read by the copy, not written
        pinned.array(32, 32, write=True)
        with pytest.raises(DeviceError, match="pinned memory is written before the copy"):
            pinned.array(0, 1, write=True)
        stream.record(event)
        stream.download(pinned, 0, memory.address, 8)
        event.wait()
        with pytest.raises(DeviceError, match="is read before the copy that writes it"):
            pinned.array(4, 1)
        pinned.array(8, 56, write=True)
        stream.synchronize()
        pinned.array(0, 64, write=True)


def test_an_event_orders_streams(host_library: ctypes.CDLL) -> None:
    """Without the wait the second stream's copy may come first, and with `max` it does."""
    for waits in (False, True):
        device = HostDevice(host_library, order=max)
        memory, pinned = device.alloc(256), device.alloc_pinned(8)
        first, second, event = device.stream(), device.stream(), device.event()
        pinned.array(0, 8, write=True)[:] = 7
        first.upload(memory.address, pinned, 0, 8)
        first.record(event)
        if waits:
            second.wait(event)
        second.copy(memory.address + 8, memory.address, 8)
        second.synchronize()
        assert host_bytes(memory.address + 8, 8).tolist() == [7 if waits else 0] * 8
        first.synchronize()


def test_nothing_blocks_or_allocates_in_a_capture(host_library: ctypes.CDLL) -> None:
    device = HostDevice(host_library)
    memory, pinned = device.alloc(256), device.alloc_pinned(8)
    stream, other, event = device.stream(), device.stream(), device.event()
    stream.begin_capture()
    for call, what in (
        (stream.synchronize, "synchronise"),
        (event.wait, "wait for an event"),
        (lambda: device.alloc(1), "allocate"),
        (memory.free, "free memory"),
        (other.begin_capture, "begin a capture"),
    ):
        with pytest.raises(DeviceError, match=f"the host must not {what} while"):
            call()
    for call, what in (
        (lambda: stream.wait(event), "wait for an event of another stream"),
        (lambda: stream.record(event), "record an event"),
        (lambda: stream.upload(memory.address, pinned, 0, 8), "copy from the host"),
    ):
        with pytest.raises(DeviceError, match=f"captured cannot {what}"):
            call()
    stream.end_capture().close()


def test_memory_is_used_inside_and_before_its_end(host_library: ctypes.CDLL) -> None:
    device = HostDevice(host_library, memory_bytes=1000)
    with pytest.raises(DeviceError, match="out of memory: 1001 bytes asked, 1000 free"):
        device.alloc(1001)
    memory, stream = device.alloc(256), device.stream()
    assert device.free_bytes() == 744
    for address, size in ((memory.address + 250, 7), (memory.address - 1, 1)):
        with pytest.raises(DeviceError, match="are not in any one allocation"):
            stream.zero(address, size)
    with pytest.raises(DeviceError, match="are not in any one allocation"):
        stream.launch("noise", memory.address + 256, memory.address, 4, 0, 0)
    with pytest.raises(BackendError, match="kernel noise was not launched: CUDA error 1"):
        stream.launch("noise", memory.address, memory.address, 4, 0, 99)
    memory.free()
    with pytest.raises(DeviceError, match="are not in any one allocation"):
        stream.zero(memory.address, 1)
    with pytest.raises(DeviceError, match="freed twice"):
        memory.free()
    assert device.free_bytes() == 1000
