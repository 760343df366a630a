"""The gate on exported graphs, built for three GPUs, with and without plugins."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from liveedit.bundle import read_manifest
from liveedit.config import from_dict
from liveedit.engines.builder import build_bundle
from liveedit.engines.gate import Limits, findings, step_activation_bound
from liveedit.engines.graph_facts import read_facts
from liveedit.engines.inspect import describe_plans
from liveedit.engines.layers import LayerTable
from liveedit.engines.onnx_files import verified_graph
from liveedit.engines.plan import PlanSet, read_sets

pytestmark = pytest.mark.builder
pytest.importorskip("tensorrt_rtx")
GRAPHS = {"dit_step", "prompt", "text_encoder", "encode_next", "decode_next"}


def built(bundle: Path, root: Path, target: str, *, plugins: bool = True) -> PlanSet:
    shutil.copytree(bundle, root)
    result = build_bundle(
        root,
        flavour="tensorrt-rtx",
        targets=(target,),
        keep=(0.4,),
        plugins=plugins,
        progress=io.StringIO(),
    )
    assert set(result.built) == GRAPHS
    return read_sets(read_manifest(root))[result.key]


@pytest.mark.parametrize(("target", "plugins"), [("sm86", False), ("sm89", True), ("sm120", True)])
def test_a_whole_editor_passes(
    micro_bundle: Path, tmp_path: Path, target: str, plugins: bool
) -> None:
    root = tmp_path / "bundle"
    plans = built(micro_bundle, root, target, plugins=plugins)
    assert {name: plan.findings for name, plan in plans.graphs.items()} == dict.fromkeys(GRAPHS, ())
    manifest = read_manifest(root)
    step = manifest.graphs["fp16"]["dit_step"]
    model, _ = verified_graph(root, manifest, step)
    facts = read_facts(model)
    blocks = manifest.model.dit.num_layers
    assert len(facts.attentions) == 2 * blocks
    assert sum(a.lengths == "kv_length" for a in facts.attentions) == blocks
    assert sum(len(group) == 3 for a in facts.attentions for group in a.projections) == blocks
    assert {name: len(nodes) for name, nodes in facts.plugins.items()} == {
        "MaskCacheGather": blocks,
        "MaskCacheScatter": blocks,
    }
    table = from_dict(LayerTable, json.loads((root / plans.graphs["dit_step"].layers).read_bytes()))
    in_plan = [layer for layer in table.profile(0) if layer.cls == "plugin"]
    assert len(in_plan) == (2 * blocks if plugins else 0)
    bound = step_activation_bound(manifest.model.dit, manifest.stream)
    limits = Limits(activation_bytes=bound)
    assert findings(facts, table, plugins=plugins, limits=limits) == []
    (report,) = describe_plans(root)
    assert [plan.graph for plan in report.plans] == sorted(GRAPHS)
    assert all(plan.num_layers for plan in report.plans)
    assert any("no GPU here" in line for line in report.refusals) or not report.refusals
