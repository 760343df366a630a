"""Every graph of a bundle in ONNX Runtime against the torch module it came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from micro import MICRO, MICRO_STREAM, MICRO_WAN
from onnx_check import compare, randomised, session, step_case

from liveedit.bundle import Manifest, read_manifest, verify_file
from liveedit.config import LIVEEDIT_1_3B, StreamConfig
from liveedit.errors import BundleError, LiveEditError
from liveedit.export.bundle_writer import write_bundle
from liveedit.export.graphs import PRECISIONS, graphs
from liveedit.export.sources import modules, random_sources, trained_sources
from liveedit.profiling.accounting import dit_pass
from liveedit.profiling.onnx_flops import by_class, count

L = MICRO_STREAM.block_seq_length


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("keep", "padding", "write"),
    [
        (list(range(L)), 0, 0),
        (list(range(L)), 0, 2 * L),
        ([3, 4, 9, 20], 0, L),
        ([0, 7, 8, 15, 35], 3, 2 * L),
    ],
    ids=["full-first", "full-window", "pruned", "pruned-padded"],
)
def test_dit_step(
    micro_bundle: Path, precision: str, keep: list[int], padding: int, write: int
) -> None:
    inputs = step_case(micro_bundle, precision, keep, padding, write)
    compare(micro_bundle, "dit_step", precision, inputs)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["prompt", "encode_next", "decode_next"])
def test_other_graphs(micro_bundle: Path, precision: str, name: str) -> None:
    inputs = randomised(graphs(MICRO, MICRO_STREAM)[name].inputs(PRECISIONS[precision]))
    compare(micro_bundle, name, precision, inputs)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_text_encoder(micro_bundle: Path, precision: str) -> None:
    ids = torch.tensor([[5, 6, 7, 1] + [0] * 12])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    compare(micro_bundle, "text_encoder", precision, inputs)


@pytest.mark.parametrize("name", ["encode_first", "encode_next", "decode_first", "decode_next"])
def test_wan_vae_graphs(micro_wan_bundle: Path, name: str) -> None:
    inputs = randomised(graphs(MICRO_WAN, MICRO_STREAM)[name].inputs(torch.float32))
    compare(micro_wan_bundle, name, "fp32", inputs)


def test_weights_are_stored_once(micro_wan_bundle: Path) -> None:
    """The four codec graphs share one file that holds little more than the parameters."""
    weights = random_sources(MICRO_WAN, 0)[0]
    parameters = sum(t.numel() for t in weights["codec"].values())
    stored = (micro_wan_bundle / "graphs" / "codec.weights").stat().st_size
    padding = 4096 * len(weights["codec"])
    assert 4 * parameters * 0.95 <= stored <= 4 * parameters + padding


def test_custom_nodes_carry_functions_and_plugin_attributes(micro_bundle: Path) -> None:
    for precision in ("fp32", "fp16"):
        model = onnx.load(
            micro_bundle / f"graphs/dit_step.{precision}.onnx", load_external_data=False
        )
        bodies = {f.name for f in model.functions}
        assert bodies == {"MaskCacheGather", "MaskCacheScatter", "TRT_Attention"}
        counts = {n: 0 for n in bodies}
        for node in model.graph.node:
            if node.op_type in counts:
                counts[node.op_type] += 1
        assert set(counts.values()) == {MICRO.dit.num_layers}
        scatter = next(n for n in model.graph.node if n.op_type == "MaskCacheScatter")
        assert {a.name: a.s for a in scatter.attribute} == {
            "plugin_namespace": b"liveedit",
            "plugin_version": b"1",
        }


def test_names_are_the_checkpoints(micro_bundle: Path) -> None:
    model = onnx.load(micro_bundle / "graphs/dit_step.fp32.onnx", load_external_data=False)
    names = {i.name for i in model.graph.initializer}
    for key in ("patch_embedding.weight", "blocks.1.ffn.0.weight.T", "blocks.0.self_attn.q.bias"):
        assert key in names
    assert any(n.name.startswith("blocks.1.self_attn.q/MatMul") for n in model.graph.node)
    text = model.SerializeToString()
    assert b"/site-packages/" not in text, "no path of the exporting machine"


def test_half_storage_halves_the_file_and_keeps_the_result(
    micro_bundle: Path, tmp_path: Path
) -> None:
    weights, tokenizer, _ = random_sources(MICRO, 0)
    only, half = {"text_encoder": weights["text_encoder"]}, tmp_path / "half"
    both = ("fp32", "fp16")
    write_bundle(half, MICRO, MICRO_STREAM, only, tokenizer, precisions=both, half_weights=True)
    roots = (micro_bundle, half)
    sizes = [(r / "graphs" / "text_encoder.weights").stat().st_size for r in roots]
    parameters = sum(t.numel() for t in only["text_encoder"].values())
    assert sizes[0] >= 3.8 * parameters
    assert sizes[1] <= 2 * parameters + 4096 * len(only["text_encoder"]), "fp16 shares the weights"
    ids = np.array([[5, 6, 7, 1] + [0] * 12])
    results = []
    for root in roots:
        spec = read_manifest(root).graphs["fp32"]["text_encoder"]
        feeds = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
        results.append(session(root, spec).run(None, feeds)[0])
    np.testing.assert_allclose(*results, rtol=2e-2, atol=2e-3)
    assert not np.array_equal(*results), "float16 storage rounds"


def test_manifest_round_trip_and_tamper(micro_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(micro_bundle)
    assert isinstance(manifest, Manifest)
    assert manifest.model == MICRO
    assert manifest.stream == MICRO_STREAM
    for name in manifest.files:
        assert verify_file(micro_bundle, manifest, name).is_file()
    data = json.loads((micro_bundle / "bundle.json").read_text())
    data["stream"]["sink_size"] = 0
    (tmp_path / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="changed after it was written"):
        read_manifest(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liveedit.export import bundle_writer

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_writer, "save", full)
    weights, tokenizer, _ = random_sources(MICRO, 0)
    with pytest.raises(LiveEditError, match=r"disk .* is full"):
        bundle_writer.write_bundle(
            tmp_path / "b",
            MICRO,
            MICRO_STREAM,
            {"text_encoder": weights["text_encoder"]},
            tokenizer,
        )
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_replaced(micro_bundle: Path) -> None:
    with pytest.raises(LiveEditError, match="exists"):
        write_bundle(micro_bundle, MICRO, MICRO_STREAM, {}, b"{}")


@pytest.fixture(scope="module")
def full_width_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of the official DiT at full width, for a small picture."""
    model = replace(LIVEEDIT_1_3B, dit=replace(LIVEEDIT_1_3B.dit, num_layers=2))
    stream = StreamConfig(height_px=64, width_px=96, local_attn_size=9, keep_bucket=8)
    weights, tokenizer, _ = random_sources(model, 0)
    root = tmp_path_factory.mktemp("full_width") / "bundle"
    write_bundle(root, model, stream, {"dit": weights["dit"]}, tokenizer)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("kept", [72, 24])
