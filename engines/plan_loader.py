"""Plans on a device: TensorRT and TensorRT-RTX behind the runtime's engine protocol.

Everything a plan depends on is checked before TensorRT sees it (`liveedit.engines.verify`).
Activation memory is the runtime's, shared by all plans of a stage. A graph with several token
counts has one context per count, one without has one per binding; a context's shapes never change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liveedit.bundle import GraphSpec, Manifest
from liveedit.engines import flavour as flavours
from liveedit.engines import python_plugins
from liveedit.engines.plan import PlanSet
from liveedit.engines.verify import environment, read_plan, select_plans, verified_plugins
from liveedit.errors import BackendError, DeviceError
from liveedit.runtime.backend import KEEP_DIMENSION, Binding
from liveedit.runtime.device import Device, Stream
from liveedit.runtime.device_engine import Placed, aligned
from liveedit.runtime.kernels import KERNEL_LIBRARY, library_path
from liveedit.runtime.memory_budget import tensor_bytes


class PlanEngine:
    """One deserialised plan."""

    def __init__(
        self,
        loader: PlanLoader,
        graph: str,
        engine: Any,
        spec: GraphSpec,
        bindings: Sequence[Binding],
        stream: Stream,
    ) -> None:
        self._loader, self._graph, self._engine = loader, graph, engine
        self._spec, self._bindings, self._stream = spec, bindings, stream
        self._dynamic = [t.name for t in spec.inputs if KEEP_DIMENSION in t.shape]
        self._counts = loader.plans.inputs.profiles if self._dynamic else ()
        # Where the plan does not write in place what the graph states as an alias, its output has
        # memory of its own and is copied back.
        names = [o for o, source in spec.aliases.items() if bindings[0][o] == bindings[0][source]]
        self._copies = [o for o in names if engine.get_aliased_input_tensor(o) != spec.aliases[o]]
        sizes = {t.name: tensor_bytes(t, 0) for t in spec.outputs}
        self._sizes = {o: sizes[o] for o in self._copies}
        self._context_bytes = int(engine.device_memory_size_v2)
        self._settings = flavours.context_settings(loader.trt, engine)
        self.activation_bytes = aligned(self._context_bytes) + sum(
            aligned(size) for size in self._sizes.values()
        )
        self._contexts: dict[int, Any] = {}
        self._addresses: list[dict[str, int]] = []
        self._current: dict[int, dict[str, int]] = {}

    def rows(self, num_keep: int) -> int:
        """The smallest profile that holds ``num_keep`` tokens; the rows past them are padding."""
        return min(n for n in self._counts if n >= num_keep)

    def bind(self, buffers: Mapping[str, Placed], activation: int) -> None:
        place, own = activation + aligned(self._context_bytes), {}
        for output, size in self._sizes.items():
            own[output] = place
            place += aligned(size)
        for binding in self._bindings:
            self._addresses.append({n: buffers[b].address for n, b in binding.items()} | own)
        for key in self._counts or range(len(self._bindings)):
            context = self._context(activation)
            if self._counts:
                profile = self._counts.index(key)
                self._check(
                    context.set_optimization_profile_async(profile, self._stream.handle),
                    f"profile {profile}",
                )
                for name in self._dynamic:
                    self._check(context.set_input_shape(name, (key,)), f"{key} rows of {name}")
            self._contexts[key], self._current[key] = context, {}
            self._place(key, 0 if self._counts else key)

    def _context(self, activation: int) -> Any:
        context = self._engine.create_execution_context(self._settings)
        if context is None:
            raise DeviceError(self._loader.sentence(f"no context for the plan of {self._graph}"))
        if self._context_bytes:
            context.set_device_memory(activation, self._context_bytes)
        if self._graph in self._loader.profilers:
            context.profiler = self._loader.profilers[self._graph]
        return context

    def _place(self, key: int, side: int) -> None:
        """Give a context the addresses of a binding. Captured runs keep those they were given."""
        current = self._current[key]
        for name, address in self._addresses[side].items():
            if current.get(name) != address:
                self._check(self._contexts[key].set_tensor_address(name, address), f"tensor {name}")
                current[name] = address

    def enqueue(self, stream: Stream, side: int, num_keep: int | None) -> None:
        key = side
        if self._counts:
            assert num_keep is not None, "this graph has a dynamic input"
            key = self.rows(num_keep)
            self._place(key, side)
        self._check(self._contexts[key].execute_async_v3(stream.handle), "a run")
        addresses = self._addresses[side]
        for output, size in self._sizes.items():
            stream.copy(addresses[self._spec.aliases[output]], addresses[output], size)

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise DeviceError(self._loader.sentence(f"the plan of {self._graph} refused {what}"))

    def close(self) -> None:
        self._contexts.clear()
        self._settings = self._engine = None


class PlanLoader:
    """Loads the plans of one set."""

    def __init__(self, trt: Any, root: Path, manifest: Manifest, plans: PlanSet) -> None:
        """``trt``: the module; its plugins are loaded. ``plans`` fit this machine."""
        self.trt, self.plans = trt, plans
        self.name: str = plans.inputs.flavour
        # Weights that come from the host make a run wait for it.
        self.capturable = not plans.inputs.options.weight_streaming
        self.profilers: dict[str, Any] = {}  # graph -> IProfiler of its contexts
        self._root, self._manifest = root, manifest
        self._log: list[str] = []
        self._logger = _logger(trt, self._log)
        self._runtime = trt.Runtime(self._logger)

    @classmethod
    def open(
        cls, device: Device, root: Path, manifest: Manifest, precision: str, flavour: str
    ) -> PlanLoader:
        """The plans of a bundle that fit this machine, their plugins loaded.

        Raises:
            BackendError: TensorRT is not here, a plugin does not load, or the GPU is too small.
            BundleError: no plans fit; names the field, both values and the command that mends it.
        """
        found = environment(flavour)
        graphs = tuple(manifest.graphs[precision])
        _, plans = select_plans(root, manifest, precision, found, graphs)
        check_memory(device, manifest, plans)
        library = verified_plugins(plans)
        for graph in graphs:  # a changed plan is refused before a whole one is loaded
            read_plan(root, manifest, plans, graph)
        trt = flavours.load(flavours.resolve(flavour))
        if library is not None:
            load_plugins(trt, library)
        return cls(trt, root, manifest, plans)

    def load(
        self,
        device: Device,
        stream: Stream,
        graph: str,
        spec: GraphSpec,
        path: Path,
        bindings: Sequence[Binding],
    ) -> PlanEngine:
        data = read_plan(self._root, self._manifest, self.plans, graph)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(
                self.sentence(f"{self.name} cannot load {self.plans.graphs[graph].plan}")
                + f" Run: liveedit build {self._root}"
            )
        return PlanEngine(self, graph, engine, spec, bindings, stream)

    def sentence(self, what: str) -> str:
        """``what``, and why, if TensorRT has said so."""
        return f"{what}: {self._log[-1]}." if self._log else f"{what}."

    def close(self) -> None:
        self._runtime = None


def check_memory(device: Device, manifest: Manifest, plans: PlanSet) -> None:
    """Refuse a GPU on which plans and buffers cannot fit, before the first plan is loaded.

    Raises:
        BackendError: by how many bytes.
    """
    needed = sum(plans.device_bytes(manifest).values())
    free = device.free_bytes()
    if needed > free:
        raise BackendError(
            f"these plans need at least {needed} bytes on {device.name} "
            f"({plans.weights_bytes} of weights, {plans.activation_bytes} of activations), of "
            f"which {free} are free: {needed - free} too few. Close other programs, or take a "
            "bundle with fewer pixels or a shorter window."
        )


def load_plugins(trt: Any, library: Path) -> None:
    """Load the C++ plugin library, or register the Python classes over the kernel library.

    Raises:
        BackendError: it does not load.
    """
    if library.suffix == ".py":
        kernels = library_path(KERNEL_LIBRARY)
        if kernels is None:
            raise BackendError(
                f"the plans call plugins, and this installation has no {KERNEL_LIBRARY} to run "
                "them. Install liveedit-trt again where nvcc is found."
            )
        python_plugins.register(trt, kernels)
    elif trt.get_plugin_registry().load_library(str(library)) is None:
        raise BackendError(f"{trt.__name__} cannot load the plugin library {library}")


def _logger(trt: Any, log: list[str]) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= 1:  # internal errors and errors
                log.append(" ".join(message.split()))
                del log[:-8]

    return Log()
