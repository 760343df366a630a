"""The parts of `profiling/gpu_suite.sh`, each one record, in order of value.

``python -m liveedit.profiling.gpu_parts list`` prints names and time limits; ``run PART`` runs one.
``--dry-run`` takes toy sizes on the CPU, so that every part's control flow is tested without a GPU.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liveedit.config import StreamConfig, to_dict
from liveedit.errors import LiveEditError, UsageError
from liveedit.profiling.accounting import dit_pass, total_flops
from liveedit.profiling.codec_accounting import (
    codec_work,
    taehv_decode,
    taehv_encode,
    wan_decode,
    wan_encode,
)
from liveedit.profiling.gpu_editor import Codec, editor
from liveedit.profiling.gpu_eight_bit import eight_bit
from liveedit.profiling.gpu_nsys import nsys
from liveedit.profiling.gpu_plugins import plugins
from liveedit.profiling.gpu_setting import Figures, Setting, setting
from liveedit.profiling.gpu_summary import summary
from liveedit.profiling.kernel_classes import kernel_class
from liveedit.profiling.kernel_rates import cases, kernel_rates, library
from liveedit.profiling.records import (
    Record,
    distribution,
    new_record,
    single,
    write_record,
)
from liveedit.profiling.reference_speed import ReferenceMode, times_ms, torch_pass

if TYPE_CHECKING:
    from liveedit.profiling.bench_case import Case
    from liveedit.runtime.backend import Frames


def machine(s: Setting) -> Figures:
    """What the card reaches on one large product and one large copy."""
    import torch

    size, mib = (512, 8) if s.dry else (8192, 1024)
    real = getattr(torch, s.dtype)
    a = torch.randn(size, size, device=s.device, dtype=real)
    source = torch.empty(mib << 20, device=s.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = _timed(s, lambda: torch.mm(a, a))
    copy = _timed(s, lambda: target.copy_(source))
    return {
        "gemm_tflops": single(2 * size**3 / min(product) / 1e9, "TFLOP/s", "higher"),
        "copy_gbps": single(2 * (mib << 20) / min(copy) / 1e6, "GB/s", "higher"),
    }


def gpu_tests(name: str, what: str) -> Callable[[Setting], Figures]:
    """One file of the repository's own GPU tests."""

    def run(s: Setting) -> Figures:
        root = Path(__file__).resolve().parents[1]
        tests = root / "tests" / name
        if not tests.is_file():
            raise UsageError(f"{tests} is missing; run the suite from a checkout")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
        command += ["--collect-only"] if s.dry else []
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        said = done.stdout[-3000:] + done.stderr[-1000:]  # a conftest that fails is in the latter
        print(said)
        if done.returncode:
            raise LiveEditError(f"the {what} tests failed ({done.returncode}): {said[-400:]}")
        return {f"{what}_tests_failed": single(0, "test", "lower")}

    return run


def rates(s: Setting) -> Figures:
    """Time of every kernel, and its bandwidth beside that of a plain copy."""
    found = library(s.device)
    if found is None:
        if not s.dry:
            raise LiveEditError("no kernel library here; see build.txt, or set LIVEEDIT_LIBRARIES")
        print("no host library here; nothing was timed")
        return {"kernels_timed": single(0, "kernel", "higher")}
    copy = machine(s)["copy_gbps"]
    lib, prefix = found
    made = cases(lib, s.dit, s.stream, s.device)
    figures = kernel_rates(lib, prefix, made, s.device, s.rounds, copy.value)
    return {"kernels_timed": single(len(made), "kernel", "higher"), "copy_gbps": copy, **figures}


def reference(mode: ReferenceMode, time_s: float) -> Callable[[Setting], Figures]:
    """Full passes of the PyTorch reference at windows 12, 21 and 6, while ``time_s`` lasts."""

    def run(s: Setting) -> Figures:
        out: Figures = {}
        begin = time.monotonic()
        # A dry run traces the network, but a C++ compiler would say nothing of a GPU's kernels.
        compiler = "aot_eager" if s.dry else "inductor"
        for done, window in enumerate((12,) if s.dry and mode == "compile" else (12, 21, 6)):
            spent_s = time.monotonic() - begin
            if done and spent_s * (done + 1) / done > time_s:
                print(f"no time was left from window {window} on")
                break
            stream = replace(s.stream, local_attn_size=window)
            once = torch_pass(
                s.dit, stream, mode, device=s.device, dtype=s.dtype, compiler=compiler
            )
            out |= _pass_figures(s, stream, f"w{window}", times_ms(once, s.rounds), None)
        return out

    return run


