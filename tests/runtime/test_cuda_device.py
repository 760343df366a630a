"""The GPU's device against CUDA's own Python API: every call exists, every status is looked at."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from liveedit.errors import BackendError, DeviceError, UsageError
from liveedit.runtime.cuda_device import Api, CudaDevice, check_driver, cuda_api
from liveedit.runtime.device_backend import DeviceBackend
from liveedit.runtime.device_engine import NullLoader
from liveedit.runtime.device_frames import ForeignFrames, take_frames
from liveedit.runtime.dlpack import CPU, CUDA, CUDA_HOST, CUDA_MANAGED
from liveedit.runtime.pixel_format import FrameLayout

runtime = pytest.importorskip("cuda.bindings.runtime")
OK = runtime.cudaError_t.cudaSuccess


class FakeRuntime:
    """Gives what the real module would on a machine with one GPU; its constants are the real ones.

    A call that the real module lacks, or with another number of arguments, is an error.
    """

    RESULTS: ClassVar[dict[str, Any]] = {
        "cudaDriverGetVersion": 13000,
        "cudaGetDeviceCount": 1,
        "cudaGetDeviceProperties": SimpleNamespace(name=b"Fake 1\0\0"),
        "cudaMalloc": 0x7000,
        "cudaMemGetInfo": (1000, 2000),
        "cudaStreamCreateWithFlags": 0x51,
        "cudaEventCreateWithFlags": 0xE1,
        "cudaStreamEndCapture": 0x61,
        "cudaGraphInstantiate": 0x62,
        "cudaGetLastError": None,
    }

    def __init__(self, **failures: str) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failures = {n: getattr(runtime.cudaError_t, e) for n, e in failures.items()}
        self.host = ctypes.create_string_buffer(4096)
        self.results = {**self.RESULTS, "cudaHostAlloc": ctypes.addressof(self.host)}

    def __getattr__(self, name: str) -> Any:
        real = getattr(runtime, name)
        if not name.startswith("cuda") or isinstance(real, type | int):
            return real
        if name == "cudaGetErrorString":
            return real

        def call(*arguments: Any) -> tuple[Any, ...]:
            signature = (real.__doc__ or "").split("\n")[0]
            stated = signature.partition("(")[2].rpartition(")")[0]
            assert len(arguments) == len([a for a in stated.split(",") if a]), signature
            self.calls.append((name, arguments))
            if name in self.failures:
                return (self.failures[name],) if name == "cudaEventQuery" else (
                    self.failures[name], None
                )  # fmt: skip
            if name == "cudaEventQuery":
                return (OK,)
            result = self.results.get(name)
            return (OK, *result) if isinstance(result, tuple) else (OK, result)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class FakeKernels:
    def __init__(self, status: int = 0) -> None:
        self.status, self.calls = status, []  # type: ignore[var-annotated]

    def liveedit_noise(self, *arguments: Any) -> int:
        self.calls.append(arguments)
        return self.status

    def liveedit_select_scratch(self, *sizes: int) -> int:
        return 7


def device_on(fake: FakeRuntime, status: int = 0) -> tuple[CudaDevice, FakeKernels]:
    kernels = FakeKernels(status)
    return CudaDevice(api=Api(fake), kernels=kernels), kernels  # type: ignore[arg-type]


def test_every_call_reaches_cuda_with_its_stream() -> None:
    fake = FakeRuntime()
    device, kernels = device_on(fake)
    assert device.name == "Fake 1"
    assert (device.free_bytes(), device.scratch_bytes("select", 1, 2, 3)) == (1000, 7)
    memory, pinned = device.alloc(64), device.alloc_pinned(4096)
    stream, event = device.stream(), device.event()
    pinned.array(8, 4, write=True)[:] = 5
    assert fake.host.raw[8:12] == b"\5" * 4
    fake.calls.clear()
    stream.upload(memory.address, pinned, 8, 16)
    stream.download(pinned, 8, memory.address, 16)
    stream.copy(1, 2, 3)
    stream.copy_rows(1, 2, 3, 4, 5, 6)
    stream.zero(memory.address, 64)
    stream.record(event)
    stream.wait(event)
    event.wait()
    assert event.done()
    stream.synchronize()
    stream.begin_capture()
    stream.launch("noise", 1, 2, 3, 4, 0)
    graph = stream.end_capture()
    graph.launch(stream)
    done: list[int] = []
    stream.call(lambda: done.append(1))
    assert kernels.calls == [(1, 2, 3, 4, 0, 0x51)]
    assert done == [1]
    host, kind = ctypes.addressof(fake.host) + 8, runtime.cudaMemcpyKind.cudaMemcpyDefault
    assert fake.calls[0] == ("cudaMemcpyAsync", (0x7000, host, 16, kind, 0x51))
    assert fake.calls[1] == ("cudaMemcpyAsync", (host, 0x7000, 16, kind, 0x51))
    assert fake.calls[3] == ("cudaMemcpy2DAsync", (1, 2, 3, 4, 5, 6, kind, 0x51))
    assert fake.calls[-1] == ("cudaGraphLaunch", (0x62, 0x51))
    fake.calls.clear()
    for thing in (graph, event, stream):
        thing.close()
    memory.free()
    pinned.free()
    device.close()
    assert fake.names() == [
        "cudaGraphExecDestroy", "cudaGraphDestroy", "cudaEventDestroy", "cudaStreamDestroy",
        "cudaFree", "cudaFreeHost", "cudaGetLastError",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        ("cudaMalloc", "cudaErrorMemoryAllocation", r"out of memory\). Close other streams"),
        ("cudaMemcpyAsync", "cudaErrorInvalidValue", r"\(invalid argument\). Reset or reopen"),
        ("cudaStreamSynchronize", "cudaErrorIllegalAddress", "lost to this process; start a new"),
        ("cudaGraphInstantiate", "cudaErrorNotSupported", "Reset or reopen"),
    ],
)
def test_a_failed_call_is_named(call: str, error: str, sentence: str) -> None:
    fake = FakeRuntime(**{call: error})
    device, _ = device_on(fake)
    stream = device.stream()

    def everything() -> None:
        device.alloc(1)
        stream.copy(1, 2, 3)
        stream.synchronize()
        stream.end_capture()

    with pytest.raises(DeviceError, match=f"{call} failed with {error} .*{sentence}"):
        everything()
    if call == "cudaGraphInstantiate":
        assert fake.names()[-1] == "cudaGraphDestroy"


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("Device", (CUDA, 1)),
        ("Managed", (CUDA_MANAGED, 1)),
        ("Host", (CUDA_HOST, 1)),
        ("Unregistered", (CPU, 0)),
    ],
)
def test_where_memory_lies(kind: str, place: tuple[int, int]) -> None:
    fake = FakeRuntime()
    found = getattr(runtime.cudaMemoryType, f"cudaMemoryType{kind}")
    fake.results["cudaPointerGetAttributes"] = SimpleNamespace(type=found, device=1)
    device, _ = device_on(fake)
    assert device.place_of(0x7000) == place


def test_frames_of_another_library() -> None:
    """Copied on our stream, after what is queued on theirs and before what comes next there."""
    fake = FakeRuntime()
    found = SimpleNamespace(type=runtime.cudaMemoryType.cudaMemoryTypeDevice, device=0)
    fake.results |= {"cudaMemGetInfo": (1 << 30, 1 << 30), "cudaPointerGetAttributes": found}
    device, _ = device_on(fake)
    backend = DeviceBackend(device, NullLoader())
    backend.frame_ring(2, FrameLayout(2, 4))
    backend.alloc("encode_next.frames", "float32", (1, 3, 2, 2, 4))
    backend.alloc("outcome", "int32", (1,), "result")
    backend.start()
    stated = {"shape": (2, 2, 4, 3), "typestr": "|u1", "data": (0x9000, True), "stream": 1}
    theirs = SimpleNamespace(__cuda_array_interface__=stated)
    frames = take_frames(theirs, (2, 4, 3), backend.intake)
    assert isinstance(frames, ForeignFrames)
    fake.calls.clear()
    at = backend.stage_frame(1, frames[1], None).address
    assert at == backend.address("own.frames_in") + 24
    event, (kind, ours) = 0xE1, (runtime.cudaMemcpyKind.cudaMemcpyDefault, 0x51)
    assert fake.calls[1:] == [
        ("cudaEventRecord", (event, 1)),
        ("cudaStreamWaitEvent", (ours, event, 0)),
        ("cudaMemcpyAsync", (at, 0x9000 + 24, 24, kind, ours)),
        ("cudaEventRecord", (event, ours)),
        ("cudaStreamWaitEvent", (1, event, 0)),
    ]
    found.device = 1
    with pytest.raises(UsageError, match="lie in GPU 1; this stream runs on Fake 1, GPU 0"):
        take_frames(theirs, (2, 4, 3), backend.intake)


def test_an_event_is_asked_for() -> None:
    for error, outcome in (("cudaErrorNotReady", False), ("cudaErrorLaunchFailure", None)):
        device, _ = device_on(FakeRuntime(cudaEventQuery=error))
        event = device.event()
        if outcome is None:
            with pytest.raises(DeviceError, match="cudaEventQuery failed with cudaErrorLaunch"):
                event.done()
        else:
            assert event.done() is outcome


def test_a_kernel_that_is_not_launched_is_named() -> None:
    device, _ = device_on(FakeRuntime(), status=98)
    with pytest.raises(DeviceError, match="kernel noise failed with cudaErrorInvalidDeviceFunc"):
        device.stream().launch("noise", 1, 2, 3, 4, 0)


def test_drivers() -> None:
    for results, sentence in (
        ({"cudaDriverGetVersion": 0}, "no NVIDIA driver is loaded"),
        ({"cudaDriverGetVersion": 12040}, "supports CUDA 12.4; at least 13.0 is needed. Update"),
        ({"cudaGetDeviceCount": 0}, "the NVIDIA driver sees no GPU"),
    ):
        fake = FakeRuntime()
        fake.results |= results
        with pytest.raises(BackendError, match=sentence):
            check_driver(Api(fake))
    with pytest.raises(BackendError, match="no GPU 1; this machine has 0 to 0"):
        CudaDevice(1, api=Api(FakeRuntime()), kernels=FakeKernels())  # type: ignore[arg-type]


def test_this_machine() -> None:
    """With a driver the real API answers; without one it says so in a sentence."""
    _, count = runtime.cudaGetDeviceCount()
    if count:
        assert cuda_api()("cudaGetDeviceCount") == count
    else:
        with pytest.raises(BackendError, match="driver"):
            cuda_api()
