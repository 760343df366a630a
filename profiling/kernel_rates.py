"""How fast the native kernels move what they must, beside a plain copy on the same card.

Each kernel runs on random inputs of a chunk's size, many launches in one CUDA graph, over so many
sets of arrays that a cache does not hold them. On the CPU its host twin runs in its place, so that
the control flow is tested without a GPU.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveedit.config import DiTConfig, StreamConfig
from liveedit.profiling.records import Figure, distribution, single
from liveedit.runtime.kernels import (
    DTYPE_CODES,
    HOST_LIBRARY,
    KERNEL_LIBRARY,
    check_launch,
    library_path,
    load_kernels,
)
from liveedit.runtime.rope import axis_angles, axis_dims

LIBRARIES = "LIVEEDIT_LIBRARIES"  # environment: folder of the libraries, if not the installed ones
CACHE_BYTES = 256 << 20  # more than any card's second-level cache
KV_BUFFERS = 20  # of the model's 60: what fits a small card beside everything else


@dataclass(frozen=True)
class Case:
    """One kernel at one size."""

    label: str
    kernel: str
    make: Callable[[], tuple[Any, ...]]  # new arguments, tensors for pointers
    bytes: int  # that any implementation reads and writes; 0 where arithmetic is what takes time


def library(device: str) -> tuple[ctypes.CDLL, str] | None:
    """The library for a device and the prefix of its functions, or None if there is none."""
    name = HOST_LIBRARY if device == "cpu" else KERNEL_LIBRARY
    folder = os.environ.get(LIBRARIES)
    path = Path(folder).resolve() / name if folder else library_path(name)
    if path is None or not path.is_file():
        return None
    return load_kernels(path), "liveedit_host_" if device == "cpu" else "liveedit_"


def cases(lib: ctypes.CDLL, dit: DiTConfig, stream: StreamConfig, device: str) -> list[Case]:
    """Every kernel of a chunk, in float16."""
    import torch

    F, h, w = stream.num_frame_per_block, stream.latent_height, stream.latent_width
    L, D, head_dim = stream.block_seq_length, dit.dim, dit.head_dim
    kept = max(1, L // 4)
    frames, height, width = 4 * F, stream.height_px, stream.width_px
    pixels = frames * height * width
    latent = 16 * F * h * w
    code = DTYPE_CODES["float16"]

    def real(*shape: int) -> Any:
        return torch.randn(shape, device=device).to(torch.float16)

    def single_precision(*shape: int) -> Any:
        return torch.randn(shape, device=device)

    def octets(*shape: int) -> Any:
        return torch.randint(0, 256, shape, device=device, dtype=torch.uint8)

    def numbers(dtype: Any, *values: int) -> Any:
        return torch.tensor(values, device=device, dtype=dtype)

    def chosen() -> tuple[Any, Any]:
        index = torch.randperm(L, device=device)[:kept].sort().values.to(torch.int32)
        rows = torch.full((L,), -1, device=device, dtype=torch.int32)
        rows[index.long()] = torch.arange(kept, device=device, dtype=torch.int32)
        return index, rows

    def gather() -> tuple[Any, ...]:
        scale, shift = single_precision(D), single_precision(D)
        return real(L, D), scale, shift, chosen()[0], real(kept, D), L, kept, D, code

    def scatter() -> tuple[Any, ...]:
        store = real(L, D)
        arrays = (real(L, D), real(kept, D), store, single_precision(D), chosen()[1])
        return (*arrays, real(L, D), store, L, kept, D, code)

    def commit() -> tuple[Any, ...]:
        rows = stream.kv_cache_length
        buffers = [real(dit.num_heads, rows, head_dim) for _ in range(KV_BUFFERS)]
        table = torch.tensor([b.data_ptr() for b in buffers], device=device)
        plan = numbers(torch.int64, rows - L, 0, L)
        sizes = (KV_BUFFERS, dit.num_heads, rows, 2 * head_dim, L)
        return (table, plan, *sizes, 1, buffers)

    def importance() -> tuple[Any, ...]:
        scratch = octets(lib.liveedit_importance_scratch(F * h * w))
        outputs = (single_precision(F * h * w), single_precision(1))
        return real(latent), real(latent), scratch, *outputs, None, 16, F * h * w, 0, code

    def select(mode: int) -> tuple[Any, ...]:
        keep = max(1, int(h * w * 0.3) // (4 if mode else 1))
        index, rows = chosen()[1], chosen()[1]
        outputs = (index, rows, octets(L), numbers(torch.int32, 0, 0))
        given = (torch.rand(F * h * w, device=device), None)
        scratch = octets(lib.liveedit_select_scratch(F, h, w))
        policy = (mode, keep, stream.keep_bucket, 0)
        return (*given, scratch, *outputs, None, F, h, w, *policy)

    def nv12_sizes() -> tuple[int, ...]:
        return frames, height, width, width, height * width, pixels

    def rope() -> tuple[Any, ...]:
        time_dim = axis_dims(head_dim)[0]
        frequency = torch.tensor(axis_angles([1], time_dim)[0], device=device)
        tables = (single_precision(L, head_dim // 2), single_precision(L, head_dim // 2))
        sizes = (F, L // F, time_dim // 2, head_dim // 2)
        return (numbers(torch.int64, 10**6), frequency, *tables, *sizes)

    def replace() -> tuple[Any, ...]:
        state = [numbers(torch.int32, n) for n in (0, 1, 0)]
        return real(latent), real(latent), real(latent), 2 * latent, *state, None, 1

    return [
        Case("gather_keep25", "mask_cache_gather", gather, 4 * kept * D),
        Case("scatter_keep25", "mask_cache_scatter", scatter, 2 * D * (3 * L + kept)),
        Case("commit", "copy_rows", commit, 4 * KV_BUFFERS * dit.num_heads * L * head_dim),
        Case(
            "frames_in",
            "frames_in",
            lambda: (octets(pixels, 3), real(256), real(3, pixels), pixels, code),
            9 * pixels,
        ),
        Case(
            "frames_out",
            "frames_out",
            lambda: (real(3, pixels), octets(pixels, 3), pixels, 0.0, 255.0, code),
            9 * pixels,
        ),
        Case(
            "nv12_in",
            "nv12_in",
            lambda: (
                *(octets(pixels), octets(pixels), real(256), real(3, pixels)),
                *(*nv12_sizes(), 1, 0, code),
            ),
            6 * pixels + 3 * pixels // 2,
        ),
        Case(
            "nv12_out",
            "nv12_out",
            lambda: (
                *(real(3, pixels), octets(pixels), octets(pixels)),
                *(*nv12_sizes(), 0.0, 255.0, 1, 0, code),
            ),
            6 * pixels + 3 * pixels // 2,
        ),
        Case(
            "non_finite",
            "non_finite",
            lambda: (real(latent), latent, numbers(torch.int32, 0), code),
            2 * latent,
        ),
        Case("replace", "replace", replace, 4 * latent),
        Case(
            "noise",
            "noise",
            lambda: (numbers(torch.int64, 1, 2), real(latent), latent, 0, code),
            0,
        ),
        Case("rope_time", "rope_time", rope, 0),
        Case("importance", "importance", importance, 0),
        Case("select_released", "select_tokens", lambda: select(0), 0),
        Case("select_paper", "select_tokens", lambda: select(1), 0),
    ]


def kernel_rates(
    lib: ctypes.CDLL, prefix: str, made: list[Case], device: str, rounds: int, copy_gbps: float
) -> dict[str, Figure]:
    """Time per launch of each case, its rate, and that rate beside ``copy_gbps``."""
    out: dict[str, Figure] = {}
    for case in made:
        sets = 2
        if device != "cpu" and case.bytes:
            sets = max(2, min(64, -(-CACHE_BYTES // case.bytes)))
        arguments = [case.make() for _ in range(sets)]
        times = _launch_us(getattr(lib, prefix + case.kernel), case, arguments, device, rounds)
        out[f"{case.label}.us"] = distribution(times, "us", "lower")
        if case.bytes:
            gbps = case.bytes / out[f"{case.label}.us"].value / 1e3
            out[f"{case.label}.gbps"] = single(gbps, "GB/s", "higher")
            out[f"{case.label}.of_copy"] = single(gbps / copy_gbps, "ratio", "higher")
    return out


def _launch_us(
    function: Any, case: Case, arguments: list[tuple[Any, ...]], device: str, rounds: int
) -> list[float]:
    """Microseconds per launch, one sample for each round over all sets of arguments."""
    import torch

    def pointers(values: tuple[Any, ...]) -> list[Any]:
        # A list is memory that a table points to: held alive, not passed.
        kept = (v for v in values if not isinstance(v, list))
        return [v.data_ptr() if isinstance(v, torch.Tensor) else v for v in kept]

    calls = [pointers(values) for values in arguments]

    def launch(*stream: int) -> None:
        for values in calls:
            check_launch(function(*values, *stream), case.kernel)

    samples = []
    if device == "cpu":
        for _ in range(rounds):
            start = time.perf_counter_ns()
            launch()
            samples.append((time.perf_counter_ns() - start) / 1e3 / len(calls))
        return samples
    launch(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(torch.cuda.current_stream().cuda_stream)
    graph.replay()
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return samples
