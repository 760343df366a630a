"""``liveedit quantize``: INT8 or FP8 graphs in a bundle, with a verdict that can say no."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from liveedit.bundle import Manifest
from liveedit.cli import quantize_parts
from liveedit.errors import LiveEditError, UsageError

if TYPE_CHECKING:
    from liveedit.evaluation.known_edits import KnownEdit
    from liveedit.export.graph_trial import Clip
    from liveedit.export.quantize import Format
    from liveedit.export.quantized_bundle import MeasureSpeed, Report
    from liveedit.export.verdict import Speed

GENERATED = "scenes"
# First seeds; those of the long calibration clips and of the verdict are 0.
_SHORT_SEED, _GLOBAL_SEED, _TUNING_SEED, _DRIFT_SEED = 100, 300, 1000, 5000
_LONG_EDITS, _SHORT_EDITS, _GLOBAL_EDITS, _TUNING_EDITS, _DRIFT_EDITS = 3, 12, 8, 4, 3
_LOCAL = ("recolour", "remove", "replace", "band")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by liveedit export")
    parser.add_argument("--precision", required=True, help="int8 or fp8")
    parser.add_argument("--base", help="graphs to quantise: fp16 or fp32 (default: fp16 if held)")
    parser.add_argument(
        "--calibration",
        metavar=f"DIR|{GENERATED}",
        required=True,
        help="folder of videos and prompts.txt, one prompt a line, of which every third video is "
        f"held out; or '{GENERATED}': generated ones, which suit editors made by liveedit train",
    )
    parser.add_argument(
        "--footage", type=Path, metavar="CACHE", help="draw scenes over the real pictures fetched "
        "for training, instead of what ships (see docs/data.md)",
    )  # fmt: skip
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
    parser.add_argument(
        "--ranges",
        default="max,percentile,mse,entropy",
        metavar="RULE,...",
        help="activation ranges to choose from, per tensor; default: %(default)s",
    )
    parser.add_argument(
        "--edits",
        type=int,
        metavar="N",
        help="held-out generated edits with known results to judge by; default: 40, and none for "
        "a bundle without a text encoder",
    )
    parser.add_argument(
        "--drift-chunks",
        type=int,
        metavar="N",
        help="length of the drift run, 0 for none; 200 for a record; default: 26, or as --edits",
    )
    parser.add_argument(
        "--max-region-loss-db",
        type=float,
        default=0.5,
        metavar="DB",
        help="PSNR that the edited region may lose; default: %(default)s",
    )
    parser.add_argument(
        "--max-background-loss-db",
        type=float,
        default=0.3,
        metavar="DB",
        help="PSNR that the background may lose; default: %(default)s",
    )
    parser.add_argument(
        "--min-edited-db",
        type=float,
        default=30.0,
        metavar="DB",
        help="for clips of a folder: least PSNR between both precisions' edits; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--one-block-at-a-time",
        action="store_true",
        help="calibrate a model that is larger than memory",
    )
    parser.add_argument(
        "--any-size",
        action="store_true",
        help="take --statistics of a bundle of the same weights with another picture size",
    )
    parser.add_argument(
        "--unjudged",
        action="store_true",
        help="measure no edit; written with --force only, and marked",
    )
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: every core)")
    parser.add_argument("--force", action="store_true", help="write it even if it is refused")
    parser.add_argument("--overwrite", action="store_true", help="replace such graphs")
    parser.add_argument("--records", type=Path, metavar="DIR", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the search's sensitivity")
    parser.add_argument("--json", action="store_true", help="one JSON line, last")
    quantize_parts.add_arguments(parser)


@dataclass(frozen=True, kw_only=True)
class ClipSets:
    """What is calibrated with, searched on and judged by; no clip is in two of them but the first.

    A folder's calibration clips are those of the search too.
    """

    calibration: list[Clip]
    tuning: list[Clip]
    held_out: list[Clip]
    drift: list[KnownEdit]


def run(options: argparse.Namespace) -> int:
    if options.vae or options.text:
        return quantize_parts.run(options)
    try:
        from liveedit.export import blockwise, calibration, quantized_bundle, verdict
        from liveedit.export.activation_range import check_rules
        from liveedit.export.quantize import find_format
    except ImportError as error:
        raise _missing(error, "export") from None
    from liveedit.bundle import read_manifest
    from liveedit.config import to_dict

    start = time.monotonic()

    def progress(message: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {message}", file=sys.stderr, flush=True)

    form = find_format(options.precision)
    rules = check_rules(tuple(r.strip() for r in options.ranges.split(",") if r.strip()))
    manifest = read_manifest(options.bundle)
    base = quantized_bundle.base_precision(manifest, options.base, form)
    quantized_bundle.check_target(options.bundle, manifest, form, base, options.overwrite)
    quantized_bundle.check_layers(options.bundle, manifest, base, _patterns(options))
    for name, usual in (("drift_chunks", 26), ("edits", 40)):
        if options.unjudged:
            setattr(options, name, 0)
        if getattr(options, name) is None:
            setattr(options, name, usual if "text_encoder" in manifest.graphs[base] else 0)
        if getattr(options, name) < 0:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} must be 0 or more, got {getattr(options, name)}")
    if options.footage is not None and not options.footage.is_dir():
        raise UsageError(
            f"no footage at {options.footage}; give the cache that training fetched, see "
            "docs/data.md, or leave the option out"
        )
    if options.plot and not options.search:
        raise UsageError("--plot draws what --search measures; add --search")
    if options.plot and not options.records:
        raise UsageError("--plot draws a record; add --records DIR")
    frames = options.frames or calibration.window_frames(manifest)
    clips = clip_sets(options, manifest, frames, progress)
    if _has_statistics(options):
        statistics = calibration.load_statistics(
            options.statistics, manifest, base, any_size=options.any_size
        )
    else:
        calibrate = (
            blockwise.calibrate_blocks if options.one_block_at_a_time else calibration.calibrate
        )
        statistics = calibrate(
            options.bundle,
            manifest,
            base,
            clips.calibration,
            threads=options.threads,
            progress=progress,
        )
        if options.statistics:
            calibration.save_statistics(options.statistics, statistics)
    report = quantized_bundle.quantize_bundle(
        options.bundle,
        form,
        base,
        statistics,
        clips.tuning,
        clips.held_out,
        quantized_bundle.QuantizeOptions(
            layers=_patterns(options),
            search=options.search,
            ranges=rules,
            limits=verdict.Limits(
                region_loss_db=options.max_region_loss_db,
                background_loss_db=options.max_background_loss_db,
                edited_db=options.min_edited_db,
            ),
            drift_chunks=options.drift_chunks,
            unjudged=options.unjudged,
            force=options.force,
            overwrite=options.overwrite,
            threads=options.threads,
        ),
        progress,
        drift_edits=clips.drift,
        speed=speed_here(form),
    )
    print("\n".join(lines(report)))
    if options.records:
        _record(options, manifest, to_dict(report))
    if options.json:
        print(json.dumps(to_dict(report)))
    return 0


def _has_statistics(options: argparse.Namespace) -> bool:
    return options.statistics is not None and options.statistics.is_file()


def _patterns(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(p.strip() for p in options.layers.split(",") if p.strip())


def _missing(error: ImportError, extra: str) -> LiveEditError:
    return LiveEditError(
        f"quantize needs {error.name}, which is not installed. "
        f"Run: pip install 'liveedit-trt[{extra}]'"
    )


def clip_sets(
    options: argparse.Namespace,
    manifest: Manifest,
    num_frames: int,
    progress: Callable[[str], None],
) -> ClipSets:
    """Read or generate every clip.

    Raises:
        UsageError: the folder does not do; see `clip_folder`.
    """
    from liveedit.export import clip_folder
    from liveedit.export.graph_trial import known_clip

    calibration: list[Clip] = []
    held: list[Clip] = []
    tuning: list[Clip] = []
    generated = options.calibration == GENERATED
    if not generated:
        folder = clip_folder.read_folder(Path(options.calibration), manifest, num_frames)
        calibration, held = clip_folder.split(folder)
        tuning = calibration
    if not (generated or options.edits or options.drift_chunks):
        return ClipSets(calibration=calibration, tuning=tuning, held_out=held, drift=[])
    try:
        from liveedit.distill.edits import SceneConfig, Split
        from liveedit.distill.footage import real_footage
        from liveedit.evaluation.generated_edits import generated_footage, known_edits
    except ImportError as error:
        raise _missing(error, "train") from None
    stream = manifest.stream
    size = (stream.height_px, stream.width_px)
    chunk = stream.num_frame_per_block * manifest.codec.encode_next_frames

    def footage(split: Split):  # type: ignore[no-untyped-def]  # either kind of footage
        if options.footage is None:
            return generated_footage(split, *size)
        return real_footage(options.footage, split, *size)

    def draw(count: int, frames: int, split: Split, seed: int, kinds: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
        config = SceneConfig(
            num_frames=frames, height_px=size[0], width_px=size[1], edits_per_scene=2, split=split
        )
        return known_edits(count, pictures[split], config, seed, kinds)

    progress("drawing scenes")
    pictures = {s: footage(s) for s in (("train", "held_out") if generated else ("held_out",))}
    if generated and not _has_statistics(options):
        # Ranges depend on the words as much as on the pictures: many short clips, and a few that
        # are long enough to fill the window.
        seen = draw(_LONG_EDITS, num_frames, "train", 0)
        seen += draw(_SHORT_EDITS, chunk, "train", _SHORT_SEED, _LOCAL)
        seen += draw(_GLOBAL_EDITS, chunk, "train", _GLOBAL_SEED, ("global",))
        calibration = [known_clip(e) for e in seen]
    if generated and options.search:
        tuning = [known_clip(e) for e in draw(_TUNING_EDITS, chunk, "train", _TUNING_SEED)]
    held += [known_clip(e) for e in draw(options.edits, 2 * chunk, "held_out", 0)]
    drift: list[KnownEdit] = []
    if options.drift_chunks:
        drift = draw(_DRIFT_EDITS, 3 * chunk, "held_out", _DRIFT_SEED, ("recolour",))
    return ClipSets(calibration=calibration, tuning=tuning, held_out=held, drift=drift)


def speed_here(form: Format) -> MeasureSpeed | str:
    """How to measure speed here, or why not."""
    from liveedit.engines.builder import build_bundle
    from liveedit.export.verdict import Speed
    from liveedit.profiling import precision_speed

    flavour, reason = precision_speed.gpu_flavour(form.name)
    if not flavour:
        return reason

    def measure(bundle: Path, base: str, quantised: str) -> Speed:
        for precision in (base, quantised):
            # What is built already is taken as it is.
            build_bundle(bundle, flavour=flavour, precision=precision)
        run = precision_speed.frames_per_second(bundle, flavour)
        slow, fast = precision_speed.compare_speed(base, quantised, run)
        return Speed(base_fps=slow, quantised_fps=fast)

    return measure


def lines(report: Report) -> list[str]:
    """What was measured and the verdict, for people."""
    verdict, total = report.verdict, len(report.layers) + len(report.left_out)
    out = [
        f"{report.format} from {report.base}: {len(report.layers)} of {total} linears, weights "
        f"{report.weights_ratio} of the base's"
    ]
    for q in verdict.quality:
        if q.base is None:
            edited = "no edited region" if q.edited_db is None else f"{q.edited_db:.2f} dB"
            out.append(f"{q.clip}, mask cache {q.mask_cache}: edited region {edited}")
    if verdict.benchmark:
        b = verdict.benchmark
        for what, pair, unit, factor in (
            ("named colour reached", b.named_colour, " %", 100),
            ("nearer to the result than to the source", b.followed, " %", 100),
            ("edited region PSNR", b.region_db, " dB", 1),
            ("edited region SSIM", b.region_ssim, "", 1),
            ("background PSNR", b.background_db, " dB", 1),
            ("background SSIM", b.background_ssim, "", 1),
        ):
            if pair is not None:
                out.append(
                    f"{what}: {factor * pair.base:.4g}{unit} -> {factor * pair.quantised:.4g}{unit}"
                    f" ({pair.count} edits with known results)"
                )
    if verdict.drift:
        d, last = verdict.drift, verdict.drift.last_like_second()
        out.append(
            f"drift, chunk 2 to chunk {last}: {d.base[1]:.2f} -> {d.base[last - 1]:.2f} dB in high "
            f"precision, {d.quantised[1]:.2f} -> {d.quantised[last - 1]:.2f} dB quantised"
        )
    out.append(speed_line(verdict.speed))
    out += [f"refused: {sentence}" for sentence in report.refused]
    out.append("verdict: " + ("refused, written by --force" if report.refused else "passed"))
    return out


def speed_line(speed: Speed) -> str:
    """What was measured, or why not."""
    if speed.speedup is None:
        return f"speed: not measured ({speed.not_measured})"
    return f"speed: {speed.base_fps:.4g} -> {speed.quantised_fps:.4g} frames per second"


def _record(options: argparse.Namespace, manifest: Manifest, report: dict[str, object]) -> None:
    from liveedit.profiling import plots, quantize_record

    command = shlex.join(["liveedit", *sys.argv[1:]])
    footage = "shipped and generated" if options.footage is None else "real, fetched for training"
    records = quantize_record.quantize_records(report, manifest.model.name, footage, command)
    for path in quantize_record.write_quantize_records(options.records, records):
        print(f"wrote {path}")
    if options.plot:
        print(f"wrote {plots.sensitivity(records[-1], options.plot)}")
