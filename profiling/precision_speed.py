"""Two precisions of one bundle, end to end, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from liveedit.engines import flavour as flavours
from liveedit.engines import gpu
from liveedit.engines.builder import check_fp8
from liveedit.errors import LiveEditError
from liveedit.profiling.bench_case import Case, run_case
from liveedit.runtime.cuda_device import CudaDevice

Run = Callable[[str], float]  # precision -> frames per second


def gpu_flavour(precision: str) -> tuple[str, str]:
    """The TensorRT flavour whose plans of a precision run here, or nothing and why none does.

    Asked before anything is measured, so that it does not fail after hours of it.
    """
    present = gpu.compute_capability()
    if present is None:
        return "", "no GPU on this machine"
    try:
        chosen = flavours.resolve("auto")
        flavours.load(chosen)
        flavours.check_targets(chosen, (present,), present)
        check_fp8(precision, (present,))
        CudaDevice().close()
    except LiveEditError as error:
        return "", str(error)
    return chosen.name, ""


def frames_per_second(bundle: Path, backend: str, chunks: int = 40) -> Run:
    """How the bench measures a precision: the median chunk after the window is full."""

    def run(precision: str) -> float:
        case = Case(bundle=bundle, backend=backend, precision=precision, chunks=chunks)
        return run_case(case).fps

    return run


def compare_speed(base: str, quantised: str, run: Run) -> tuple[float, float]:
    """Frames per second of both. The order A-B-B-A takes a card that warms up out of it."""
    first, second = run(base), run(quantised)
    third, fourth = run(quantised), run(base)
    return (first + fourth) / 2, (second + third) / 2
