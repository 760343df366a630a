"""One plan, in a process of its own: ``python -m liveedit.engines.build_worker REQUEST.json``.

The library may abort the process; the parent turns that into a sentence. Events go to the original
standard output, one JSON object a line; whatever the library prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from liveedit.bundle import TensorSpec
from liveedit.config import from_dict, to_dict
from liveedit.engines import python_plugins
from liveedit.engines.flavour import FLAVOURS, load
from liveedit.engines.layers import LayerTable, read_log
from liveedit.engines.plan import BuildOptions, PluginLibrary
from liveedit.errors import disk_full

KEPT_MESSAGES = ("Layers:", "Total Weights Memory", "Total Activation Memory")
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "UINT8": "uint8"}


OUT_OF_MEMORY = re.compile(r"out ?of ?memory|bad_alloc|MemoryError", re.IGNORECASE)
LESS_MEMORY = "Free memory, or build fewer token counts (--keep) or one graph at a time (--graph)."


class WorkerError(Exception):
    """A refusal of the library, as a sentence."""


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What the parent asks for. Paths are absolute."""

    flavour: str
    targets: tuple[str, ...]
    onnx: str
    plan: str
    layers: str
    profiles: tuple[dict[str, tuple[int, ...]], ...]
    plugins: PluginLibrary | None
    plugin_path: str | None
    options: BuildOptions = field(default_factory=BuildOptions)
    timing_cache: str | None = None
    parent: int


class Events:
    """JSON lines to the parent."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def send(self, **event: Any) -> None:
        print(json.dumps(event), file=self.stream, flush=True)


def build(request: BuildRequest, events: Events) -> None:
    """Parse, build, write the plan and its layer table, report sizes and times."""
    trt: Any = load(FLAVOURS[request.flavour])
    messages: list[tuple[int, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= 2 or message.startswith(KEPT_MESSAGES):
                messages.append((int(severity), message))

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            events.send(phase=f"building: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    log = Log()
    builder = trt.Builder(log)
    _register_plugins(trt, request)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    events.send(phase="parsing")
    start = time.monotonic()
    if not parser.parse_from_file(request.onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise WorkerError(
            "the parser refuses the graph: "
            + "; ".join(f"{e.node_name()} [{e.node_operator()}]: {e.desc()}" for e in errors[:3])
        )
    parse_s = time.monotonic() - start
    config = _config(trt, builder, request)
    progress = Progress()
    config.progress_monitor = progress
    cache = _load_timing_cache(config, request)
    events.send(phase="building")
    start = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = "; ".join([m for severity, m in messages if severity <= 1][-3:])
        step = f" {LESS_MEMORY}" if OUT_OF_MEMORY.search(why) else ""
        raise WorkerError(f"the builder refuses the graph: {why}{step}")
    build_s = time.monotonic() - start
    events.send(phase="writing")
    plan_bytes = plan.nbytes
    _write(Path(request.plan), plan)
    del plan
    table = read_log(messages)
    _write(Path(request.layers), _table_json(table))
    if cache is not None:
        _save_timing_cache(cache, request)
    events.send(
        done=True,
        inputs=[_spec(network.get_input(i)) for i in range(network.num_inputs)],
        outputs=[_spec(network.get_output(i)) for i in range(network.num_outputs)],
        plan_bytes=plan_bytes,
        weights_bytes=table.weights_bytes,
        activation_bytes=max(table.activation_bytes, default=0),
        parse_s=round(parse_s, 3),
        build_s=round(build_s, 3),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        warnings=list(table.warnings),
    )


def _register_plugins(trt: Any, request: BuildRequest) -> None:
    if request.plugins is None:
        return
    if request.plugins.kind == "library":
        if trt.get_plugin_registry().load_library(request.plugin_path) is None:
            raise WorkerError(f"the plugin library {request.plugin_path} does not load")
        return
    python_plugins.register(trt)


def _config(trt: Any, builder: Any, request: BuildRequest) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # The scatter plugin writes its store in place.
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if FLAVOURS[request.flavour].targets:
        config.num_compute_capabilities = len(request.targets)
        for index, target in enumerate(request.targets):
            capability = getattr(trt.ComputeCapability, target.upper())
            if not config.set_compute_capability(capability, index):
                raise WorkerError(f"the builder refuses the target {target}")
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise WorkerError(f"the builder refuses the optimisation profile {shapes}")
    options = request.options
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    return config


def _load_timing_cache(config: Any, request: BuildRequest) -> Any:
    """Attach the kernel timings of earlier builds; a file the library refuses is started anew."""
    if request.timing_cache is None:
        return None
    path = Path(request.timing_cache)
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise WorkerError("the builder refuses an empty timing cache")
    return cache


def _save_timing_cache(cache: Any, request: BuildRequest) -> None:
    assert request.timing_cache is not None
    path = Path(request.timing_cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    _write(temporary, cache.serialize())
    os.replace(temporary, path)


def _spec(tensor: Any) -> dict[str, Any]:
    name = tensor.dtype.name
    return {
        "name": tensor.name,
        "dtype": DTYPES.get(name, name.lower()),
        "shape": ["num_keep" if n < 0 else n for n in tensor.shape],
    }


def _table_json(table: LayerTable) -> bytes:
    return json.dumps(to_dict(table), separators=(",", ":")).encode()


def _write(path: Path, data: Any) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _die_with(parent: int) -> None:
    """A parent that is killed takes this process along, so that nothing builds unwatched."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> int:
    events = Events(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    request = from_dict(BuildRequest, json.loads(Path(sys.argv[1]).read_bytes()))
    if sys.platform == "linux":
        _die_with(request.parent)
    try:
        build(request, events)
    except WorkerError as error:
        events.send(error=str(error))
        return 1
    except MemoryError:
        events.send(error=f"the builder is out of memory. {LESS_MEMORY}")
        return 1
    except OSError as error:
        events.send(error=f"the disk is full: {error}" if disk_full(error) else str(error))
        return 1
    return 0


def read_io(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a ``done`` event."""
    return tuple(from_dict(TensorSpec, item) for item in items)


if __name__ == "__main__":
    sys.exit(main())
