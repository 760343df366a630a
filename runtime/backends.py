"""The backends there are, by name. Each imports its libraries when it is chosen, not before."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import Manifest
from liveedit.errors import BackendError, UsageError
from liveedit.runtime.backend import Backend
from liveedit.runtime.device import Device
from liveedit.runtime.device_engine import EngineLoader
from liveedit.runtime.graphs import choose_precision

AUTO = "auto"  # plans, if the bundle holds any, else ONNX Runtime on the CPU


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a backend may want to know."""

    root: Path
    manifest: Manifest
    precision: str
    threads: int | None = None
    overlap: bool = True
    graphs: bool = True
    leave_frames: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")


def _onnxruntime(opening: Opening) -> Backend:
    from liveedit.runtime.onnx_backend import OnnxBackend

    return OnnxBackend(threads=opening.threads)


def _onnxruntime_cuda(opening: Opening) -> Backend:
    from liveedit.runtime.cuda_device import CudaDevice
    from liveedit.runtime.onnx_device import OnnxCudaLoader

    return _on_device(CudaDevice(), OnnxCudaLoader(), opening)


def _tensorrt(flavour: str) -> Callable[[Opening], Backend]:
    def make(opening: Opening) -> Backend:
        from liveedit.runtime.cuda_device import CudaDevice

        # Plans and their checks are of `liveedit.engines`, which lies above this package.
        engines = importlib.import_module("liveedit.engines.plan_loader")
        device = CudaDevice()
        loader = engines.PlanLoader.open(
            device, opening.root, opening.manifest, opening.precision, flavour
        )
        return _on_device(device, loader, opening)

    return make


def _on_device(device: Device, loader: EngineLoader, opening: Opening) -> Backend:
    from liveedit.runtime.device_backend import DeviceBackend

    return DeviceBackend(
        device,
        loader,
        overlap=opening.overlap,
        graphs=opening.graphs,
        leave_frames=opening.leave_frames,
    )


def _null(opening: Opening) -> Backend:
    from liveedit.runtime.null_backend import NullBackend

    return NullBackend()


_MAKERS: dict[str, Callable[[Opening], Backend]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
    "onnxruntime-cuda": _onnxruntime_cuda,
    "null": _null,
}
BACKENDS = tuple(_MAKERS)
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


def check_backend(name: str) -> None:
    """Raise BackendError if there is no such backend."""
    if name not in (*BACKENDS, AUTO):
        raise BackendError(f"no backend {name!r}; there are {', '.join((*BACKENDS, AUTO))}")


def resolve(root: Path, manifest: Manifest, name: str, precision: str | None) -> tuple[str, str]:
    """The backend and the precision to run.

    ``auto`` takes the flavour of the bundle's plans, if it holds any of that precision, else
    ``onnxruntime``. A precision that is not asked for is that of the plans for a TensorRT backend,
    else fp32 if the bundle holds it.

    Raises:
        BackendError: no such backend.
        BundleError: the bundle lacks the precision or its graphs.
    """
    check_backend(name)
    planned = [
        (str(inputs.get("flavour")), str(inputs.get("precision")))
        for inputs in (entry.get("inputs", {}) for entry in manifest.plans.values())
    ]
    fitting = [
        (flavour, built)
        for flavour, built in planned
        if name in (AUTO, flavour) and precision in (None, built)
    ]
    if fitting:
        name, precision = fitting[0]
    elif name == AUTO:
        name = "onnxruntime"
    return name, choose_precision(root, manifest, precision)


def open_backend(name: str, opening: Opening) -> Backend:
    """Make a backend. Never another one than was asked for.

    Raises:
        BackendError: it is not here, or this machine cannot run it.
        BundleError: the bundle holds no plans that fit this machine.
        UsageError: ``threads`` for a backend that has none.
    """
    check_backend(name)
    if opening.threads is not None and name in GPU_BACKENDS:
        raise UsageError(f"threads are of the backend onnxruntime; {name} has none")
    if opening.leave_frames and name not in GPU_BACKENDS:
        raise UsageError(f"device_frames need a GPU backend, not {name}")
    return _MAKERS[name](opening)
