"""ONNX Runtime on a device: its CPU provider in host memory, its CUDA provider on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from liveedit.bundle import GraphSpec
from liveedit.errors import BackendError
from liveedit.runtime.backend import KEEP_DIMENSION, Binding
from liveedit.runtime.device import Device, Stream
from liveedit.runtime.device_engine import Placed
from liveedit.runtime.host_device import host_bytes
from liveedit.runtime.onnx_backend import OnnxEngine, check_tensors, open_session, session_options


class OnnxHostEngine:
    """A session bound to host addresses."""

    activation_bytes = 0  # ONNX Runtime keeps its own

    def __init__(
        self, session: ort.InferenceSession, spec: GraphSpec, bindings: Sequence[Binding]
    ) -> None:
        self._session, self._spec, self._bindings = session, spec, bindings
        self._engine: OnnxEngine | None = None

    def rows(self, num_keep: int) -> int:
        return num_keep

    def bind(self, buffers: Mapping[str, Placed], activation: int) -> None:
        arrays = {}
        for name in {buffer for binding in self._bindings for buffer in binding.values()}:
            place = buffers[name]
            dtype = np.dtype(place.dtype)
            raw = host_bytes(place.address, dtype.itemsize * int(np.prod(place.shape)))
            arrays[name] = raw.view(dtype).reshape(place.shape)
        self._engine = OnnxEngine(self._session, self._spec, arrays, self._bindings)

    def enqueue(self, stream: Stream, side: int, num_keep: int | None) -> None:
        assert self._engine is not None
        stream.call(partial(self._engine.run, side=side, num_keep=num_keep))

    def close(self) -> None:
        self._engine = None


class OnnxHostLoader:
    """ONNX Runtime's CPU provider on a `HostDevice`."""

    name = "onnxruntime-host"
    capturable = True

    def __init__(self, *, threads: int | None = None) -> None:
        self._options = session_options(threads)

    def load(
        self,
        device: Device,
        stream: Stream,
        graph: str,
        spec: GraphSpec,
        path: Path,
        bindings: Sequence[Binding],
    ) -> OnnxHostEngine:
        session = open_session(path, self._options, ["CPUExecutionProvider"])
        check_tensors(path, session, spec)
        return OnnxHostEngine(session, spec, bindings)

    def close(self) -> None:
        pass


class OnnxCudaEngine:
    """A session of the CUDA provider, bound to device addresses, on the stream it was made for."""

    activation_bytes = 0  # ONNX Runtime keeps its own

    def __init__(
        self, session: ort.InferenceSession, spec: GraphSpec, bindings: Sequence[Binding]
    ) -> None:
        self._session, self._spec, self._bindings = session, spec, bindings
        self._bound: list[ort.IOBinding] = []
        self._dynamic: list[list[tuple[str, Placed]]] = []
        self._num_keep: list[int | None] = []
        self._run_options = ort.RunOptions()
        # The runtime orders runs by their stream; waiting here would stall the host.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def rows(self, num_keep: int) -> int:
        return num_keep

    def bind(self, buffers: Mapping[str, Placed], activation: int) -> None:
        for binding in self._bindings:
            io, dynamic = self._session.io_binding(), []
            for tensor in self._spec.inputs:
                place = buffers[binding[tensor.name]]
                if KEEP_DIMENSION in tensor.shape:
                    dynamic.append((tensor.name, place))
                else:
                    io.bind_input(
                        tensor.name, "cuda", 0, np.dtype(place.dtype), place.shape, place.address
                    )
            for tensor in self._spec.outputs:
                place = buffers[binding[tensor.name]]
                io.bind_output(
                    tensor.name, "cuda", 0, np.dtype(place.dtype), place.shape, place.address
                )
            self._bound.append(io)
            self._dynamic.append(dynamic)
            self._num_keep.append(None)

    def enqueue(self, stream: Stream, side: int, num_keep: int | None) -> None:
        io = self._bound[side]
        if num_keep != self._num_keep[side]:
            for name, place in self._dynamic[side]:
                io.bind_input(name, "cuda", 0, np.dtype(place.dtype), (num_keep,), place.address)
            self._num_keep[side] = num_keep
        self._run(io)

    def _run(self, io: ort.IOBinding) -> None:
        try:
            self._session.run_with_iobinding(io, self._run_options)
        except Exception as error:  # onnxruntime raises a class per status, with no public base
            raise BackendError(
                f"ONNX Runtime stopped in {Path(self._spec.file).name}: {error}"
            ) from error

    def close(self) -> None:
        self._bound = []


class OnnxCudaLoader:
    """ONNX Runtime's CUDA provider. It allocates as it likes, so its runs are not captured."""

    name = "onnxruntime-cuda"
    capturable = False

    def __init__(self) -> None:
        """Raises BackendError: this ONNX Runtime has no CUDA provider."""
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise BackendError(
                f"ONNX Runtime {ort.__version__} has no CUDA provider here; it has "
                f"{', '.join(ort.get_available_providers())}. Run: pip install onnxruntime-gpu, or "
                "choose the backend onnxruntime."
            )
        self._options = session_options(None)

    def load(
        self,
        device: Device,
        stream: Stream,
        graph: str,
        spec: GraphSpec,
        path: Path,
        bindings: Sequence[Binding],
    ) -> OnnxCudaEngine:
        provider = {"device_id": "0", "user_compute_stream": str(stream.handle)}
        providers = [("CUDAExecutionProvider", provider), "CPUExecutionProvider"]
        session = open_session(path, self._options, providers)
        check_tensors(path, session, spec)
        return OnnxCudaEngine(session, spec, bindings)

    def close(self) -> None:
        pass
