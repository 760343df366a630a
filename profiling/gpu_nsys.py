"""Part of the GPU suite: a capture of the bench in its steady state by Nsight Systems."""

from __future__ import annotations

from liveedit.errors import LiveEditError, UsageError
from liveedit.profiling.gpu_setting import Figures, Setting
from liveedit.profiling.nsys_convert import convert
from liveedit.profiling.nsys_report import Report, text
from liveedit.profiling.nsys_run import check_version, find_nsys, profile
from liveedit.profiling.records import single
from liveedit.runtime.backends import GPU_BACKENDS

CHUNKS = 5


def nsys(s: Setting) -> Figures:
    """The first backend that runs. Report, export, tables and page go to ``capture/``."""
    if s.bundle is None:
        raise UsageError("no bundle was given; add one: gpu_suite.sh OUT BUNDLE")
    try:
        program = find_nsys()
        check_version(program)
    except UsageError as error:
        if not s.dry:
            raise
        print(f"nothing was captured: {error}")
        return {"captures": single(0, "capture", "higher")}
    folder = s.out / "capture"
    folder.mkdir(parents=True, exist_ok=True)
    for backend in ("onnxruntime",) if s.dry else GPU_BACKENDS:
        out = folder / backend
        bench = ["bench", "--bundle", str(s.bundle), "--backend", backend, "--chunks", str(CHUNKS)]
        try:
            report = convert(profile(program, out, bench), out)
        except LiveEditError as error:
            print(f"{backend}: {error}", flush=True)
            continue
        print(text(report))
        return {"captures": single(1, "capture", "higher"), **_figures(backend, report)}
    raise LiveEditError("no backend could be captured; what each said is above")


def _figures(backend: str, report: Report) -> Figures:
    """The tables of a report, in ms per instance of a stage and per chunk."""
    chunks = max(report.chunks, 1)
    out = {
        "chunk_ms": single(report.chunk_ms, "ms", "lower"),
        "idle": single(report.idle_share, "share", "lower"),
        "overlapped": single(report.overlapped_ms / chunks, "ms/chunk"),
        "waits": single(report.syncs / chunks, "call/chunk", "lower"),
    }
    out |= {f"gpu_ms.{r.name}": single(r.gpu_ms_p50, "ms", "lower") for r in report.stages}
    out |= {f"gpu_ms.{r.name}": single(r.gpu_ms_p50, "ms", "lower") for r in report.passes}
    out |= {
        f"kernels_ms.{r.name}": single(r.gpu_ms / chunks, "ms/chunk", "lower")
        for r in report.classes
    }
    return {f"{backend}.{name}": figure for name, figure in out.items()}
