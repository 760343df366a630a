"""What this machine's CPU can do at most, measured: one large product and one large copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from liveedit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class MachinePeaks:
    """The best of several tries: on a shared machine a peak is what was reached once."""

    gflops: float
    bandwidth_gbps: float


def measure(threads: int | None = None, *, size: int = 768, tries: int = 6) -> MachinePeaks:
    """Float32 product of ONNX Runtime with ``threads``; copy of memory far larger than caches.

    One thread is timed with its own CPU time, which other processes do not disturb.

    Raises:
        UsageError: the onnx package is not installed.
    """
    return MachinePeaks(
        gflops=_product_gflops(threads, size, tries), bandwidth_gbps=_copy_gbps(tries)
    )


def _product_gflops(threads: int | None, size: int, tries: int) -> float:
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise UsageError(
            "this CPU's peak is measured with the onnx package. Run: pip install onnx"
        ) from None
    shape = [size, size]
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "abc"]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {n: np.ones(shape, dtype=np.float32) for n in "ab"}
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = min(_seconds(lambda: session.run(None, feeds), clock) for _ in range(tries))
    return 2 * size**3 / best / 1e9


def _copy_gbps(tries: int, size_bytes: int = 128 << 20) -> float:
    source = np.ones(size_bytes, dtype=np.uint8)
    target = np.empty_like(source)
    best = min(_seconds(lambda: np.copyto(target, source), time.thread_time) for _ in range(tries))
    return 2 * size_bytes / best / 1e9


def _seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start
