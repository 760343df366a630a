"""`liveedit profile roofline`: what bounds a configuration, before anything is built."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import get_args

from liveedit.config import ModelConfig, StreamConfig, TAEHVConfig, WanVAEConfig, named_config
from liveedit.errors import UsageError
from liveedit.profiling.accounting import MaskCache
from liveedit.profiling.gpus import Gpu, custom_gpu, find_gpu, known_names
from liveedit.profiling.roofline import as_dict, bound, table
from liveedit.runtime.mask_cache import Mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_gpu(parser, default="H200")
    parser.add_argument("--config", default="liveedit-1.3b", help="named configuration")
    parser.add_argument("--window", type=int, help="attention window in latent frames")
    parser.add_argument("--size", metavar="HxW", help="pixels, for example 480x832")
    parser.add_argument("--precision", choices=("half", "8bit"), default="half")
    parser.add_argument(
        "--codec", choices=("wan", "taehv"), help="default: the configuration's own"
    )
    parser.add_argument("--keep", type=float, default=1.0, help="kept share of tokens (default 1)")
    parser.add_argument(
        "--mask-cache",
        choices=get_args(Mode),
        default="released",
        help="which passes keep only that share; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line, last")


def add_gpu(parser: argparse.ArgumentParser, *, default: str) -> None:
    """The options that `chosen_gpu` reads."""
    parser.add_argument("--gpu", help=f"one of: {known_names()} (default: {default})")
    parser.add_argument(
        "--gpu-peaks",
        metavar="HALF,EIGHT,BANDWIDTH",
        help="another card: dense 16-bit and 8-bit TFLOP/s and GB/s",
    )


def chosen_gpu(options: argparse.Namespace, default: str) -> Gpu:
    """The card that was asked for, else the one called ``default``.

    Raises:
        UsageError: no such card; the sentence lists the known ones.
    """
    if options.gpu_peaks:
        return custom_gpu(options.gpu_peaks)
    return find_gpu(options.gpu or default)


def run(options: argparse.Namespace) -> int:
    gpu = chosen_gpu(options, "H200")
    if not 0.0 < options.keep <= 1.0:
        raise UsageError(f"--keep is a share between 0 and 1, got {options.keep}")
    model, stream = named_config(options.config)
    stream = _stream(stream, options.window, options.size)
    model = _with_codec(model, options.codec)
    mask = MaskCache(keep=options.keep, mode=options.mask_cache)
    result = bound(gpu, model, stream, precision=options.precision, mask=mask)

    pruned = mask.pruned_passes(len(stream.denoising_step_list))
    print(
        f"{gpu.name}, {model.name}, {model.codec}, {stream.height_px}x{stream.width_px}, "
        f"window {stream.local_attn_size}, {options.precision} DiT, "
        + (f"keep {options.keep:g} in {pruned} passes" if pruned else "no mask cache")
    )
    print("Per pixel frame of a steady-state chunk; computed from shapes, not measured.\n")
    print(table(result))
    print(
        f"\nbound {result.bound_fps:.1f} FPS at vendor peaks, "
        f"estimate {result.estimate_fps:.1f} FPS at class efficiencies "
        f"(attention rate: {gpu.attention_source})"
    )
    print("alone: " + ", ".join(f"{s} {result.stage_fps(s):.0f} FPS" for s in result.stages()))
    if options.json:
        extra = {
            "window": stream.local_attn_size,
            "size": [stream.height_px, stream.width_px],
            "codec": model.codec,
            "mask": options.mask_cache if pruned else "off",
            "keep": options.keep,
        }
        print(json.dumps({**as_dict(result), **extra}))
    return 0


def _stream(stream: StreamConfig, window: int | None, size: str | None) -> StreamConfig:
    if window is not None:
        sink = stream.sink_size if stream.sink_size + stream.num_frame_per_block <= window else 0
        stream = dataclasses.replace(stream, local_attn_size=window, sink_size=sink)
    if size is not None:
        try:
            height, width = (int(part) for part in size.lower().split("x"))
        except ValueError:
            raise UsageError(f"--size {size!r} is not HEIGHTxWIDTH, e.g. 480x832") from None
        stream = dataclasses.replace(stream, height_px=height, width_px=width)
    return stream


def _with_codec(model: ModelConfig, codec: str | None) -> ModelConfig:
    if codec is None:
        return model
    if codec == "wan":
        return dataclasses.replace(
            model, wan_vae=model.wan_vae or WanVAEConfig(), taehv=None, patch=None
        )
    return dataclasses.replace(model, wan_vae=None, taehv=model.taehv or TAEHVConfig(), patch=None)
