"""`liveedit profile layers`: what every layer takes, what it could take, what to fix first."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from liveedit.bundle import Manifest, read_manifest
from liveedit.cli.profile_roofline import add_gpu, chosen_gpu
from liveedit.config import to_dict
from liveedit.errors import UsageError
from liveedit.profiling import layer_table, machine_peaks
from liveedit.profiling.gpus import Gpu
from liveedit.profiling.layer_table import LayerRow, LayerTime, group
from liveedit.profiling.onnx_flops import NodeFlops, count
from liveedit.profiling.ort_profile import profile_pass
from liveedit.profiling.plan_layers import (
    plan_rows,
    plan_text,
    plan_times,
    read_layers,
    read_times,
)
from liveedit.profiling.records import new_record, single, write_record
from liveedit.runtime.backends import resolve
from liveedit.runtime.shipped import shipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="default: the shipped one")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--kept", type=int, metavar="TOKENS", help="a pruned pass of so many")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--by", choices=("class", "part", "block", "layer"), default="part", help="grouping of rows"
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE.layers.json", help="a plan's layer table instead"
    )
    parser.add_argument(
        "--times",
        type=Path,
        metavar="FILE.json",
        help="measured times of the plan's layers: a list of {name, averageMs}",
    )
    parser.add_argument(
        "--backend",
        default="onnxruntime",
        choices=("onnxruntime", "tensorrt", "tensorrt-rtx"),
        help="what runs the pass; TensorRT's own profiler times a plan on this GPU",
    )
    add_gpu(parser, default="the one that --backend measures on, else H200")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="roofline plot")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write a record")


def run(options: argparse.Namespace) -> int:
    if options.times and not options.plan:
        raise UsageError("--times belongs to a plan; give --plan FILE.layers.json too")
    bundle = options.bundle or shipped("tiny")
    if options.plan and not options.times:
        layers = read_layers(options.plan)
        rows = plan_rows(layers, options.by)
        print(plan_text(rows))
        print(json.dumps({"plan": options.plan.name, "rows": [r.__dict__ for r in rows]}))
        return 0
    manifest = read_manifest(bundle)
    _, precision = resolve(bundle, manifest, options.backend, options.precision)
    flops = _flops(bundle, manifest, precision, options.kept)
    gpu: Gpu | None = None
    if options.backend != "onnxruntime":
        times, gpu = _on_gpu(options, bundle, manifest, precision)
    elif options.plan:
        times = plan_times(read_layers(options.plan), read_times(options.times))
        gpu = chosen_gpu(options, "H200")
    if gpu is not None:
        peak, bandwidth, where = gpu.half_tflops * 1e3, gpu.bandwidth_gbps, gpu.name
    else:
        peaks = machine_peaks.measure(options.threads)
        peak, bandwidth, where = peaks.gflops, peaks.bandwidth_gbps, "this CPU, measured"
        nodes = profile_pass(
            bundle,
            manifest,
            precision,
            kept=options.kept,
            threads=options.threads,
            runs=options.runs,
        )
        times = layer_table.place_nodes(nodes)
    _report(options, bundle, manifest, precision, times, flops, peak, bandwidth, where)
    return 0


def _on_gpu(
    options: argparse.Namespace, bundle: Path, manifest: Manifest, precision: str
) -> tuple[list[LayerTime], Gpu]:
    """Layer times of the bundle's plan, measured here, and the card.

    Raises:
        BackendError: no GPU, or no plan that fits.
        UsageError: the card's peaks are not known; says how to give them.
    """
    if options.plan or options.kept:
        raise UsageError("--backend measures full passes of a bundle's own plan: no --plan, --kept")
    from liveedit.engines.plan_loader import PlanLoader
    from liveedit.profiling.plan_run import GRAPH, layer_times
    from liveedit.runtime.cuda_device import CudaDevice

    device = CudaDevice()
    gpu = chosen_gpu(options, device.name)
    loader = PlanLoader.open(device, bundle, manifest, precision, options.backend)
    times = layer_times(bundle, manifest, precision, device, loader, chunks=options.runs)
    layers = read_layers(bundle / loader.plans.graphs[GRAPH].layers)
    return plan_times(layers, times.average_ms), gpu


def _flops(bundle: Path, manifest: Manifest, precision: str, kept: int | None) -> list[NodeFlops]:
    stream = manifest.stream
    tokens = stream.block_seq_length
    n = tokens if kept is None else kept
    if not 0 < n <= tokens:
        raise UsageError(f"--kept {n} is not in 1..{tokens}, the tokens of a chunk")
    file = bundle / manifest.graphs[precision]["dit_step"].file
    seen = stream.kv_cache_length - tokens + n
    return count(file, dims={"num_keep": n}, kv_length=seen)


def _report(
    options: argparse.Namespace,
    bundle: Path,
    manifest: Manifest,
    precision: str,
    times: list[LayerTime],
    flops: list[NodeFlops],
    peak: float,
    bandwidth: float,
    where: str,
) -> None:
    def grouped(by: layer_table.Grouping) -> list[LayerRow]:
        return group(times, flops, by=by, peak_gflops=peak, bandwidth_gbps=bandwidth)

    rows = grouped(options.by)
    kind = f"pruned pass, {options.kept} tokens" if options.kept else "full pass"
    print(
        f"{manifest.model.name} {precision}, {kind}: {sum(r.ms for r in rows):.2f} ms; "
        f"roofline of {where}: {peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s\n"
    )
    print(layer_table.text(rows))
    print("\nfix first:")
    for sentence in layer_table.fix_first(rows):
        print(f"  {sentence}")
    classes = grouped("class")
    if options.plot:
        from liveedit.profiling.plots import roofline

        points = [(r.name, r.flops / r.bytes, r.gflops) for r in classes if r.flops and r.bytes]
        roofline(points, peak, bandwidth, options.plot, title=f"{manifest.model.name}, {kind}")
        print(f"\nwrote {options.plot}")
    figures = {f"ms.{r.name}": single(r.ms, "ms", "lower") for r in classes}
    figures |= {
        f"roofline_share.{r.name}": single(r.roofline_share, "share", "higher") for r in classes
    }
    record = new_record(
        "layers",
        f"{manifest.model.name}-{precision}-{'full' if options.kept is None else options.kept}",
        shlex.join(["liveedit", *sys.argv[1:]]),
        _configuration(options, manifest, precision, where),
        figures,
        notes=[f"bundle {k}: {v}" for k, v in sorted(manifest.notes.items())],
    )
    if options.out:
        write_record(options.out, record)
    print(json.dumps(to_dict(record), allow_nan=False))


def _configuration(
    options: argparse.Namespace, manifest: Manifest, precision: str, where: str
) -> dict[str, Any]:
    return {
        "model": manifest.model.name,
        "stream": to_dict(manifest.stream),
        "precision": precision,
        "backend": "plan" if options.plan else options.backend,
        "kept": options.kept or manifest.stream.block_seq_length,
        "threads": options.threads,
        "roofline": where,
    }
