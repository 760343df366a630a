"""`liveedit quantize --calibration scenes`: generated clips, verdict, records, refusal marks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liveedit.bundle import read_manifest, refusal
from liveedit.cli import main
from liveedit.evaluation import generated_edits
from liveedit.evaluation.known_edits import KnownEdit
from liveedit.export import quantized_bundle
from liveedit.export.quantize import SiteScale
from liveedit.profiling.doc_tables import fill
from liveedit.profiling.records import read_folder

COMMON = ["--calibration", "scenes", "--threads", "1", "--base", "fp32"]


@pytest.fixture
def bundle(micro_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_bundle, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small editor's tokenizer has no words; real instructions are too long for it."""
    draw = generated_edits.known_edits

    def short(*arguments: Any) -> list[KnownEdit]:
        return [replace(edit, prompt="turn it red") for edit in draw(*arguments)]

    monkeypatch.setattr(generated_edits, "known_edits", short)


def test_generated_scenes_give_a_verdict_and_records(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, picture = tmp_path / "records", tmp_path / "sensitivity.png"
    command = ["quantize", str(bundle), "--precision", "int8", *COMMON]
    command += ["--search", "--layers", "blocks.0.ffn.*,blocks.1.self_attn.q"]
    command += ["--edits", "2", "--drift-chunks", "14"]
    assert main([*command, "--records", str(records), "--plot", str(picture), "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "verdict: passed" in shown
    assert "speed: not measured (no GPU on this machine)" in shown
    report = json.loads(shown[-1])
    assert len(report["layers"]) == 3
    assert len(report["sensitivity"]) == 3
    verdict = report["verdict"]
    assert verdict["benchmark"]["edits"] == 2
    assert len(verdict["drift"]["base"]) == len(verdict["drift"]["quantised"]) == 14
    assert min(q["agreement_db"] for q in verdict["quality"]) < 100
    assert picture.read_bytes()[:4] == b"\x89PNG"
    quantised, ranked = read_folder(records)
    assert quantised.kind == "quantize"
    assert quantised.figures["quantised_linears"].value == 3
    loss = quantised.figures["region_db.loss"]
    pair = verdict["benchmark"]["region_db"]
    assert loss.value == pytest.approx(pair["base"] - pair["quantised"])
    assert set(ranked.figures) == {s["layer"] for s in report["sensitivity"]}
    text = "<!-- figures: sensitivity/micro-int8-from-fp32 lowest=2 -->\n<!-- end -->\n"
    filled = fill(text, [quantised, ranked])
    assert filled.count("| blocks.") == 2
    assert f"| {report['sensitivity'][0]['layer']} |" in filled


def test_a_refused_precision_is_marked_wherever_it_is_seen(
    bundle: Path,
    make_clip: object,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = quantized_bundle.search

    def bad(*arguments: object) -> dict[str, SiteScale]:
        scales = good(*arguments)  # type: ignore[arg-type]
        return {t: replace(s, scale=s.scale * 100) for t, s in scales.items()}

    monkeypatch.setattr(quantized_bundle, "search", bad)
    # Weights are random here, so that no edit is right: the limits must see any change at all.
    monkeypatch.setattr("liveedit.export.verdict.Limits.ssim_loss", 0.0)
    command = ["quantize", str(bundle), "--precision", "int8", *COMMON, "--edits", "2"]
    command += ["--drift-chunks", "0", "--max-region-loss-db=-9", "--max-background-loss-db", "0"]
    assert main(command) == 1
    assert "int8 is refused, nothing was written: on" in capsys.readouterr().err
    assert "int8" not in read_manifest(bundle).graphs
    assert main([*command, "--force"]) == 0
    assert "verdict: refused, written by --force" in capsys.readouterr().out
    assert refusal(read_manifest(bundle), "int8").startswith("refused, forced: on 2 edits")
    assert refusal(read_manifest(bundle), "fp32") == ""
    notes = {"int8.verdict": "passed", "int8.vae.verdict": "refused, forced: soft"}
    parts = replace(read_manifest(bundle), notes=notes)
    assert refusal(parts, "int8") == "refused, forced: soft"
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "graphs, int8: REFUSED by its verdict" in shown
    assert "graphs, fp32\n" in shown
    clip = make_clip("in.mp4", frames=12)  # type: ignore[operator]
    edit = ["edit", str(clip), "--prompt", "turn it red", "-o", str(tmp_path / "out.mp4")]
    edit += ["--bundle", str(bundle), "--threads", "1", "--precision"]
    assert main([*edit, "int8"]) == 0
    assert "warning: int8 of this bundle is refused, forced: on 2 edits" in capsys.readouterr().err
    assert main([*edit, "fp32"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_wrong_arguments_are_refused_before_any_work(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(bundle), "--precision", "int8", *COMMON]
    for more, sentence in (
        (["--layers", "blocks.*.mlp"], "no linear layer matches 'blocks.*.mlp'"),
        (["--ranges", "max,mean"], "no activation range 'mean'"),
        (["--drift-chunks", "-1"], "--drift-chunks must be 0 or more, got -1"),
        (["--plot", "x.png"], "--plot draws what --search measures"),
        (["--plot", "x.png", "--search"], "--plot draws a record"),
        (["--footage", str(bundle / "none")], "no footage at"),
        (["--calibration", str(bundle / "none")], "no calibration folder"),
    ):
        assert main([*command, *more]) == 2
        assert sentence in capsys.readouterr().err


def test_the_mean_error_is_taken_off_the_bias() -> None:
    import onnx_ir as ir
    import onnxruntime as ort
    from test_quantize import Q, one_linear

    from liveedit.export.quantize import FORMATS, quantise

    rng, form = np.random.default_rng(4), FORMATS["int8"]
    x = (rng.standard_normal((1, 400, 48)) + rng.uniform(-3, 3, 48)).astype(np.float32)
    scale = float(np.abs(x).max()) / form.largest * 0.5  # half of the range is cut off
    coded = form.encode(x[0] / scale).astype(np.float32) * scale
    means = {"mean": x[0].mean(axis=0), "coded_mean": coded.mean(axis=0)}
    out = []
    for extra in ({}, means):
        model = ir.from_proto(one_linear())
        quantise(model, [Q], {"n": SiteScale(scale, **extra)}, form)
        proto = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
        out.append(session.run(None, {"x": x})[0])
    exact = ort.InferenceSession(
        one_linear().SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0]
    plain, corrected = (np.abs((o - exact).mean(axis=1)).max() for o in out)
    assert plain > 0.1
    assert corrected < 1e-3 * max(1.0, float(np.abs(exact).max()))
