"""Child process: build one ONNX file with TensorRT-RTX, print its layer table as JSON.

usage: rtx_build.py MODEL.onnx none|python|LIBRARY.so
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt


class Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[tuple[int, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.lines.append((int(severity), message))


def main() -> None:
    model, plugins = sys.argv[1:]
    log = Log()
    if plugins == "python":
        from liveedit.engines.python_plugins import register

        register(trt)
        register(trt)  # the second call finds the first one's creators
    elif plugins != "none":
        assert trt.get_plugin_registry().load_library(plugins) is not None
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(model).read_bytes()):
        sys.exit("\n".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    targets = ("SM86", "SM89", "SM120")
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        assert config.set_compute_capability(getattr(trt.ComputeCapability, target), i)
    profile = builder.create_optimization_profile()
    profile.set_shape("keep_index", (8,), (24,), (96,))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    tables = [m for _, m in log.lines if m.startswith("Layers:")]
    result = {
        "plan_bytes": 0 if plan is None else plan.nbytes,
        "layers": [n for t in tables for n in t.split("\n") if n.startswith("Name:")],
        "unused": [m for _, m in log.lines if m.startswith("Unused Input")],
        "errors": [m for severity, m in log.lines if severity <= 1],
        "outputs": {
            network.get_output(i).name: [
                list(network.get_output(i).shape),
                str(network.get_output(i).dtype),
            ]
            for i in range(network.num_outputs)
        },
    }
    print(json.dumps(result))


main()
