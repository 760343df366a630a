"""``liveedit quantize``: INT8 or FP8 graphs in a bundle, with a verdict that can say no."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from liveedit.errors import LiveEditError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by liveedit export")
    parser.add_argument("--precision", required=True, help="int8 or fp8")
    parser.add_argument("--base", help="graphs to quantise: fp16 or fp32 (default: fp16 if held)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder of videos and prompts.txt, one prompt a line; every third video is held out",
    )
    parser.add_argument(
        "--statistics", type=Path, metavar="FILE", help="use these ranges; made here if not there"
    )
    parser.add_argument("--frames", type=int, help="frames taken of each video (default: enough)")
    parser.add_argument(
        "--layers", default="", metavar="PATTERN,...", help="linears, such as 'blocks.*.ffn.0'"
    )
    parser.add_argument(
        "--search", action="store_true", help="measure every linear alone, keep the largest set"
    )
    parser.add_argument("--min-edited-db", type=float, default=30.0, metavar="DB")
    parser.add_argument("--max-background-loss-db", type=float, default=0.3, metavar="DB")
    parser.add_argument("--drift-chunks", type=int, default=0, metavar="N", help="e.g. 200")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: every core)")
    parser.add_argument("--force", action="store_true", help="write it even if it is refused")
    parser.add_argument("--overwrite", action="store_true", help="replace such graphs")
    parser.add_argument("--json", action="store_true", help="one JSON line, last")


def run(options: argparse.Namespace) -> int:
    try:
        from liveedit.export import calibration, clip_folder, edit_quality, quantized_bundle
        from liveedit.export.quantize import find_format
    except ImportError as error:
        raise LiveEditError(
            f"quantize needs {error.name}, which is not installed. "
            "Run: pip install 'liveedit-trt[export]'"
        ) from None
    from liveedit.bundle import read_manifest
    from liveedit.config import to_dict

    start = time.monotonic()

    def progress(message: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {message}", file=sys.stderr, flush=True)

    form = find_format(options.precision)
    manifest = read_manifest(options.bundle)
    base = quantized_bundle.base_precision(manifest, options.base, form)
    quantized_bundle.check_target(options.bundle, manifest, form, base, options.overwrite)
    if options.drift_chunks < 0:
        raise UsageError(f"--drift-chunks must be 0 or more, got {options.drift_chunks}")
    frames = options.frames or calibration.window_frames(manifest)
    clips, held = clip_folder.split(clip_folder.read_folder(options.calibration, manifest, frames))
    if options.statistics and options.statistics.is_file():
        statistics = calibration.load_statistics(options.statistics, manifest, base)
    else:
        statistics = calibration.calibrate(
            options.bundle, manifest, base, clips, threads=options.threads, progress=progress
        )
        if options.statistics:
            calibration.save_statistics(options.statistics, statistics)
    report = quantized_bundle.quantize_bundle(
        options.bundle,
        form,
        base,
        statistics,
        clips,
        held,
        quantized_bundle.QuantizeOptions(
            layers=tuple(p.strip() for p in options.layers.split(",") if p.strip()),
            search=options.search,
            limits=edit_quality.Limits(
                edited_db=options.min_edited_db,
                background_loss_db=options.max_background_loss_db,
            ),
            drift_chunks=options.drift_chunks,
            force=options.force,
            overwrite=options.overwrite,
            threads=options.threads,
        ),
        progress,
    )
    total = len(report.layers) + len(report.left_out)
    progress(
        f"{form.name}: {len(report.layers)} of {total} linears, {report.weights_ratio} weights"
    )
    for quality in report.quality:
        edited = "no edited region" if quality.edited_db is None else f"{quality.edited_db:.2f} dB"
        print(f"{quality.clip}, mask cache {quality.mask_cache}: edited region {edited}")
    print("verdict: " + ("refused, written by --force" if report.refused else "passed"))
    if options.json:
        print(json.dumps(to_dict(report)))
    return 0
