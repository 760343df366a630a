"""Every graph of a bundle in ONNX Runtime against the torch module it came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from micro import MICRO, MICRO_STREAM, MICRO_WAN
from torch import Tensor, nn

from liveedit.bundle import GraphSpec, Manifest, read_manifest, verify_file
from liveedit.config import ModelConfig
from liveedit.errors import BundleError, LiveEditError
from liveedit.export.graphs import PRECISIONS, dit_inputs, graphs
from liveedit.export.sources import random_sources
from liveedit.export.trace import flat_names, flat_tensors

# float16 has 10 fraction bits; a few layers of it against the same layers in another order.
TOLERANCE = {"fp32": dict(rtol=2e-4, atol=2e-5), "fp16": dict(rtol=3e-2, atol=3e-2)}


def loaded(model: ModelConfig, name: str, precision: str) -> nn.Module:
    """The module behind a graph, with the weights that `make_bundle` wrote."""
    graph = graphs(model, MICRO_STREAM)[name]
    weights = random_sources(model, 0)[0][graph.weights]
    module = graph.module(PRECISIONS[precision])
    inner: nn.Module = next(
        (getattr(module, n) for n in ("dit", "codec") if hasattr(module, n)), module
    )
    own = inner.state_dict()
    inner.load_state_dict({k: weights[k].to(own[k].dtype) for k in own})
    return module.eval()


def session(root: Path, spec: GraphSpec) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(root / spec.file, options, providers=["CPUExecutionProvider"])


def compare(root: Path, name: str, precision: str, model: ModelConfig, inputs: dict) -> None:
    spec = read_manifest(root).graphs[precision][name]
    feeds = {n: t.numpy() for n, t in zip(flat_names(inputs), flat_tensors(inputs), strict=True)}
    assert [s.name for s in spec.inputs] == list(feeds)
    actual = session(root, spec).run([o.name for o in spec.outputs], feeds)
    with torch.no_grad():
        produced = loaded(model, name, precision)(**inputs)
    if isinstance(produced, Tensor):
        produced = (produced,)
    expected = [t for p in produced for t in (p if isinstance(p, list | tuple) else [p])]
    for out, got, want in zip(spec.outputs, actual, expected, strict=True):
        assert list(got.shape) == list(out.shape), out.name
        torch.testing.assert_close(
            torch.from_numpy(got).float(),
            want.float(),
            **TOLERANCE[precision],
            msg=lambda m, n=out.name: f"{n}: {m}",
        )


def randomised(inputs: dict, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def fill(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        return torch.randn(t.shape, generator=generator).to(t.dtype)

    return {k: [fill(t) for t in v] if isinstance(v, list) else fill(v) for k, v in inputs.items()}


def step_case(precision: str, keep: list[int], padding: int, write: int) -> dict:
    """Random caches and latents; ``keep`` tokens kept, ``padding`` rows of padding after them."""
    inputs = randomised(dit_inputs(MICRO, MICRO_STREAM, PRECISIONS[precision]))
    row = torch.full((MICRO_STREAM.block_seq_length,), -1, dtype=torch.int32)
    row[torch.tensor(keep)] = torch.arange(len(keep), dtype=torch.int32)
    angles = torch.randn_like(inputs["rope_cos"])
    return inputs | {
        "timestep": torch.tensor([500.0]),
        "sigma": torch.tensor([0.5]),
        "sigma_next": torch.tensor([0.25]),
        "rope_cos": angles.cos(),
        "rope_sin": angles.sin(),
        "keep_index": torch.tensor(keep + [-1] * padding, dtype=torch.int32),
        "token_row": row,
        "write_index": torch.tensor([write]),
        "kv_length": torch.tensor([write + len(keep)], dtype=torch.int32),
    }


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
    inputs = step_case(precision, keep, padding, write)
    compare(micro_bundle, "dit_step", precision, MICRO, inputs)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["prompt", "encode_next", "decode_next"])
def test_other_graphs(micro_bundle: Path, precision: str, name: str) -> None:
    inputs = randomised(graphs(MICRO, MICRO_STREAM)[name].inputs(PRECISIONS[precision]))
    compare(micro_bundle, name, precision, MICRO, inputs)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_text_encoder(micro_bundle: Path, precision: str) -> None:
    ids = torch.tensor([[5, 6, 7, 1] + [0] * 12])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    compare(micro_bundle, "text_encoder", precision, MICRO, inputs)


@pytest.mark.parametrize("name", ["encode_first", "encode_next", "decode_first", "decode_next"])
def test_wan_vae_graphs(micro_wan_bundle: Path, name: str) -> None:
    inputs = randomised(graphs(MICRO_WAN, MICRO_STREAM)[name].inputs(torch.float32))
    compare(micro_wan_bundle, name, "fp32", MICRO_WAN, inputs)


def test_weights_are_stored_once(micro_wan_bundle: Path) -> None:
    """The four codec graphs share one file that holds little more than the parameters."""
    weights = random_sources(MICRO_WAN, 0)[0]
    parameters = sum(t.numel() for t in weights["codec"].values())
    stored = (micro_wan_bundle / "fp32" / "codec.weights").stat().st_size
    padding = 4096 * len(weights["codec"])
    assert 4 * parameters * 0.95 <= stored <= 4 * parameters + padding


def test_custom_nodes_carry_functions_and_plugin_attributes(micro_bundle: Path) -> None:
    for precision in ("fp32", "fp16"):
        model = onnx.load(micro_bundle / precision / "dit_step.onnx", load_external_data=False)
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
    model = onnx.load(micro_bundle / "fp32" / "dit_step.onnx", load_external_data=False)
    names = {i.name for i in model.graph.initializer}
    for key in ("patch_embedding.weight", "blocks.1.ffn.0.weight.T", "blocks.0.self_attn.q.bias"):
        assert key in names
    assert any(n.name.startswith("blocks.1.self_attn.q/MatMul") for n in model.graph.node)
    text = model.SerializeToString()
    assert b"/site-packages/" not in text, "no path of the exporting machine"


def test_half_storage_halves_the_file_and_keeps_the_result(tmp_path: Path) -> None:
    from liveedit.export.bundle_writer import write_bundle

    weights, tokenizer, _ = random_sources(MICRO, 0)
    only = {"text_encoder": weights["text_encoder"]}
    for half in (False, True):
        write_bundle(tmp_path / str(half), MICRO, MICRO_STREAM, only, tokenizer, half_weights=half)
    ids = np.array([[5, 6, 7, 1] + [0] * 12])
    results = []
    for half in (False, True):
        root = tmp_path / str(half)
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
    from liveedit.export.bundle_writer import write_bundle

    with pytest.raises(LiveEditError, match="exists"):
        write_bundle(micro_bundle, MICRO, MICRO_STREAM, {}, b"{}")
