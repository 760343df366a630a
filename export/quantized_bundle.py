"""Adds an eight-bit precision to a bundle: scales, layers, verdict, files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from liveedit.bundle import GraphSpec, Manifest, add_files, read_manifest, verify_file
from liveedit.config import to_dict
from liveedit.errors import LiveEditError, UsageError
from liveedit.evaluation.known_edits import KnownEdit
from liveedit.export.activation_range import RULES
from liveedit.export.calibration import Statistics, step_files
from liveedit.export.drift import Drift, curve, longest_held, needed_chunks
from liveedit.export.edit_quality import Quality
from liveedit.export.graph_trial import STEP, Clip, Trial, load_step
from liveedit.export.linears import choose, default_layers, linears
from liveedit.export.quantize import Format, SiteScale, quantise
from liveedit.export.scale_search import search
from liveedit.export.sensitivity import Bench, Sensitivity, largest_set, rank
from liveedit.export.verdict import Limits, Speed, Verdict, reach
from liveedit.export.weights import WeightFile, save, weight_bytes

MeasureSpeed = Callable[[Path, str, str], Speed]  # bundle, base precision, eight-bit precision
Progress = Callable[[str], None]
WEIGHTS = "dit.weights"
REPORT = "report.json"
MODES = ("off", "released")


class RefusedError(LiveEditError):
    """The verdict is no, and nothing was written."""


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """``layers``: patterns, or empty for the default set; ``search`` measures which of them fit.

    ``ranges``: rules of `activation_range` that the scales may choose from.
    ``drift_chunks``: length of the drift run, 0 for none.
    ``unjudged``: measure no edit, which counts as refused.
    """

    layers: tuple[str, ...] = ()
    search: bool = False
    ranges: tuple[str, ...] = RULES
    limits: Limits = field(default_factory=Limits)
    drift_chunks: int = 0
    unjudged: bool = False
    force: bool = False
    overwrite: bool = False
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Written beside the graph as ``report.json``. ``weights_ratio``: weight bytes of the
    step, over those of its base."""

    format: str
    base: str
    layers: tuple[str, ...]
    left_out: tuple[str, ...]
    scales: dict[str, dict[str, float | str | None]]
    sensitivity: tuple[Sensitivity, ...]
    verdict: Verdict
    calibration: dict[str, Any]
    weights_ratio: float | None = None

    @property
    def refused(self) -> tuple[str, ...]:
        return self.verdict.refused


def base_precision(manifest: Manifest, wanted: str | None, form: Format) -> str:
    """The graphs to quantise: those asked for, else fp16, else fp32.

    Raises:
        UsageError: the bundle does not hold them.
    """
    held = [p for p in ("fp16", "fp32") if STEP in manifest.graphs.get(p, {})]
    if wanted is None and held:
        return held[0]
    if wanted not in held:
        raise UsageError(
            f"this bundle has no {wanted or 'fp16 or fp32'} graphs to make {form.name} from; it "
            f"has {', '.join(sorted(manifest.graphs))}. Export it with --precision fp16."
        )
    assert wanted is not None
    return wanted


def check_target(root: Path, manifest: Manifest, form: Format, base: str, overwrite: bool) -> None:
    """
    Raises:
        UsageError: the precision is there already.
        BundleError: a file of the base graph was changed.
    """
    # The precision may be there with other networks quantised and the base's step.
    step = manifest.graphs.get(form.name, {}).get(STEP)
    if step is not None and step.file.startswith(f"{form.name}/") and not overwrite:
        raise UsageError(
            f"{root} holds {form.name} graphs already; add --overwrite to replace them"
        )
    for file in step_files(manifest, base):
        verify_file(root, manifest, file)


def check_layers(root: Path, manifest: Manifest, base: str, patterns: Sequence[str]) -> None:
    """
    Raises:
        UsageError: a pattern matches no linear.
    """
    if patterns:
        choose(linears(load_step(root, manifest, base)), patterns)