def masks(s: Setting) -> Figures:
    """Pruned passes of the eager reference at several keep ratios."""
    out: Figures = {}
    tokens = s.stream.block_seq_length
    for keep in (0.1, 0.3, 0.5):
        kept = max(1, round(keep * tokens))
        once = torch_pass(s.dit, s.stream, "eager", kept=kept, device=s.device, dtype=s.dtype)
        times = times_ms(once, s.rounds)
        out |= _pass_figures(s, s.stream, f"keep{keep:g}", times, kept)
    return out


def codecs(s: Setting) -> Figures:
    """One latent step of both codecs, eager."""
    import torch

    from liveedit.models.taehv import TAEHV
    from liveedit.models.wan_vae import WanVAE

    h, w = s.stream.height_px, s.stream.width_px
    real = getattr(torch, s.dtype)
    made: list[tuple[str, Any, tuple[Any, Any], tuple[bool, ...]]] = [
        ("wan", WanVAE(s.wan), (wan_encode(s.wan, h, w), wan_decode(s.wan, h, w)), (False,)),
        ("taehv", TAEHV(s.taehv), (taehv_encode(s.taehv, h, w), taehv_decode(s.taehv, h, w)), ()),
    ]
    out: Figures = {}
    for name, codec, layers, first in made:
        codec = codec.to(s.device, real).eval()
        frames = torch.rand(1, 3, 4, h, w, device=s.device, dtype=real)
        latent = torch.randn(1, 16, 1, h // 8, w // 8, device=s.device, dtype=real)
        shapes = (codec.encode_cache_shapes(h, w), codec.decode_cache_shapes(h, w))
        encode_caches, decode_caches = (
            [torch.zeros(x, device=s.device, dtype=real) for x in part] for part in shapes
        )
        encode = _timed(s, partial(codec.encode_step, frames, encode_caches, *first))
        decode = _timed(s, partial(codec.decode_step, latent, decode_caches, *first))
        for direction, times, part in zip(
            ("encode", "decode"), (encode, decode), layers, strict=True
        ):
            key = f"{name}_{direction}"
            flops = total_flops(codec_work(part))
            out[f"{key}_ms_per_latent"] = distribution(times, "ms", "lower")
            rate = flops / out[f"{key}_ms_per_latent"].value / 1e9
            out[f"{key}_tflops"] = single(rate, "TFLOP/s", "higher")
    return out


def kernel_times(s: Setting) -> Figures:
    """Device time of an eager full pass per kernel class, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    once = torch_pass(s.dit, s.stream, "eager", device=s.device, dtype=s.dtype)
    once()
    activities = [ProfilerActivity.CPU] if s.dry else [ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        once()
    totals: dict[str, float] = {}
    for event in profiler.key_averages():
        ms = float(event.self_cpu_time_total if s.dry else event.self_device_time_total) / 1e3
        kind = kernel_class(event.key)
        totals[kind] = totals.get(kind, 0.0) + ms
    return {f"ms.{k}": single(ms, "ms", "lower") for k, ms in totals.items() if ms > 0}


def backends(s: Setting) -> Figures:
    """Every backend that loads, end to end on the given bundle; parity with ONNX Runtime's CPU."""
    from liveedit.profiling.bench_case import Case
    from liveedit.runtime.backends import GPU_BACKENDS

    if s.bundle is None:
        raise UsageError("no bundle was given; add one: gpu_suite.sh OUT BUNDLE")
    case = Case(bundle=s.bundle, chunks=2 if s.dry else 30, warmup=1 if s.dry else None)
    out, expected = _backend_figures("onnxruntime", case, None)
    for name in GPU_BACKENDS:
        for graphs, overlap in ((True, True), (False, True), (True, False), (False, False)):
            label = name + ("" if graphs else ".no-graphs") + ("" if overlap else ".serial")
            mine = replace(case, backend=name, cuda_graphs=graphs, overlap=overlap)
            try:
                out |= _backend_figures(label, mine, expected)[0]
            except LiveEditError as error:
                print(f"{label}: {error}")
                break  # the others would say the same
    return out


def _backend_figures(label: str, case: Case, expected: Frames | None) -> tuple[Figures, Frames]:
    """Speed of a case, and how its frames differ from those expected. Also those frames."""
    import numpy as np

    from liveedit.profiling.bench_case import run_case
    from liveedit.profiling.frames import moving_square
    from liveedit.profiling.prompting import give_prompt
    from liveedit.runtime.mask_cache import MaskCachePolicy
    from liveedit.runtime.stream import StreamEditor

    result = run_case(case)
    with StreamEditor.open(
        case.bundle,
        backend=case.backend,
        overlap=case.overlap,
        cuda_graphs=case.cuda_graphs,
        mask_cache=MaskCachePolicy(mode="off"),
    ) as editor:
        give_prompt(editor, "a", result.precision)
        source = moving_square(24, editor.height_px, editor.width_px)
        frames = np.concatenate([c.frames for c in editor.push(source) + editor.flush()])
    difference = np.abs(frames.astype(np.int16) - (frames if expected is None else expected))
    return {
        f"{label}.fps": single(result.fps, "frame/s", "higher"),
        f"{label}.chunk_ms": distribution([c.ms for c in result.chunks], "ms", "lower"),
        f"{label}.largest_difference": single(float(difference.max()), "of 255", "lower"),
        f"{label}.mean_difference": single(float(difference.mean()), "of 255", "lower"),
    }, frames


@dataclass(frozen=True)
class Part:
    run: Callable[[Setting], Figures]
    limit_s: int


def _editor(codec: Codec, window: int, limit_s: int) -> dict[str, Part]:
    """The part that runs one editor. It ends itself before the limit, to keep what it has."""
    return {f"editor-w{window}-{codec}": Part(editor(codec, window, limit_s - 60), limit_s)}


def _eight_bit(codec: Codec, limit_s: int) -> dict[str, Part]:
    return {f"eight-bit-w12-{codec}": Part(eight_bit(codec, limit_s - 60), limit_s)}


PARTS: dict[str, Part] = {
    "machine": Part(machine, 120),
    "kernels": Part(gpu_tests("plugins/test_gpu.py", "kernel"), 240),
    "device": Part(gpu_tests("runtime/test_gpu_device.py", "device"), 180),
    **_editor("wan", 12, 900),
    "kernel-rates": Part(rates, 120),
    "reference-eager": Part(reference("eager", 220), 240),
    "backends": Part(backends, 500),
    "nsys": Part(nsys, 120),
    **_editor("taehv", 12, 600),
    **_eight_bit("taehv", 500),
    "plugins": Part(partial(plugins, time_s=300), 400),
    "codecs": Part(codecs, 240),
    "masks": Part(masks, 180),
    **_eight_bit("wan", 360),
    **_editor("wan", 21, 600),
    **_editor("wan", 6, 600),
    "kernel-times": Part(kernel_times, 120),
    "reference-compile": Part(reference("compile", 480), 500),
    **_editor("taehv", 21, 340),
    **_editor("taehv", 6, 340),
}


def _timed(s: Setting, call: Callable[[], Any]) -> list[float]:
    import torch

    def once() -> None:
        with torch.inference_mode():
            call()
        if s.device != "cpu":
            torch.cuda.synchronize()

    return times_ms(once, s.rounds)


def _pass_figures(
    s: Setting, stream: StreamConfig, label: str, times: list[float], kept: int | None
) -> Figures:
    work = dit_pass(s.dit, tokens=stream.block_seq_length, keys=stream.kv_cache_length, kept=kept)
    ms = distribution(times, "ms", "lower")
    return {
        f"{label}.pass_ms": ms,
        f"{label}.tflops": single(total_flops(work) / ms.value / 1e9, "TFLOP/s", "higher"),
    }


def run_part(name: str, s: Setting, command: str) -> Record:
    """Run one part. Raises what the part raises."""
    figures = PARTS[name].run(s)
    if s.device != "cpu":
        import torch

        peak = torch.cuda.max_memory_allocated() / 1e9
        figures["memory_peak"] = single(peak, "GB", "lower")
    configuration: dict[str, Any] = {
        "dry_run": s.dry,
        "dtype": s.dtype,
        "dit": to_dict(s.dit),
        "stream": to_dict(s.stream),
        "bundle": s.bundle.name if s.bundle else "",
    }
    notes = ("toy sizes on the CPU: figures mean nothing",) if s.dry else ()
    return new_record("gpu", name, command, configuration, figures, notes=notes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_parts", description=__doc__)
    parser.add_argument("action", choices=("list", "run", "summary"))
    parser.add_argument("part", nargs="?", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(argv)
    if options.action == "list":
        print("\n".join(f"{name} {part.limit_s}" for name, part in PARTS.items()))
        return 0
    try:
        if options.action == "summary":
            print(summary(options.out))
            return 0
        if options.part is None:
            raise UsageError(f"run needs a part: {', '.join(PARTS)}")
        s = setting(dry_run=options.dry_run, bundle=options.bundle, out=options.out)
        command = shlex.join(["profiling/gpu_suite.sh", str(options.out), options.part])
        record = run_part(options.part, s, command)
        write_record(options.out / f"{options.part}.json", record)
    except LiveEditError as error:
        print(f"{options.part}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
