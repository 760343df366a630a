"""`liveedit bench`: frames per second that say what they include."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from liveedit.bundle import write_atomic
from liveedit.cli.stream_options import add_stream_arguments
from liveedit.config import to_dict
from liveedit.errors import UsageError
from liveedit.profiling import (
    bench_report,
    host_overhead,
    machine_peaks,
    pass_speed,
    reference_speed,
)
from liveedit.profiling.bench_case import Case, CaseResult, run_case, to_record
from liveedit.profiling.gpus import find_gpu
from liveedit.profiling.host_trace import host_trace
from liveedit.profiling.nsys_report import analyse
from liveedit.profiling.records import (
    Figure,
    Record,
    compare,
    read_record,
    single,
    write_record,
)
from liveedit.profiling.timeline import page
from liveedit.runtime.backends import GPU_BACKENDS
from liveedit.runtime.shipped import shipped

SUBCOMMANDS = {
    "soak": "run long and watch memory, latency and non-finite chunks",
    "tables": "write the measured tables of the docs from the committed records",
}
SWEEPS = {
    "bundle": ("bundle", Path),  # windows and codecs are properties of a bundle
    "backend": ("backend", str),
    "precision": ("precision", str),
    "mask-cache": ("mask", str),
    "keep-ratio": ("keep", float),
    "token-budget": ("token_budget", int),
    "threads": ("threads", int),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_stream_arguments(parser)
    parser.add_argument("--chunks", type=int, default=20, help="measured; default: %(default)s")
    parser.add_argument(
        "--warmup", type=int, metavar="CHUNKS", help="default: what fills the attention window"
    )
    parser.add_argument("--video", type=Path, help="source frames; default: a moving square")
    parser.add_argument("--prompt", default="make it blue", help="default: %(default)s")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=A,B,...",
        help=f"measure every combination; names: {', '.join(SWEEPS)}",
    )
    parser.add_argument(
        "--serial", action="store_true", help="on a GPU: one chunk at a time, one stream"
    )
    parser.add_argument(
        "--no-cuda-graphs", action="store_true", help="on a GPU: queue every call anew"
    )
    parser.add_argument(
        "--prewarm", action="store_true", help="on a GPU: capture everything when it is opened"
    )
    parser.add_argument(
        "--stages",
        action="store_true",
        help="on a GPU: wait after each stage, for its time; implies --serial --no-cuda-graphs",
    )
    parser.add_argument("--host", action="store_true", help="also the host's share (null backend)")
    parser.add_argument(
        "--pass-speed", action="store_true", help="also pruned against full passes, per FLOP"
    )
    parser.add_argument(
        "--reference",
        choices=("eager", "compile"),
        help="also a full pass of the PyTorch reference, between two of ours",
    )
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="an older record")
    parser.add_argument("--out", type=Path, metavar="DIR", help="records, Markdown and plots")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="no PNG under --out")
    subparsers = parser.add_subparsers(dest="bench_command", metavar="[soak | tables]")
    for name, summary in SUBCOMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary)
        module = importlib.import_module(f"liveedit.cli.bench_{name}")
        module.add_arguments(sub)
        sub.set_defaults(bench_run=module.run)


def run(options: argparse.Namespace) -> int:
    if options.bench_command:
        return int(options.bench_run(options) or 0)
    command = shlex.join(["liveedit", *sys.argv[1:]])
    old = read_record(options.compare) if options.compare else None
    if old is not None and old.kind != "bench":
        raise UsageError(
            f"{options.compare} is a {old.kind} record; --compare takes a bench record"
        )
    results: list[CaseResult] = []
    records: list[Record] = []
    if options.pass_speed and options.backend in GPU_BACKENDS:
        raise UsageError(
            f"--pass-speed compares passes on one CPU thread; leave it out with {options.backend}, "
            "and sweep --keep-ratio with --stages instead"
        )
    for case in _cases(options):
        result = run_case(case)
        record = to_record(result, command)
        if not records:
            record = _with_extras(record, options, result.case)
        print(bench_report.text_report(record), end="\n\n", flush=True)
        results.append(result)
        records.append(record)
    if len(records) > 1:
        print(bench_report.sweep_report(records), end="\n\n")
    if old is not None:
        new = next((r for r in records if r.part == old.part), records[0])
        print(bench_report.comparison(compare(old, new)), end="\n\n")
    if options.out:
        _write(options.out, results, records, plots=options.plots)
    print(json.dumps({"records": [to_dict(r) for r in records]}, allow_nan=False))
    return 0


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    base = Case(
        bundle=options.bundle or shipped("tiny"),
        backend=options.backend,
        precision=options.precision,
        mask=options.mask_cache,
        keep=options.keep_ratio,
        token_budget=options.token_budget,
        chunks=options.chunks,
        warmup=options.warmup,
        threads=options.threads,
        overlap=not options.serial,
        cuda_graphs=not options.no_cuda_graphs,
        prewarm=options.prewarm,
        wait_stages=options.stages,
        prompt=options.prompt,
        video=options.video,
    )
    axes = [_axis(text) for text in options.sweep]
    seen = set()
    for values in itertools.product(*(values for _, values in axes)):
        case = replace(base, **{name: v for (name, _), v in zip(axes, values, strict=True)})
        if case.mask == "off":
            # Neither has a meaning there; outside a sweep a budget is refused.
            case = replace(case, keep=1.0, token_budget=None if axes else case.token_budget)
        if case not in seen:
            seen.add(case)
            yield case


def _axis(text: str) -> tuple[str, list[Any]]:
    name, _, values = text.partition("=")
    if name not in SWEEPS or not values:
        raise UsageError(f"--sweep {text!r} is not NAME=A,B,... with one of {', '.join(SWEEPS)}")
    field, kind = SWEEPS[name]
    try:
        return field, [kind(v) for v in values.split(",")]
    except ValueError:
        raise UsageError(f"--sweep {text!r}: every value must be {kind.__name__}") from None


def _with_extras(record: Record, options: argparse.Namespace, case: Case) -> Record:
    extra: dict[str, Figure] = {}
    if options.host:
        host = host_overhead.measure(case.bundle, case.policy, precision=case.precision)
        extra |= host_overhead.figures(host)
    if options.pass_speed:
        for keep in (0.5, 0.3, 0.1):
            speed = pass_speed.measure(case.bundle, keep, precision=case.precision)
            name = f"pass_speed.keep_{keep:g}"
            extra[f"{name}.speedup"] = single(speed.speedup, "x", "higher")
            extra[f"{name}.of_flop_prediction"] = single(
                speed.share_of_prediction, "share", "higher"
            )
    if options.reference:
        ref = reference_speed.measure(
            case.bundle, options.reference, precision=case.precision, threads=case.threads,
            backend=case.backend,
        )  # fmt: skip
        name = f"reference.{ref.mode}"
        extra[f"{name}.full_pass_ms"] = single(ref.reference_ms, "ms")
        extra[f"{name}.our_full_pass_ms"] = single(
            (ref.ours_before_ms + ref.ours_after_ms) / 2, "ms", "lower"
        )
        extra[f"{name}.speedup"] = single(ref.speedup, "x", "higher")
        extra[f"{name}.drift"] = single(ref.drift, "x")
    return replace(record, figures={**record.figures, **extra})


def _write(out: Path, results: list[CaseResult], records: list[Record], *, plots: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for record in records:
        write_record(out / f"{record.part}.json", record)
    write_atomic(out / "bench.md", bench_report.markdown_report(records).encode())
    trace = host_trace(results[0].spans, records[0].part)
    write_atomic(out / "timeline.html", page(trace, analyse(trace)).encode())
    if plots:
        from liveedit.profiling import plots as draw

        samples = {
            r.part: [c.ms for c in result.chunks]
            for r, result in zip(records, results, strict=True)
        }
        draw.latency_histogram(samples, out / "latency.png")
        draw.stage_bars(records, out / "stages.png")
        draw.fps_against_keep(records, out / "fps.png")
        try:
            draw.roofline(
                bench_report.dit_points(records), *_peaks(results[0], records[0]),
                out / "roofline.png", title="DiT passes of a chunk",
            )  # fmt: skip
        except UsageError as error:
            print(f"no roofline.png: {error}")
    print(f"wrote {out}", end="\n\n")


def _peaks(result: CaseResult, record: Record) -> tuple[float, float]:
    """GFLOP/s and GB/s of what ran the DiT: the card by its table entry, this CPU measured.

    Raises:
        UsageError: the card is not known, or what measures a CPU is not installed.
    """
    if result.case.backend in GPU_BACKENDS:
        if not record.environment.gpus:
            raise UsageError("the card's name is not known. Run: pip install nvidia-ml-py")
        card = find_gpu(record.environment.gpus[0].name)
        return card.half_tflops * 1e3, card.bandwidth_gbps
    peaks = machine_peaks.measure(result.case.threads)
    return peaks.gflops, peaks.bandwidth_gbps
