"""From clips to an INT8 precision of a bundle, and every way to be told no."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from noise_clips import noise_clips

from liveedit.bundle import read_manifest, verify_file, write_manifest
from liveedit.cli import main
from liveedit.errors import UsageError
from liveedit.export import quantized_bundle
from liveedit.export.calibration import calibrate, load_statistics, save_statistics
from liveedit.export.clip_folder import read_folder, split
from liveedit.export.edit_quality import Quality, compare
from liveedit.export.graph_trial import Clip, load_step
from liveedit.export.linears import linears
from liveedit.export.quantize import FORMATS, SiteScale, sites
from liveedit.export.quantized_bundle import (
    QuantizeOptions,
    RefusedError,
    Report,
    judge_speed,
    quantize_bundle,
)
from liveedit.export.sensitivity import largest_set, rank
from liveedit.export.verdict import Limits, Speed, Verdict, clip_refusals
from liveedit.runtime import StreamEditor

MakeClip = Callable[..., Path]


@pytest.fixture
def bundle(micro_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_bundle, tmp_path / "bundle"))


@pytest.fixture
def folder(make_clip: MakeClip, tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        make_clip(name, frames=48)
    (tmp_path / "prompts.txt").write_text("turn it red\n\nmake it blue\n")
    return tmp_path


def test_the_command_writes_a_precision_that_runs(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(bundle), "--precision", "int8", "--base", "fp32"]
    command += ["--calibration", str(folder), "--threads", "1", "--min-edited-db", "20"]
    command += ["--edits", "0", "--drift-chunks", "0"]
    statistics = folder / "ranges.npz"
    assert main([*command, "--statistics", str(statistics), "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "verdict: passed" in shown
    report = json.loads(shown[-1])
    assert len(report["layers"]) == 16
    assert (
        report["calibration"]["passes"] == 2 * 5 * 5
    )  # one clip of five chunks, five passes, twice
    assert {q["mask_cache"] for q in report["verdict"]["quality"]} == {"off", "released"}
    assert report["verdict"]["speed"]["not_measured"]
    manifest = read_manifest(bundle)
    assert manifest.notes["int8.verdict"] == "passed"
    assert manifest.notes["int8.base"] == "fp32"
    assert manifest.graphs["int8"]["dit_step"].file == "int8/dit_step.onnx"
    assert manifest.graphs["int8"]["prompt"] == manifest.graphs["fp32"]["prompt"]
    for file in manifest.files:
        verify_file(bundle, manifest, file)
    assert sorted(p.name for p in bundle.iterdir() if p.name.startswith(".")) == []
    frames = np.full((12, 48, 64, 3), 90, np.uint8)
    edited = []
    for precision in ("int8", "fp32"):
        with StreamEditor.open(bundle, precision=precision, threads=1) as editor:
            editor.set_prompt("turn it red")
            edited.append(np.concatenate([c.frames for c in editor.push(frames) + editor.flush()]))
    assert 0 < np.abs(edited[0].astype(int) - edited[1]).mean() < 8
    assert main([*command, "--statistics", str(statistics)]) == 2
    assert "holds int8 graphs already" in capsys.readouterr().err


def test_one_block_at_a_time_and_without_a_verdict(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(bundle), "--precision", "int8", "--base", "fp16", "--threads", "1"]
    command += ["--calibration", str(folder), "--one-block-at-a-time", "--unjudged"]
    command += ["--ranges", "max", "--statistics", str(folder / "ranges.npz")]
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert "loads of a part, 50 passes" in shown
    assert "nothing was written: it was not judged by any edit" in shown
    assert main([*command, "--any-size", "--force"]) == 0
    note = read_manifest(bundle).notes["int8.verdict"]
    assert note == "refused, forced: it was not judged by any edit"


def test_speed_is_measured_on_a_copy(bundle: Path) -> None:
    found = linears(load_step(bundle, read_manifest(bundle), "fp16"))
    report = Report(
        format="int8", base="fp16", layers=tuple(found), left_out=(), scales={}, sensitivity=(),
        verdict=Verdict(limits=Limits(), quality=()), calibration={},
    )  # fmt: skip
    scales = {t: SiteScale(4 / 127) for t in sites(found)}

    def speed(copy: Path, base: str, quantised: str) -> Speed:
        assert {base, quantised} <= set(read_manifest(copy).graphs)
        return Speed(base_fps=1, quantised_fps=2)

    before = sorted(bundle.parent.iterdir())
    assert judge_speed(bundle, FORMATS["int8"], scales, report, speed).speedup == 2
    assert "int8" not in read_manifest(bundle).graphs
    assert sorted(bundle.parent.iterdir()) == before


def test_a_bad_scale_is_refused_and_only_force_writes_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, good = read_manifest(bundle), quantized_bundle.search
    data = noise_clips(48, 48)
    statistics = calibrate(bundle, manifest, "fp32", data[:1], threads=1)

    def bad(*arguments: object) -> dict[str, SiteScale]:
        scales = good(*arguments)  # type: ignore[arg-type]
        return {t: replace(s, scale=s.scale * 100) for t, s in scales.items()}

    monkeypatch.setattr(quantized_bundle, "search", bad)
    arguments = (bundle, FORMATS["int8"], "fp32", statistics, data[:1], data[1:])
    # Between the bad scales, 30 dB on an untrained editor, and the good ones, which must pass.
    options = QuantizeOptions(threads=1, limits=Limits(edited_db=38))
    before = (bundle / "bundle.json").read_bytes()
    with pytest.raises(RefusedError, match=r"nothing was written: clip 1.*differs.*--force"):
        quantize_bundle(*arguments, options)
    assert (bundle / "bundle.json").read_bytes() == before
    assert not (bundle / "int8").exists()
    report = quantize_bundle(*arguments, replace(options, force=True))
    assert report.refused
    assert read_manifest(bundle).notes["int8.verdict"].startswith("refused, forced: clip 1")
    monkeypatch.setattr(quantized_bundle, "search", good)
    assert not quantize_bundle(*arguments, replace(options, overwrite=True)).refused


class StubBench:
    """Every layer costs half a dB, and "bad" ten."""

    def measure(self, layers: Sequence[str], scales: object, form: object) -> list[Quality]:
        edited = 40 - 0.5 * len(layers) - 10 * ("bad" in layers)
        return [
            Quality(
                clip="c", mask_cache="off", agreement_db=edited, edited_db=edited, edited_ssim=1,
                background_db=30, background_loss_db=0,
            )
        ]  # fmt: skip


@pytest.mark.parametrize(("limit", "size"), [(35, 8), (37.5, 5), (25, 9), (45, 0)])
def test_the_search_leaves_out_what_hurts(limit: float, size: int) -> None:
    bench, form, layers = StubBench(), FORMATS["int8"], [*(f"layer {i}" for i in range(8)), "bad"]
    ranked = rank(bench, layers, {}, form)  # type: ignore[arg-type]
    assert [s.layer for s in ranked[:2]] == ["bad", "layer 0"]
    best = largest_set(bench, ranked, {}, form, Limits(edited_db=limit))  # type: ignore[arg-type]
    assert len(best) == size
    assert ("bad" in best) == (size == 9)


def test_statistics_are_of_one_model(bundle: Path, tmp_path: Path) -> None:
    manifest, path = read_manifest(bundle), tmp_path / "ranges.npz"
    statistics = calibrate(bundle, manifest, "fp32", noise_clips(48), threads=1)
    save_statistics(path, statistics)
    again = load_statistics(path, manifest, "fp32")
    assert again.origin == statistics.origin
    name = next(iter(again.tensors))
    np.testing.assert_array_equal(again.tensors[name].rows, statistics.tensors[name].rows)
    for known in statistics.tensors.values():
        assert (np.abs(known.rows).max(axis=0) <= known.amax + 1e-6).all()
        assert np.abs(known.rows).max() > 0.3 * known.amax.max()
    with pytest.raises(UsageError, match="was taken in fp32, and fp16"):
        load_statistics(path, manifest, "fp16")
    larger = replace(manifest, stream=replace(manifest.stream, width_px=96))
    with pytest.raises(UsageError, match="taken at 48 x 64, this bundle edits 48 x 96"):
        load_statistics(path, larger, "fp32")
    assert load_statistics(path, larger, "fp32", any_size=True).origin.stream == manifest.stream
    files = {**manifest.files}
    files["graphs/dit.weights"] = replace(files["graphs/dit.weights"], sha256="0" * 64)
    with pytest.raises(UsageError, match=r"another model: graphs/dit\.weights"):
        load_statistics(path, replace(manifest, files=files), "fp32")
    with pytest.raises(UsageError, match=r"another model: graphs/dit\.weights"):
        load_statistics(path, replace(manifest, files=files), "fp32", any_size=True)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match="holds no statistics"):
        load_statistics(path, manifest, "fp32")
    with pytest.raises(UsageError, match="no statistics at"):
        load_statistics(tmp_path / "none.npz", manifest, "fp32")


def test_calibration_sets_that_are_too_small(micro_bundle: Path, folder: Path) -> None:
    manifest = read_manifest(micro_bundle)
    with pytest.raises(UsageError, match=r"longest clip has 36 frames.* only after 48"):
        calibrate(micro_bundle, manifest, "fp32", noise_clips(36))
    whole = noise_clips(48)[0]
    half = replace(whole, frames=whole.frames[:, :, :32])
    with pytest.raises(UsageError, match=r"frames \[48, 32, 3\]; this bundle edits \[48, 64, 3\]"):
        calibrate(micro_bundle, manifest, "fp32", [half])
    with pytest.raises(UsageError, match="is empty"):
        calibrate(micro_bundle, manifest, "fp32", [])
    with pytest.raises(UsageError, match="1 clip, and one must be held out"):
        split(noise_clips(48))
    found = read_folder(folder, manifest, 48)
    assert [(c.name, c.prompt, len(c.frames)) for c in found] == [
        ("a.mp4", "turn it red", 48),
        ("b.mp4", "make it blue", 48),
    ]
    assert [len(part) for part in split(found)] == [1, 1]
    wide = replace(manifest, stream=replace(manifest.stream, width_px=96))
    with pytest.raises(UsageError, match=r"a\.mp4 is 48 x 64, smaller than the 48 x 96"):
        read_folder(folder, wide, 48)
    (folder / "prompts.txt").write_text("\n")
    with pytest.raises(UsageError, match="holds no prompt"):
        read_folder(folder, manifest, 48)
    with pytest.raises(UsageError, match="holds no video"):
        read_folder(micro_bundle, manifest, 48)
    with pytest.raises(UsageError, match="no calibration folder"):
        read_folder(folder / "none", manifest, 48)


def test_a_bundle_without_the_base_is_told_so(bundle: Path, folder: Path) -> None:
    manifest = read_manifest(bundle)
    write_manifest(bundle, replace(manifest, graphs={"fp32": manifest.graphs["fp32"]}))
    command = ["quantize", str(bundle), "--precision", "int8", "--calibration", str(folder)]
    assert main([*command, "--base", "fp16"]) == 2
    assert main([*command[:3], "int4", *command[4:]]) == 2


def test_quality_is_measured_where_the_edit_is() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 100, (8, 16, 24, 3), dtype=np.uint8)
    reference = source.copy()
    reference[:, :8, :8] += 100
    worse = reference.copy()
    worse[:, :8, :8] += 10
    clip = Clip("c", source, "")
    inside = compare(clip, "off", reference, worse)
    assert inside.edited_db == pytest.approx(20 * np.log10(255 / 10))
    assert inside.background_loss_db == 0
    assert clip_refusals([inside], Limits(edited_db=29))
    assert not clip_refusals([inside], Limits(edited_db=28))
    late = reference.copy()
    late[4:, 8:] += 10
    outside = compare(clip, "off", reference, late)
    assert outside.edited_db == 100
    (found,) = clip_refusals([outside], Limits())
    assert "background loses" in found
    assert compare(clip, "off", source, source).edited_db is None
