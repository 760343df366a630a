"""TensorRT's runtime API over ONNX Runtime in host memory, strict about the order of its calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from liveedit.bundle import Manifest, TensorSpec
from liveedit.runtime.backend import Array
from liveedit.runtime.host_device import HostDevice, host_bytes
from liveedit.runtime.onnx_backend import OnnxEngine, open_session, session_options

ACTIVATION_BYTES = 4096


class FakeTensorRT:
    """Stands for the module. A plan is the name of its graph."""

    __name__ = "fake_tensorrt"

    class ILogger:
        pass

    class IProfiler:
        pass

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = "user managed"

    def __init__(
        self,
        device: HostDevice,
        root: Any,
        manifest: Manifest,
        profiles: tuple[int, ...],
        *,
        store_in_place: bool = True,
    ) -> None:
        self.device, self.root, self.manifest = device, root, manifest
        self.profiles, self.store_in_place = profiles, store_in_place
        self.contexts = 0
        self.broken = ""

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self, logger)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        name = data.decode()
        if name == self.trt.broken:
            self.logger.log(1, "IRuntime::deserializeCudaEngine: Error Code 1:\n magic tag")
            return None
        return FakeEngine(self.trt, name)


class FakeEngine:
    device_memory_size_v2 = ACTIVATION_BYTES

    def __init__(self, trt: FakeTensorRT, graph: str) -> None:
        self.trt = trt
        self.spec = trt.manifest.graphs["fp32"][graph]
        self.session = open_session(
            trt.root / self.spec.file, session_options(1), ["CPUExecutionProvider"]
        )

    def get_aliased_input_tensor(self, output: str) -> str | None:
        if output.startswith("attn_store") and not self.trt.store_in_place:
            return None
        return self.spec.aliases.get(output)

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user managed"
        self.trt.contexts += 1
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.activation = 0
        self.rows: int | None = None
        self.dynamic = any(isinstance(d, str) for t in engine.spec.inputs for d in t.shape)
        self.profile: int | None = None
        self.profiler: Any = None

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        self.profile = index
        return 0 <= index < len(self.engine.trt.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "the profile comes first"
        (self.rows,) = shape
        return self.rows == self.engine.trt.profiles[self.profile]

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= ACTIVATION_BYTES
        self.activation = address

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, handle: int) -> bool:
        spec, addresses = self.engine.spec, dict(self.addresses)
        assert self.activation
        assert not self.dynamic or self.rows is not None
        for output, source in spec.aliases.items():
            if self.engine.get_aliased_input_tensor(output) and output.startswith(("k_", "v_")):
                assert addresses[output] == addresses[source], output
        arrays = {t.name: self._array(t, addresses) for t in (*spec.inputs, *spec.outputs)}
        same = [{name: name for name in arrays}]
        engine = OnnxEngine(self.engine.session, spec, arrays, same)
        rows, activation = self.rows, self.activation

        def run() -> None:
            host_bytes(activation, ACTIVATION_BYTES)[:] = 0xAB  # nobody else's at this time
            engine.run(num_keep=rows)
            if self.profiler is not None:
                self.profiler.report_layer_time(f"{spec.file} [profile {self.profile}]", 0.5)

        self.engine.trt.device._streams[handle].queue(run)
        return True

    def _array(self, tensor: TensorSpec, addresses: dict[str, int]) -> Array:
        shape = tuple(self.rows if isinstance(d, str) else d for d in tensor.shape)
        dtype = np.dtype(tensor.dtype)
        size = dtype.itemsize * int(np.prod([n or 0 for n in shape]))
        self.engine.trt.device.check(addresses[tensor.name], size)
        return host_bytes(addresses[tensor.name], size).view(dtype).reshape(shape)
