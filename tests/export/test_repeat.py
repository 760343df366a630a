"""Many blocks out of three traced ones: the same function, names, inputs and outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from micro import MICRO, MICRO_STREAM
from onnx_check import compare, randomised, step_case

from liveedit.bundle import read_manifest
from liveedit.export.bundle_writer import write_bundle
from liveedit.export.graphs import graphs
from liveedit.export.repeat import TRACED
from liveedit.export.sources import random_sources
from liveedit.export.trace import specs

BLOCKS = 5
DEEP = replace(
    MICRO,
    name="deep",
    dit=replace(MICRO.dit, num_layers=BLOCKS),
    text=replace(MICRO.text, num_layers=BLOCKS),
)


@pytest.fixture(scope="module")
def deep_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert BLOCKS > TRACED
    weights, tokenizer, _ = random_sources(DEEP, 0)
    del weights["codec"]
    root = tmp_path_factory.mktemp("deep") / "bundle"
    write_bundle(root, DEEP, MICRO_STREAM, weights, tokenizer)
    return root


def test_every_block_computes_with_its_own_weights_and_caches(deep_bundle: Path) -> None:
    compare(deep_bundle, "dit_step", "fp32", step_case(deep_bundle, "fp32", [3, 4, 9, 20], 0, 36))
    inputs = randomised(graphs(DEEP, MICRO_STREAM)["prompt"].inputs(torch.float32))
    compare(deep_bundle, "prompt", "fp32", inputs)
    ids = torch.tensor([[5, 6, 7, 1] + [0] * 12])
    masked = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    compare(deep_bundle, "text_encoder", "fp32", masked)


def test_names_are_those_of_a_whole_trace(deep_bundle: Path) -> None:
    manifest = read_manifest(deep_bundle)
    for name, spec in manifest.graphs["fp32"].items():
        graph = graphs(DEEP, MICRO_STREAM)[name]
        whole = specs(graph.inputs(torch.float32), {n: d[0] for n, d in graph.dynamic.items()})
        assert spec.inputs == whole
        assert tuple(t.name for t in spec.outputs) == graph.outputs
        model = onnx.load(deep_bundle / spec.file, load_external_data=False)
        assert [i.name for i in model.graph.input] == [t.name for t in whole]
        assert [o.name for o in model.graph.output] == list(graph.outputs)
        nodes = [n.name for n in model.graph.node]
        assert len(set(nodes)) == len(nodes)
        for block in range(BLOCKS):
            known = _of_block(nodes, block)
            assert known == {n.replace(".1", f".{block}", 1) for n in _of_block(nodes, 1)}


def _of_block(nodes: list[str], block: int) -> set[str]:
    return {n.split("/")[0] for n in nodes if n.startswith(f"blocks.{block}.")}
