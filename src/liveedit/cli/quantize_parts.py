"""``liveedit quantize --vae int8`` and ``--text int8``: the networks beside the DiT."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from liveedit.errors import LiveEditError, UsageError

PROMPTS = (
    "turn the red car blue",
    "remove the person on the left",
    "make it look like a watercolour painting in the style of an old postcard",
    "replace the dog with a small white cat and keep everything else as it is",
    "snow",
    "change the season to autumn, with golden leaves on every tree and a low sun behind them",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("networks beside the DiT (the DiT is then left as it is)")
    group.add_argument("--vae", choices=["int8"], help="residual convolutions of the Wan VAE")
    group.add_argument("--text", choices=["int8"], help="weights of the text encoder")
    group.add_argument(
        "--min-vae-db",
        type=float,
        default=35.0,
        metavar="DB",
        help="least PSNR between the frames of both VAEs; default: %(default)s",
    )
    group.add_argument(
        "--max-text-error",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="largest relative error of the embeddings; default: %(default)s",
    )


def run(options: argparse.Namespace) -> int:
    try:
        from liveedit.export import calibration, clip_folder, part_precision
        from liveedit.export.quantize import find_format
        from liveedit.export.quantized_bundle import base_precision
    except ImportError as error:
        raise LiveEditError(
            f"quantize needs {error.name}, which is not installed. "
            "Run: pip install 'liveedit-trt[export]'"
        ) from None
    from liveedit.bundle import read_manifest
    from liveedit.cli.quantize import speed_here, speed_line
    from liveedit.config import to_dict

    start = time.monotonic()

    def progress(message: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {message}", file=sys.stderr, flush=True)

    form = find_format(options.precision)
    if form.name != "int8":
        raise UsageError("--vae and --text are for --precision int8; run them without fp8")
    manifest = read_manifest(options.bundle)
    base = base_precision(manifest, options.base, form)
    reports = []
    if options.vae:
        folder = Path(options.calibration)
        frames = options.frames or calibration.window_frames(manifest)
        clips, held = clip_folder.split(clip_folder.read_folder(folder, manifest, frames))
        reports.append(
            part_precision.quantize_vae(
                options.bundle, form, base, clips, held, min_db=options.min_vae_db,
                threads=options.threads, force=options.force, overwrite=options.overwrite,
                progress=progress, speed=speed_here(form),
            )
        )  # fmt: skip
    if options.text:
        reports.append(
            part_precision.quantize_text(
                options.bundle, form, base, PROMPTS, max_error=options.max_text_error,
                threads=options.threads, force=options.force, overwrite=options.overwrite,
                progress=progress,
            )
        )  # fmt: skip
    for report in reports:
        verdict = f"refused, written by --force: {report.refused}" if report.refused else "passed"
        print(
            f"{report.part} {form.name}: {report.figure:.4g} {report.unit} (limit {report.limit:g})"
            f", weights {report.weights_ratio} of {base}; {speed_line(report.speed)}; "
            f"verdict: {verdict}"
        )
    if options.json:
        print(json.dumps([to_dict(report) for report in reports]))
    return 0
