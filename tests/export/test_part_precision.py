"""INT8 for the codec and the text encoder: figures, files, and every way to be told no."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from micro import MICRO_STREAM, MICRO_WAN
from noise_clips import noise_clips

from liveedit.bundle import read_manifest, verify_file, write_manifest
from liveedit.cli import main
from liveedit.errors import UsageError
from liveedit.export.bundle_writer import write_bundle
from liveedit.export.convolutions import residual_convolutions
from liveedit.export.graph_trial import Clip
from liveedit.export.part_precision import quantize_text, quantize_vae
from liveedit.export.quantize import FORMATS
from liveedit.export.quantized_bundle import RefusedError, check_target, other_parts
from liveedit.export.sources import random_sources
from liveedit.export.verdict import Speed
from liveedit.export.weights import weight_bytes
from liveedit.runtime import StreamEditor
from liveedit.runtime.memory_budget import memory_budget

INT8 = FORMATS["int8"]
CODEC = ("encode_first", "encode_next", "decode_first", "decode_next")
MakeClip = Callable[..., Path]


@pytest.fixture
def bundle(micro_wan_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_wan_bundle, tmp_path / "bundle"))


@pytest.fixture
def folder(make_clip: MakeClip, tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        make_clip(name, frames=24)
    (tmp_path / "prompts.txt").write_text("turn it red\n")
    return tmp_path


def test_the_command_quantises_both_and_the_stream_runs(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(bundle)
    command = ["quantize", str(bundle), "--precision", "int8", "--base", "fp32", "--threads", "1"]
    command += ["--calibration", str(folder), "--frames", "24", "--vae", "int8", "--text", "int8"]
    assert main([*command, "--min-vae-db", "20", "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    vae, text = json.loads(shown[-1])
    assert "verdict: passed" in shown[0]
    assert vae["quantised"] == dict.fromkeys(CODEC[:2], 12) | dict.fromkeys(CODEC[2:], 20)
    assert text["quantised"] == {"text_encoder": 7 + 1}
    assert 20 < vae["figure"] < 80
    assert 0 < text["figure"] < 0.05
    assert vae["weights_ratio"] < 0.4
    assert text["weights_ratio"] < 0.45
    manifest = read_manifest(bundle)
    for file in manifest.files:
        verify_file(bundle, manifest, file)
    files = {n: g.file for n, g in manifest.graphs["int8"].items()}
    assert files["decode_next"] == "int8-vae/decode_next.onnx"
    assert files["text_encoder"] == "int8-text/text_encoder.onnx"
    assert files["dit_step"] == before.graphs["fp32"]["dit_step"].file
    assert sorted(other_parts(manifest, INT8, "fp32")) == sorted((*CODEC, "text_encoder"))
    assert not other_parts(manifest, INT8, "fp16")
    stored = (bundle / "int8-vae" / "vae.weights").stat().st_size
    assert stored < 0.45 * (bundle / "graphs" / "codec.weights").stat().st_size
    budgets = [memory_budget(manifest, p)["weights"] for p in ("fp32", "int8")]
    pairs = ("dit_step", "prompt", "text_encoder", "encode_next", "decode_next")
    for precision, budget in zip(("fp32", "int8"), budgets, strict=True):
        graphs = {n: ir.load(bundle / manifest.graphs[precision][n].file) for n in pairs}
        assert budget >= sum(weight_bytes(m) for m in graphs.values())
    assert budgets[1] < budgets[0]
    frames = np.random.default_rng(0).integers(0, 256, (13, 48, 64, 3), dtype=np.uint8)
    edited = []
    for precision in ("int8", "fp32"):
        with StreamEditor.open(bundle, precision=precision, threads=1) as editor:
            editor.set_prompt("turn it red")
            edited.append(np.concatenate([c.frames for c in editor.push(frames) + editor.flush()]))
    assert 0 < np.abs(edited[0].astype(int) - edited[1]).mean() < 12
    assert main([*command, "--min-vae-db", "20"]) == 2
    assert "holds a int8 vae already" in capsys.readouterr().err


def test_only_residual_convolutions_read_eight_bits(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    model = ir.load(bundle / manifest.graphs["fp32"]["decode_next"].file)
    names = residual_convolutions(model)
    assert len(names) == 20
    assert all(n.endswith((".residual.2", ".residual.6")) for n in names)
    data, around = noise_clips(17, 17), sorted(bundle.parent.iterdir())

    def slower(copy: Path, base: str, quantised: str) -> Speed:
        graphs = read_manifest(copy).graphs
        assert graphs[quantised]["decode_next"].file == "int8-vae/decode_next.onnx"
        assert graphs[quantised]["dit_step"] == graphs[base]["dit_step"]
        onnx.load(copy / graphs[base]["dit_step"].file)  # its weights can be read
        return Speed(base_fps=10, quantised_fps=9)

    arguments = (bundle, INT8, "fp32", data[:1], data[1:])
    report = quantize_vae(*arguments, min_db=0, threads=1, force=True, speed=slower)
    assert report.refused == "the editor runs at 9 frames per second with it and at 10 without"
    assert sorted(bundle.parent.iterdir()) == around
    written = onnx.load(bundle / "int8-vae/decode_next.onnx", load_external_data=False).graph
    made = {o: n.op_type for n in written.node for o in n.output}
    coded = [
        n for n in written.node if n.op_type == "Conv" and made.get(n.input[0], "")[:2] == "De"
    ]
    assert len(coded) == 20
    assert all(made[n.input[1]] == "DequantizeLinear" for n in coded)
    types = {t.name: t.data_type for t in written.initializer}
    assert types["decoder.middle.0.residual.2.weight.int8"] == onnx.TensorProto.INT8


def test_what_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liveedit.export import part_precision

    data, before = noise_clips(17, 17), (bundle / "bundle.json").read_bytes()
    good = part_precision.quantise_convolutions

    def bad(model: ir.Model, amax: dict[str, float], form: object) -> int:
        return good(model, {n: v * 200 for n, v in amax.items()}, INT8)

    arguments = (bundle, INT8, "fp32")
    monkeypatch.setattr(part_precision, "quantise_convolutions", bad)
    with pytest.raises(RefusedError, match=r"int8 vae is refused.*frames agree to .* 25 dB"):
        quantize_vae(*arguments, data[:1], data[1:], min_db=25, threads=1)
    with pytest.raises(RefusedError, match=r"int8 text is refused.*off by 0\.0.*0\.0001 is the"):
        quantize_text(*arguments, ["turn it red"], max_error=0.0001, threads=1)
    assert (bundle / "bundle.json").read_bytes() == before
    assert not [p for p in bundle.iterdir() if "int8" in p.name]
    report = quantize_text(*arguments, ["red"], max_error=0.0001, threads=1, force=True)
    assert report.refused
    notes = read_manifest(bundle).notes
    assert notes["int8.text.verdict"].startswith("refused, forced: text embeddings are off by")


def test_bundles_that_cannot_do_it(bundle: Path, micro_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"codec is taehv; only the Wan VAE"):
        quantize_vae(micro_bundle, INT8, "fp32", [], [])
    manifest = read_manifest(bundle)
    graphs = {k: v for k, v in manifest.graphs["fp32"].items() if k != "text_encoder"}
    write_manifest(bundle, replace(manifest, graphs={"fp32": graphs}))
    with pytest.raises(UsageError, match="holds no text encoder"):
        quantize_text(bundle, INT8, "fp32", ["red"])
    write_manifest(
        bundle,
        replace(
            manifest,
            graphs={**manifest.graphs, "int8": manifest.graphs["fp32"]},
            notes={"int8.base": "fp16"},
        ),
    )
    with pytest.raises(UsageError, match=r"made from fp16, not from fp32. Add --base fp16"):
        quantize_text(bundle, INT8, "fp32", ["red"])
    check_target(bundle, read_manifest(bundle), INT8, "fp32", overwrite=False)  # its step is free


@pytest.mark.slow
def test_an_encoder_block_of_real_width(tmp_path: Path) -> None:
    """One UMT5-XXL block, 4096 x 10240.

    Random weights make attention all but pick one word, so small errors of q and k show in full.
    """
    wide = replace(
        MICRO_WAN.text, dim=4096, dim_attn=4096, ffn_dim=10240, num_heads=64, num_layers=1
    )
    model = replace(MICRO_WAN, text=wide, dit=replace(MICRO_WAN.dit, text_dim=4096))
    weights, tokenizer, _ = random_sources(model, 0)
    only, root = {"text_encoder": weights["text_encoder"]}, tmp_path / "bundle"
    write_bundle(root, model, MICRO_STREAM, only, tokenizer, precisions=("fp16",))
    report = quantize_text(root, INT8, "fp16", ["turn it red"], max_error=0.1, threads=1)
    assert 0.001 < report.figure < 0.08
    assert report.quantised == {"text_encoder": 8}
    assert report.weights_ratio == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_convolutions_of_real_width(tmp_path: Path) -> None:
    """The Wan VAE at its 96 to 384 channels, one residual block a level, a small picture."""
    assert MICRO_WAN.wan_vae is not None
    model = replace(MICRO_WAN, wan_vae=replace(MICRO_WAN.wan_vae, base_dim=96))
    stream = replace(MICRO_STREAM, height_px=16, width_px=16)
    weights, tokenizer, _ = random_sources(model, 0)
    only, root = {"codec": weights["codec"]}, tmp_path / "bundle"
    write_bundle(root, model, stream, only, tokenizer, precisions=("fp16",))
    rng = np.random.default_rng(0)
    data = [Clip(n, rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8), "") for n in "ab"]
    report = quantize_vae(root, INT8, "fp16", data[:1], data[1:], min_db=25, threads=1)
    assert report.figure > 25
    assert report.weights_ratio < 0.6