def choose_layers(
    root: Path,
    manifest: Manifest,
    base: str,
    statistics: Statistics,
    clips: Sequence[Clip],
    form: Format,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[tuple[str, ...], dict[str, SiteScale], list[Sensitivity]]:
    """Layers and scales; with a search, also how much each layer alone costs.

    Raises:
        UsageError: a pattern matches nothing, or no layer can be quantised within the limits.
    """
    model = load_step(root, manifest, base)
    names = tuple(linears(model))
    wanted = choose(names, options.layers) if options.layers else default_layers(
        names, manifest.model.dit
    )  # fmt: skip
    scales = search(model, wanted, statistics, form, progress, options.ranges)
    if not options.search:
        return wanted, scales, []
    with Trial(root, manifest, base, threads=options.threads) as trial:
        bench = Bench(trial, root, manifest, base, MODES[0], clips)
        ranked = rank(bench, wanted, scales, form, progress)
        layers = largest_set(bench, ranked, scales, form, options.limits, progress)
    if not layers:
        raise UsageError(
            "not one linear layer can be quantised within the limits; the most tolerant alone "
            f"gives {ranked[-1].edited_db:.2f} dB. Lower --min-edited-db or try another precision."
        )
    return tuple(n for n in names if n in set(layers)), scales, ranked


def judge(
    root: Path,
    manifest: Manifest,
    base: str,
    layers: Sequence[str],
    scales: Mapping[str, SiteScale],
    clips: Sequence[Clip],
    form: Format,
    options: QuantizeOptions,
    progress: Progress,
) -> list[Quality]:
    """Measure the quantised step against high precision on held-out clips.

    Edits with a known result are judged with the mask cache off: it costs both precisions some of
    the exactness that is asked for here. Other clips are judged with it and without.
    """
    out: list[Quality] = []
    for mode in MODES:
        chosen = [c for c in clips if c.known is None or mode == MODES[0]]
        if not chosen:
            continue
        progress(f"judging {len(chosen)} held-out clips, mask cache {mode}")
        with Trial(root, manifest, base, mask_cache=mode, threads=options.threads) as trial:  # type: ignore[arg-type]
            out += Bench(trial, root, manifest, base, mode, chosen).measure(layers, scales, form)
    return out


def judge_drift(
    root: Path,
    manifest: Manifest,
    base: str,
    layers: Sequence[str],
    scales: Mapping[str, SiteScale],
    edits: Sequence[KnownEdit],
    form: Format,
    options: QuantizeOptions,
    progress: Progress,
) -> Drift:
    """Both precisions over one long stream, mask cache as a stream has it by default.

    Of several edits the one that high precision holds best is taken.

    Raises:
        UsageError: too few chunks to see a drift, or a clip that is no whole number of chunks.
    """
    mode, chunks = MODES[1], options.drift_chunks
    size = manifest.stream.num_frame_per_block * manifest.codec.encode_next_frames
    period, least = needed_chunks(len(edits[0].source), size)
    if chunks < least:
        raise UsageError(f"drift over {chunks} chunks cannot be judged; {least} is the least")
    model = load_step(root, manifest, base)
    quantise(model, layers, scales, form)
    with Trial(root, manifest, base, mask_cache=mode, threads=options.threads) as trial:  # type: ignore[arg-type]
        progress(f"drift over {chunks} chunks, {base}")
        edit = longest_held(trial, edits, least, size)
        before = curve(trial, edit, chunks, size)
        progress(f"drift over {chunks} chunks, {form.name}")
        trial.backend.swap(model)
        after = curve(trial, edit, chunks, size)
    return Drift(
        clip=edit.name, mask_cache=mode, chunks=chunks, period=period, base=before, quantised=after
    )


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of a bundle, beside it; nothing is left of it."""
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.speed.") as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(root, copy)  # not links: weights with several are refused when read
        yield copy


def judge_speed(
    root: Path, form: Format, scales: Mapping[str, SiteScale], report: Report, speed: MeasureSpeed
) -> Speed:
    """Measure a copy of the bundle that holds the precision already."""
    with copied(root) as copy:
        write_precision(copy, form, scales, report)
        return speed(copy, report.base, form.name)


def quantize_bundle(
    root: Path,
    form: Format,
    base: str,
    statistics: Statistics,
    calibration_clips: Sequence[Clip],
    held_out: Sequence[Clip],
    options: QuantizeOptions | None = None,
    progress: Progress = lambda message: None,
    *,
    drift_edits: Sequence[KnownEdit] = (),
    speed: MeasureSpeed | str = "not asked for",
) -> Report:
    """Quantise `dit_step`, judge it, and write it as a precision of its own.

    All other graphs of that precision are the base's files.

    Args:
        drift_edits: what the drift run may loop; whole chunks, all of one length.
        speed: how to measure it, or why that cannot be done here.

    Raises:
        RefusedError: the verdict is no and ``force`` is off. Nothing was written.
    """
    options = options or QuantizeOptions()
    manifest = read_manifest(root)
    check_target(root, manifest, form, base, options.overwrite)
    layers, scales, ranked = choose_layers(
        root, manifest, base, statistics, calibration_clips, form, options, progress
    )
    edits = () if options.unjudged else held_out
    measured = judge(root, manifest, base, layers, scales, edits, form, options, progress)
    drift = None
    if drift_edits and options.drift_chunks and not options.unjudged:
        drift = judge_drift(
            root, manifest, base, layers, scales, drift_edits, form, options, progress
        )
    names = tuple(linears(load_step(root, manifest, base)))
    report = Report(
        format=form.name,
        base=base,
        layers=layers,
        left_out=tuple(n for n in names if n not in set(layers)),
        scales={t: {"scale": s.scale, "alpha": s.alpha, "cut": s.cut} for t, s in scales.items()},
        sensitivity=tuple(ranked),
        verdict=_verdict(options, measured, drift, Speed(not_measured=str(speed))),
        calibration=to_dict(statistics.origin),
    )
    if not isinstance(speed, str):
        progress("measuring speed")
        measured_speed = judge_speed(root, form, scales, report, speed)
        report = replace(report, verdict=_verdict(options, measured, drift, measured_speed))
    refused = report.refused
    if refused and not options.force:
        raise RefusedError(
            f"{form.name} is refused, nothing was written: {refused[0]}"
            + (f" (and {len(refused) - 1} more)" if len(refused) > 1 else "")
            + ". Quantise fewer layers (--layers, --search), or write it all the same with --force."
        )
    return write_precision(root, form, scales, report, progress)


def _verdict(
    options: QuantizeOptions, measured: Sequence[Quality], drift: Drift | None, speed: Speed
) -> Verdict:
    """What was measured against the limits; nothing measured is a refusal."""
    verdict = reach(options.limits, measured, drift, speed)
    if measured:
        return verdict
    return replace(verdict, refused=("it was not judged by any edit", *verdict.refused))


def write_precision(
    root: Path,
    form: Format,
    scales: Mapping[str, SiteScale],
    report: Report,
    progress: Progress = lambda message: None,
) -> Report:
    """Write ``root/<format>/`` and list it; a refused one is marked in the manifest's notes."""
    manifest, base = read_manifest(root), report.base
    progress(f"writing {form.name}")
    staging = Path(tempfile.mkdtemp(dir=root, prefix=f".{form.name}."))
    try:
        model = load_step(root, manifest, base)
        quantise(model, report.layers, scales, form)
        weights = WeightFile(staging / WEIGHTS)
        save(model, staging / f"{STEP}.onnx", weights)
        weights.close()
        base_bytes = weight_bytes(load_step(root, manifest, base))
        report = replace(report, weights_ratio=round(weight_bytes(model) / base_bytes, 4))
        (staging / REPORT).write_bytes(json.dumps(to_dict(report), indent=1).encode() + b"\n")
        os.chmod(staging, 0o755)
        target = root / form.name
        if target.exists():
            shutil.rmtree(target)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    files = [f"{form.name}/{name}" for name in (f"{STEP}.onnx", WEIGHTS, REPORT)]
    specs = {**manifest.graphs[base], **other_parts(manifest, form, base)}
    specs[STEP] = replace(specs[STEP], file=files[0], weights_bytes=weight_bytes(model))
    verdict = "refused, forced: " + "; ".join(report.refused) if report.refused else "passed"
    notes = {
        **manifest.notes,
        f"{form.name}.base": base,
        f"{form.name}.layers": f"{len(report.layers)} of {_count(report)} linears",
        f"{form.name}.verdict": verdict,
    }
    stale = {k: v for k, v in manifest.files.items() if not k.startswith(f"{form.name}/")}
    manifest = replace(manifest, files=stale)
    add_files(root, manifest, files, graphs={**manifest.graphs, form.name: specs}, notes=notes)
    return report


def other_parts(manifest: Manifest, form: Format, base: str) -> dict[str, GraphSpec]:
    """Graphs of other networks that were quantised for this precision, from the same base."""
    folders = tuple(
        f"{form.name}-{part}/"
        for part in ("vae", "text")
        if manifest.notes.get(f"{form.name}.{part}.base") == base
    )
    held = manifest.graphs.get(form.name, {})
    return {n: g for n, g in held.items() if folders and g.file.startswith(folders)}


def _count(report: Report) -> int:
    return len(report.layers) + len(report.left_out)
