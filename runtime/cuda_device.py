"""The device that is a GPU: cuda-python's runtime API, every return code checked."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from liveedit.errors import BackendError, DeviceError
from liveedit.runtime.device import Bytes, Event, Graph, Pinned, Stream
from liveedit.runtime.dlpack import CPU, CUDA, CUDA_HOST, CUDA_MANAGED
from liveedit.runtime.kernels import (
    KERNEL_LIBRARY,
    PLUGIN_LIBRARY,
    library_path,
    load_kernels,
)

OLDEST_DRIVER = 13000  # the CUDA version, times 1000, that the kernels are compiled with
_NEXT_STEPS = {
    "cudaErrorMemoryAllocation": "Close other streams or programs on this GPU.",
    "cudaErrorNoDevice": "Check nvidia-smi and CUDA_VISIBLE_DEVICES.",
    "cudaErrorECCUncorrectable": "The GPU's memory is damaged; see nvidia-smi -q -d ECC.",
    "cudaErrorDevicesUnavailable": "Another program holds the GPU; see nvidia-smi.",
}
# After these every call of the process fails.
_STICKY = (
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorHardwareStackError",
    "cudaErrorInvalidPc",
    "cudaErrorAssert",
)


class Api:
    """``cuda.bindings.runtime`` whose calls raise instead of returning a status."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The call's result: None, one value, or a tuple.

        Raises:
            DeviceError: CUDA refused.
        """
        status, *values = getattr(self.module, name)(*arguments)
        if status != self.module.cudaError_t.cudaSuccess:
            raise DeviceError(self.sentence(name, status))
        if len(values) < 2:
            return values[0] if values else None
        return tuple(values)

    def sentence(self, name: str, status: Any) -> str:
        error = getattr(status, "name", str(status))
        _, text = self.module.cudaGetErrorString(status)
        step = _NEXT_STEPS.get(error, "Reset or reopen the stream; run with CUDA_LAUNCH_BLOCKING=1 "
                               "to see which call it was.")  # fmt: skip
        if error in _STICKY:
            step = "CUDA is lost to this process; start a new one."
        return f"{name} failed with {error} ({text.decode()}). {step}"


def cuda_api() -> Api:
    """CUDA's runtime, with a driver that can run our kernels.

    Raises:
        BackendError: cuda-python is not installed, or there is no driver, an old one, or no GPU.
    """
    try:
        module = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(
            f"this backend needs cuda-python, which does not load: {error}. "
            "Run: pip install 'liveedit-trt[gpu]'"
        ) from None
    return check_driver(Api(module))


def check_driver(api: Api) -> Api:
    """Raise BackendError where there is no driver, an old one, or no GPU."""
    version = api("cudaDriverGetVersion")
    if version == 0:
        raise BackendError(
            "no NVIDIA driver is loaded on this machine. Install one (nvidia-smi must work), or "
            "choose the backend onnxruntime."
        )
    if version < OLDEST_DRIVER:
        raise BackendError(
            f"the NVIDIA driver supports CUDA {_version(version)}; at least "
            f"{_version(OLDEST_DRIVER)} is needed. Update the driver."
        )
    if api("cudaGetDeviceCount") == 0:
        raise BackendError("the NVIDIA driver sees no GPU. Check nvidia-smi, CUDA_VISIBLE_DEVICES.")
    return api


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def find_kernels() -> ctypes.CDLL:
    """The CUDA kernels of this installation.

    Raises:
        BackendError: it has none.
    """
    path: Path | None = library_path(KERNEL_LIBRARY) or library_path(PLUGIN_LIBRARY)
    if path is None:
        raise BackendError(
            "this installation has no CUDA kernels. Install liveedit-trt again where nvcc is "
            "found; docs/plugins.md says how."
        )
    return load_kernels(path)


class CudaMemory:
    def __init__(self, api: Api, nbytes: int) -> None:
        self._api = api
        self.address = int(api("cudaMalloc", nbytes))
        self.nbytes = nbytes

    def free(self) -> None:
        self._api("cudaFree", self.address)


class CudaPinned:
    def __init__(self, api: Api, nbytes: int) -> None:
        self._api = api
        self.address = int(api("cudaHostAlloc", nbytes, api.module.cudaHostAllocPortable))
        self.nbytes = nbytes
        self._bytes: Bytes = np.ctypeslib.as_array(
            (ctypes.c_uint8 * nbytes).from_address(self.address)
        )

    def array(self, offset: int, nbytes: int, *, write: bool = False) -> Bytes:
        return self._bytes[offset : offset + nbytes]

    def free(self) -> None:
        self._api("cudaFreeHost", self.address)


class CudaEvent:
    def __init__(self, api: Api) -> None:
        self._api = api
        self.handle = api("cudaEventCreateWithFlags", api.module.cudaEventDisableTiming)

    def done(self) -> bool:
        errors = self._api.module.cudaError_t
        (status,) = self._api.module.cudaEventQuery(self.handle)
        if status not in (errors.cudaSuccess, errors.cudaErrorNotReady):
            raise DeviceError(self._api.sentence("cudaEventQuery", status))
        return bool(status == errors.cudaSuccess)

    def wait(self) -> None:
        self._api("cudaEventSynchronize", self.handle)

    def close(self) -> None:
        self._api("cudaEventDestroy", self.handle)


class CudaGraph:
    def __init__(self, api: Api, graph: Any) -> None:
        self._api, self._graph = api, graph
        try:
            self._run = api("cudaGraphInstantiate", graph, 0)
        except DeviceError:
            api("cudaGraphDestroy", graph)
            raise

    def launch(self, stream: Stream) -> None:
        self._api("cudaGraphLaunch", self._run, stream.handle)

    def close(self) -> None:
        self._api("cudaGraphExecDestroy", self._run)
        self._api("cudaGraphDestroy", self._graph)


class CudaStream:
    """A stream that does not wait for the default one."""

    def __init__(self, api: Api, kernels: ctypes.CDLL, stream: Any = None) -> None:
        self._api, self._kernels = api, kernels
        if stream is None:
            stream = api("cudaStreamCreateWithFlags", api.module.cudaStreamNonBlocking)
        self._stream = stream
        self.handle = int(self._stream)
        self._any = api.module.cudaMemcpyKind.cudaMemcpyDefault

    def upload(self, dst: int, src: Pinned, offset: int, nbytes: int) -> None:
        self.copy(dst, src.address + offset, nbytes)

    def download(self, dst: Pinned, offset: int, src: int, nbytes: int) -> None:
        self.copy(dst.address + offset, src, nbytes)

    def copy(self, dst: int, src: int, nbytes: int) -> None:
        self._api("cudaMemcpyAsync", dst, src, nbytes, self._any, self._stream)

    def copy_rows(
        self, dst: int, dst_pitch: int, src: int, src_pitch: int, width: int, rows: int
    ) -> None:
        sizes = (dst, dst_pitch, src, src_pitch, width, rows)
        self._api("cudaMemcpy2DAsync", *sizes, self._any, self._stream)

    def zero(self, dst: int, nbytes: int) -> None:
        self._api("cudaMemsetAsync", dst, 0, nbytes, self._stream)

    def launch(self, kernel: str, *arguments: int | float) -> None:
        status = getattr(self._kernels, f"liveedit_{kernel}")(*arguments, self.handle)
        if status:
            error = self._api.module.cudaError_t(status)
            raise DeviceError(self._api.sentence(f"kernel {kernel}", error))

    def call(self, work: Callable[[], None]) -> None:
        work()

    def record(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self._api("cudaEventRecord", event.handle, self._stream)

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self._api("cudaStreamWaitEvent", self._stream, event.handle, 0)

    def synchronize(self) -> None:
        self._api("cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        # Other threads may allocate and wait meanwhile: their streams are their own.
        mode = self._api.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._api("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Graph:
        return CudaGraph(self._api, self._api("cudaStreamEndCapture", self._stream))

    def close(self) -> None:
        self._api("cudaStreamDestroy", self._stream)


class CudaDevice:
    """One GPU, for the thread that made it."""

    def __init__(
        self, ordinal: int = 0, *, api: Api | None = None, kernels: ctypes.CDLL | None = None
    ) -> None:
        """Raises BackendError: no driver, an old one, no such GPU, or no kernels."""
        self._api = api or cuda_api()
        count = self._api("cudaGetDeviceCount")
        if not 0 <= ordinal < count:
            raise BackendError(f"no GPU {ordinal}; this machine has 0 to {count - 1}")
        self._kernels = kernels or find_kernels()
        self._api("cudaSetDevice", ordinal)
        self.dlpack_device = (CUDA, ordinal)
        self.name = self._api("cudaGetDeviceProperties", ordinal).name.decode().rstrip("\0")

    def free_bytes(self) -> int:
        free, _ = self._api("cudaMemGetInfo")
        return int(free)

    def alloc(self, nbytes: int) -> CudaMemory:
        return CudaMemory(self._api, nbytes)

    def alloc_pinned(self, nbytes: int) -> CudaPinned:
        return CudaPinned(self._api, nbytes)

    def stream(self) -> CudaStream:
        return CudaStream(self._api, self._kernels)

    def foreign_stream(self, handle: int) -> CudaStream:
        return CudaStream(self._api, self._kernels, handle)

    def place_of(self, address: int) -> tuple[int, int]:
        kinds = self._api.module.cudaMemoryType
        found = self._api("cudaPointerGetAttributes", address)
        kind = {
            kinds.cudaMemoryTypeDevice: CUDA,
            kinds.cudaMemoryTypeManaged: CUDA_MANAGED,
            kinds.cudaMemoryTypeHost: CUDA_HOST,
        }.get(found.type, CPU)
        return kind, int(found.device) if kind != CPU else 0

    def event(self) -> CudaEvent:
        return CudaEvent(self._api)

    def scratch_bytes(self, name: str, *sizes: int) -> int:
        return int(getattr(self._kernels, f"liveedit_{name}_scratch")(*sizes))

    def close(self) -> None:
        # Leaves no error behind for the next stream of the process, where CUDA can go on.
        with suppress(DeviceError):
            self._api("cudaGetLastError")
