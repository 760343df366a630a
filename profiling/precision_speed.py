"""Two precisions of one bundle, end to end, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from liveedit.profiling.bench_case import Case, run_case
from liveedit.profiling.environment import read_environment
from liveedit.runtime.backends import BACKENDS

CPU_BACKENDS = ("onnxruntime", "null")
Run = Callable[[str], float]  # precision -> frames per second


def gpu_backend() -> tuple[str, str]:
    """The backend that runs plans, or nothing and why it cannot be measured here."""
    if not read_environment().gpus:
        return "", "no GPU on this machine"
    found = [b for b in BACKENDS if b not in CPU_BACKENDS]
    return (found[0], "") if found else ("", "this version has no backend that runs plans")


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
