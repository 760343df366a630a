"""Eight bits for the networks beside the DiT, each with a verdict of its own.

The graphs go to ``<precision>-vae/`` or ``<precision>-text/``, and that precision of the bundle
takes them in place of its base's. They are judged from the very files that would stay.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from liveedit.bundle import GraphSpec, Manifest, add_files, read_manifest
from liveedit.config import to_dict
from liveedit.errors import UsageError
from liveedit.export.blockwise import Parts
from liveedit.export.codec_trial import CodecTrial, load_codec
from liveedit.export.convolutions import probe_inputs, quantise_convolutions
from liveedit.export.graph_trial import Clip
from liveedit.export.quantize import Format
from liveedit.export.quantized_bundle import MeasureSpeed, RefusedError, copied
from liveedit.export.verdict import NO_SPEED, Speed
from liveedit.export.weight_only import store_in_eight_bits
from liveedit.export.weights import WeightFile, save, weight_bytes
from liveedit.runtime.backend import Array
from liveedit.runtime.tokenizer import PromptTokenizer

Progress = Callable[[str], None]
Part = Literal["vae", "text"]
TEXT = "text_encoder"
REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """``figure`` in dB or as a ratio, judged against ``limit``; ``weights_ratio`` is of the part.

    ``quantised`` counts the convolutions or matrices per graph. ``speed`` is that of the editor
    with this part quantised and all else in the base's precision.
    """

    part: Part
    format: str
    base: str
    quantised: dict[str, int]
    figure: float
    unit: str
    limit: float
    per_case: dict[str, float]
    weights_ratio: float
    refused: str | None
    speed: Speed = NO_SPEED


def quantize_vae(
    root: Path,
    form: Format,
    base: str,
    clips: Sequence[Clip],
    held_out: Sequence[Clip],
    *,
    min_db: float = 35.0,
    threads: int | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda message: None,
    speed: MeasureSpeed | str = "not asked for",
) -> PartReport:
    """Quantise the residual convolutions of the Wan VAE.

    The verdict: held-out clips encoded and decoded by the quantised graphs and by the base's; the
    lowest PSNR between the two counts. Where speed is measured, the editor must gain some.

    Args:
        speed: how to measure it, or why that cannot be done here.

    Raises:
        UsageError: another codec, or the part is there already.
        RefusedError: the PSNR is below ``min_db``, or it gains no speed, and ``force`` is off.
            Nothing was written.
    """
    manifest = read_manifest(root)
    if manifest.model.codec != "wan_vae":
        raise UsageError(
            f"this bundle's codec is {manifest.model.codec}; only the Wan VAE has residual "
            "convolutions to quantise. Leave --vae out."
        )
    _check_target(root, manifest, form, base, "vae", overwrite)
    folder = (root / manifest.graphs[base]["decode_next"].file).parent
    amax: dict[str, float] = {}

    def seen(name: str, value: float) -> None:
        amax[name] = max(amax.get(name, 0.0), value)

    models = load_codec(root, manifest, base)
    for model in models.values():
        probe_inputs(model)
    trial = CodecTrial(models, folder, manifest, threads=threads, seen=seen)
    for clip in clips:
        progress(f"calibrating the codec: {clip.name}")
        trial.decode(trial.encode(clip.frames))
    if not all(np.isfinite(v) for v in amax.values()):
        raise UsageError("the codec's activations are not finite; check the bundle in fp32")
    models = load_codec(root, manifest, base)

    def judge(staged: Mapping[str, ir.Model], where: Path) -> dict[str, float]:
        exact = CodecTrial(load_codec(root, manifest, base), folder, manifest, threads=threads)
        coded = CodecTrial(staged, where, manifest, threads=threads)
        out = {}
        for clip in held_out:
            progress(f"judging the codec: {clip.name}")
            expected = exact.decode(exact.encode(clip.frames))
            error = coded.decode(coded.encode(clip.frames)) - expected
            out[clip.name] = float(-10 * np.log10(max(float(np.square(error).mean()), 1e-10)))
        return out

    counts = {n: quantise_convolutions(m, amax, form) for n, m in models.items()}

    def refused(figures: dict[str, float]) -> tuple[float, str | None]:
        worst = min(figures.values())
        sentence = f"the codec's frames agree to {worst:.2f} dB, {min_db:g} dB is the least"
        return worst, sentence if not worst >= min_db else None

    return _finish(
        root,
        "vae",
        form,
        base,
        models,
        counts,
        judge,
        refused,
        min_db,
        "dB",
        force,
        progress,
        speed,
    )


def quantize_text(
    root: Path,
    form: Format,
    base: str,
    prompts: Sequence[str],
    *,
    max_error: float = 0.05,
    threads: int | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda message: None,
) -> PartReport:
    """Store the text encoder's weights in eight bits; products stay in the base's precision.

    The verdict: embeddings of the prompts against the base's, one block of either in memory at a
    time; the largest relative error (root mean square, over the words) counts.

    Raises:
        UsageError: no text encoder, the part is there already, or no prompt is short enough.
        RefusedError: the error is above ``max_error`` and ``force`` is off. Nothing was written.
    """
    manifest = read_manifest(root)
    if TEXT not in manifest.graphs[base]:
        raise UsageError("this bundle holds no text encoder. Leave --text out.")
    _check_target(root, manifest, form, base, "text", overwrite)
    model = ir.load(root / manifest.graphs[base][TEXT].file)
    counts = {TEXT: store_in_eight_bits(model, form)}

    def judge(staged: Mapping[str, ir.Model], where: Path) -> dict[str, float]:
        exact = _TextTrial(root / manifest.graphs[base][TEXT].file, root, manifest, threads)
        coded = _TextTrial(where / f"{TEXT}.onnx", root, manifest, threads)
        out = {}
        for prompt in filter(exact.fits, prompts):
            progress(f"judging the text encoder: {prompt!r}")
            expected = exact.embed(prompt)
            error = coded.embed(prompt) - expected
            out[prompt] = float(np.linalg.norm(error) / max(float(np.linalg.norm(expected)), 1e-12))
        if not out:
            raise UsageError(
                f"every prompt to judge by has more than {manifest.model.dit.text_len - 1} tokens"
            )
        return out

    def refused(figures: dict[str, float]) -> tuple[float, str | None]:
        worst = max(figures.values())
        sentence = f"text embeddings are off by {worst:.4f}, {max_error:g} is the most allowed"
        return worst, sentence if not worst <= max_error else None

    return _finish(
        root, "text", form, base, {TEXT: model}, counts, judge, refused, max_error,
        "relative error", force, progress, "a prompt is encoded once",
    )  # fmt: skip


class _TextTrial:
    """A text encoder graph, one block in memory at a time."""

    def __init__(self, path: Path, root: Path, manifest: Manifest, threads: int | None) -> None:
        dit = manifest.model.dit
        self._shape = (1, dit.text_len, dit.text_dim)
        self._tokenizer = PromptTokenizer(
            root / manifest.tokenizer,
            text_len=dit.text_len,
            vocab_size=manifest.model.text.vocab_size,
        )
        model = ir.load(path)
        out = next(o for o in model.graph.outputs if o.name == "text_embeds")
        assert out.dtype is not None
        self._dtype = out.dtype.numpy()
        self._parts = Parts(path.parent, threads)
        self._parts.add(TEXT, model)

    def fits(self, prompt: str) -> bool:
        """Whether the bundle takes so many tokens."""
        try:
            self._tokenizer.encode(prompt)
        except UsageError:
            return False
        return True

    def embed(self, prompt: str) -> Array:
        """[1, text_len, text_dim] float32."""
        ids, mask = self._tokenizer.encode(prompt)
        buffers = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "attention_mask": np.ascontiguousarray(mask, np.int64),
            "text_embeds": np.zeros(self._shape, self._dtype),
        }
        self._parts.run_alone(TEXT, buffers)
        return buffers["text_embeds"].astype(np.float32)


def _folder(form: Format, part: Part) -> str:
    return f"{form.name}-{part}"


def _check_target(
    root: Path, manifest: Manifest, form: Format, base: str, part: Part, overwrite: bool
) -> None:
    held = manifest.graphs.get(form.name, {})
    if any(g.file.startswith(f"{_folder(form, part)}/") for g in held.values()) and not overwrite:
        raise UsageError(
            f"{root} holds a {form.name} {part} already; add --overwrite to replace it"
        )
    made_from = manifest.notes.get(f"{form.name}.base", base)
    if held and made_from != base:
        raise UsageError(
            f"the {form.name} graphs of {root} were made from {made_from}, not from {base}. "
            f"Add --base {made_from}."
        )


def _finish(
    root: Path,
    part: Part,
    form: Format,
    base: str,
    models: Mapping[str, ir.Model],
    counts: dict[str, int],
    judge: Callable[[Mapping[str, ir.Model], Path], dict[str, float]],
    refused: Callable[[dict[str, float]], tuple[float, str | None]],
    limit: float,
    unit: str,
    force: bool,
    progress: Progress,
    speed: MeasureSpeed | str,
) -> PartReport:
    """Write to a hidden folder, judge what was written, then move it in or remove it."""
    manifest = read_manifest(root)
    folder = _folder(form, part)
    staging = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder}."))
    try:
        weights = WeightFile(staging / f"{part}.weights")
        sizes = {}
        for name, model in models.items():
            progress(f"writing {name}")
            sizes[name] = weight_bytes(model)
            save(model, staging / f"{name}.onnx", weights)
        weights.close()
        figures = judge({n: ir.load(staging / f"{n}.onnx") for n in models}, staging)
        worst, sentence = refused(figures)
        specs = manifest.graphs[base]
        before = sum(weight_bytes(ir.load(root / specs[n].file)) for n in models)
        report = PartReport(
            part=part, format=form.name, base=base, quantised=counts, figure=worst, unit=unit,
            limit=limit, per_case=figures, refused=sentence,
            weights_ratio=round(sum(sizes.values()) / before, 4),
        )  # fmt: skip
        _check(report, force)
        if isinstance(speed, str):
            report = replace(report, speed=Speed(not_measured=speed))
        else:
            progress("measuring speed")
            report = _with_speed(root, staging, sizes, report, speed)
            _check(report, force)
        _install(root, staging, manifest.graphs.get(form.name, specs), sizes, report)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _check(report: PartReport, force: bool) -> None:
    if report.refused and not force:
        raise RefusedError(
            f"{report.format} {report.part} is refused, nothing was written: {report.refused}. "
            "Keep this part in high precision, or write it all the same with --force."
        )


def _with_speed(
    root: Path, staging: Path, sizes: dict[str, int], report: PartReport, measure: MeasureSpeed
) -> PartReport:
    """Measure a copy of the bundle that holds the part alone."""
    with copied(root) as copy:
        _install(copy, copy / staging.name, read_manifest(root).graphs[report.base], sizes, report)
        speed = measure(copy, report.base, report.format)
    report = replace(report, speed=speed)
    if report.refused or speed.speedup is None or speed.speedup > 1:
        return report
    return replace(
        report,
        refused=f"the editor runs at {speed.quantised_fps:.4g} frames per second with it and at "
        f"{speed.base_fps:.4g} without",
    )


def _install(
    root: Path,
    staging: Path,
    held: Mapping[str, GraphSpec],
    sizes: dict[str, int],
    report: PartReport,
) -> None:
    """Move the part's folder in, and list it beside what its precision ``held``."""
    manifest, name = read_manifest(root), f"{report.format}-{report.part}"
    (staging / REPORT).write_bytes(json.dumps(to_dict(report), indent=1).encode() + b"\n")
    os.chmod(staging, 0o755)
    if (root / name).exists():
        shutil.rmtree(root / name)
    os.replace(staging, root / name)
    weights = f"{report.part}.weights"
    files = [f"{name}/{file}" for file in (*(f"{m}.onnx" for m in sizes), weights, REPORT)]
    new = {
        graph: replace(held[graph], file=f"{name}/{graph}.onnx", weights_bytes=size)
        for graph, size in sizes.items()
    }
    graphs = {**manifest.graphs, report.format: {**held, **new}}
    _list(root, manifest, name, files, graphs, report)


def _list(
    root: Path,
    manifest: Manifest,
    folder: str,
    files: list[str],
    graphs: dict[str, dict[str, GraphSpec]],
    report: PartReport,
) -> None:
    kept = {k: v for k, v in manifest.files.items() if not k.startswith(f"{folder}/")}
    verdict = f"refused, forced: {report.refused}" if report.refused else "passed"
    notes: dict[str, Any] = {
        **manifest.notes,
        f"{report.format}.{report.part}.base": report.base,
        f"{report.format}.{report.part}.verdict": verdict,
    }
    add_files(root, replace(manifest, files=kept), files, graphs=graphs, notes=notes)