def test_full_width_blocks(full_width_bundle: Path, chunk: int, kept: int) -> None:
    """1536 channels, 12 heads, the 8960-wide FFN: full and pruned, window filling and full."""
    keep = list(range(0, 72, 72 // kept))
    inputs = step_case(full_width_bundle, "fp32", keep, 0, 72 * chunk)
    compare(full_width_bundle, "dit_step", "fp32", inputs)


@pytest.mark.slow
def test_structure_of_the_real_editor(tmp_path: Path) -> None:
    """Every block of the official DiT, graphs only: names, shapes, attentions, FLOPs per class."""
    weights, tokenizer, _ = random_sources(LIVEEDIT_1_3B, 0)
    manifest = write_bundle(
        tmp_path / "b",
        LIVEEDIT_1_3B,
        StreamConfig(),
        {"dit": weights["dit"]},
        tokenizer,
        precisions=["fp16"],
        with_data=False,
    )
    spec = manifest.graphs["fp16"]["dit_step"]
    shapes = {t.name: t.shape for t in (*spec.inputs, *spec.outputs)}
    assert shapes["noisy"] == (1, 16, 3, 60, 104)
    assert shapes["k_cache_29"] == (1, 12, 21 * 1560, 128)
    assert shapes["attn_store_29_out"] == (1, 4680, 1536)
    assert len(spec.aliases) == 3 * 30
    model = onnx.load(tmp_path / "b" / spec.file, load_external_data=False)
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("TRT_Attention") == kinds.count("Attention") == 30
    assert kinds.count("TensorScatter") == 60
    known = {f"{k}{t}" for k in weights["dit"] for t in ("", ".T")}
    # Vectors may have been folded, such as a norm's weight in float32; matrices keep their names.
    matrices = {i.name for i in model.graph.initializer if len(i.dims) > 1 and max(i.dims) > 1000}
    assert len(matrices) == 30 * 9 + 6
    assert matrices <= known, sorted(matrices - known)[:3]
    assert not (tmp_path / "b" / "graphs" / "dit.weights").exists()
    tokens, rows = StreamConfig().block_seq_length, StreamConfig().kv_cache_length
    for kept in (tokens, 1408):
        seen = rows - tokens + kept
        counted = by_class(count(model, dims={"num_keep": kept}, kv_length=seen))
        pruned = kept if kept < tokens else None
        work = dit_pass(LIVEEDIT_1_3B.dit, tokens=tokens, keys=rows, kept=pruned)
        expected = {w.name: w.flops for w in work if w.flops}
        assert counted == pytest.approx(expected, rel=0.01)


def test_a_trained_folder_is_exported_with_its_averaged_weights(tmp_path: Path) -> None:
    random = random_sources(MICRO, 3)[0]
    states = {
        name: {k: random[name][k] for k in m.state_dict()} for name, m in modules(MICRO).items()
    }
    averaged = {"dit": states["dit"], "text": states["text_encoder"]}
    torch.save({"dit": {}, "text": {}, "ema": averaged}, tmp_path / "editor.pt")
    torch.save(states["codec"], tmp_path / "codec.pt")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    weights, tokenizer, _ = trained_sources(MICRO, tmp_path)
    assert tokenizer == b"{}"
    for name, state in states.items():
        assert all(torch.equal(weights[name][k], v) for k, v in state.items())
    del states["codec"]["encoder.0.weight"]
    torch.save(states["codec"], tmp_path / "codec.pt")
    with pytest.raises(LiveEditError, match=r"encoder\.0\.weight"):
        trained_sources(MICRO, tmp_path)
