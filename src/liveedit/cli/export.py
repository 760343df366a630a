"""`liveedit export`: checkpoints (or random weights) to a bundle."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from liveedit.config import StreamConfig, named_config
from liveedit.errors import LiveEditError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="liveedit-1.3b", help="liveedit-1.3b or tiny")
    parser.add_argument("-o", "--output", type=Path, required=True, help="bundle directory to make")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="LiveEdit DiT, e.g. ar-forcing_002000.pt")
    source.add_argument("--random-weights", type=int, metavar="SEED", help="instead of any file")
    source.add_argument("--trained", type=Path, metavar="DIR", help="what liveedit train made")
    parser.add_argument("--ema", action="store_true", help="take generator_ema of the checkpoint")
    parser.add_argument("--wan", type=Path, help="Wan2.1-T2V-1.3B folder: VAE, text encoder")
    parser.add_argument("--taehv", type=Path, help="taew2_1 file: use TAEHV instead of the Wan VAE")
    parser.add_argument(
        "--no-text-encoder", action="store_true", help="leave it out (5.7 G params)"
    )
    parser.add_argument("--precision", default="fp32,fp16", help="default: %(default)s")
    parser.add_argument(
        "--half-weights", action="store_true", help="store fp32 weights as float16 (half the file)"
    )
    parser.add_argument("--structure-only", action="store_true", help="graphs without weight data")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    stream = parser.add_argument_group("stream (defaults from --config)")
    stream.add_argument("--height", type=int, dest="height_px", metavar="PX")
    stream.add_argument("--width", type=int, dest="width_px", metavar="PX")
    stream.add_argument("--window", type=int, dest="local_attn_size", metavar="LATENT_FRAMES")
    stream.add_argument("--sink", type=int, dest="sink_size", metavar="LATENT_FRAMES")
    stream.add_argument("--keep-bucket", type=int, metavar="TOKENS")
    stream.add_argument(
        "--warp-denoising-step",
        action="store_true",
        default=None,
        help="pass the step list through the shifted table, as in training",
    )


def stream_from(options: argparse.Namespace, stream: StreamConfig) -> StreamConfig:
    names = ("height_px", "width_px", "local_attn_size", "sink_size", "keep_bucket")
    given = {n: getattr(options, n) for n in (*names, "warp_denoising_step")}
    return replace(stream, **{n: v for n, v in given.items() if v is not None})


def run(options: argparse.Namespace) -> int:
    model, stream = named_config(options.config)
    stream = stream_from(options, stream)
    if options.checkpoint and not options.wan:
        raise UsageError(
            "--checkpoint holds the DiT only. Add --wan with the Wan2.1-T2V-1.3B folder, which has "
            "the VAE, the text encoder and the tokenizer."
        )
    try:
        from liveedit.export import sources
        from liveedit.export.bundle_writer import write_bundle
    except ImportError as error:
        raise LiveEditError(
            f"export needs {error.name}, which is not installed. "
            "Run: pip install 'liveedit-trt[export]'"
        ) from None
    start = time.monotonic()

    def progress(message: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {message}", file=sys.stderr, flush=True)

    if options.taehv or (options.taehv is None and model.taehv is not None):
        model = sources.with_taehv(model)
    if options.random_weights is not None:
        weights, tokenizer, notes = sources.random_sources(model, options.random_weights)
    elif options.trained is not None:
        weights, tokenizer, notes = sources.trained_sources(model, options.trained)
    else:
        progress("reading checkpoints")
        weights, tokenizer, notes = sources.checkpoint_sources(
            model, options.checkpoint, options.wan, options.taehv, ema=options.ema,
            text_encoder=not options.no_text_encoder,
        )  # fmt: skip
    if options.no_text_encoder:
        weights.pop("text_encoder", None)
    manifest = write_bundle(
        options.output,
        model,
        stream,
        weights,
        tokenizer,
        precisions=[p.strip() for p in options.precision.split(",")],
        half_weights=options.half_weights,
        with_data=not options.structure_only,
        notes=notes,
        overwrite=options.overwrite,
        progress=progress,
    )
    total = sum(entry.bytes for entry in manifest.files.values())
    progress(f"done: {options.output} ({total / 1e6:.1f} MB, {len(manifest.files)} files)")
    return 0
