"""The gate on every kind of exported graph. ``LIVEEDIT_GATE=all`` runs each case for each GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from liveedit.bundle import read_manifest
from liveedit.engines.gate import Limits, findings, step_activation_bound
from liveedit.engines.inspect import describe_plans
from liveedit.profiling.gate_matrix import CASES, TARGETS, GateResult, main, run_case, write_case
from liveedit.profiling.records import read_record

pytestmark = pytest.mark.builder
pytest.importorskip("tensorrt_rtx")

Bundle = Callable[[str], Path]
SHIPPED = {"dit_step", "prompt", "text_encoder", "encode_next", "decode_next"}
ALL = [(case, target) for case in CASES for target in TARGETS]
# Each GPU at least once, and each case but one: native layers are built at full width.
SOME = [
    ("shipped", "sm86"),
    ("wide", "sm89"),
    ("wide-native", "sm120"),
    ("narrow", "sm120"),
    ("wan-vae", "sm86"),
    ("text-encoder", "sm89"),
]
RUN = ALL if os.environ.get("LIVEEDIT_GATE") == "all" else SOME


@pytest.fixture(scope="module")
def case_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundles of cases, exported once; cases of one model, stream and networks share theirs."""
    written: dict[object, Path] = {}

    def bundle(name: str) -> Path:
        case = CASES[name]
        key = (case.model, case.stream, case.networks)
        if key not in written:
            written[key] = write_case(case, tmp_path_factory.mktemp("gate") / "bundle")
        return written[key]

    return bundle


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), RUN)
def test_plans_hold_what_their_graphs_promise(case_bundle: Bundle, name: str, target: str) -> None:
    case, root = CASES[name], case_bundle(name)
    results = run_case(case, root, target)
    assert {r.graph: r.plan.findings for r in results} == {r.graph: () for r in results}
    assert [r.unused_inputs for r in results] == [()] * len(results)
    plans = {r.graph: r for r in results}
    assert set(plans) == set(read_manifest(root).graphs["fp16"])
    for r in results:
        assert len(r.facts.attentions) <= r.count("attention")
        assert abs(r.table.weights_bytes - r.facts.weights_bytes) < 2**19 + (
            0.06 * r.facts.weights_bytes
        )
    if "dit_step" in plans:
        assert_step(root, plans["dit_step"], plugins=case.plugins)
        assert plans["prompt"].count("attention") == plans["prompt"].count("plugin") == 0
    if "text_encoder" in plans:
        layers = read_manifest(root).model.text.num_layers
        assert len(plans["text_encoder"].facts.softmaxes) == layers
        assert plans["text_encoder"].facts.attentions == ()
    if name == "wan-vae":
        assert set(plans) == {"encode_first", "encode_next", "decode_first", "decode_next"}
        for r in results:  # one head as wide as the network: written out, see the reference
            assert (len(r.facts.softmaxes), r.facts.attentions) == (1, ())
            assert r.count("conv") > 20
    if case.model is None:
        assert set(plans) == SHIPPED
        report = next(r for r in describe_plans(root) if target in r.targets)
        assert [plan.graph for plan in report.plans] == sorted(SHIPPED)
        assert all(plan.num_layers for plan in report.plans)
        assert any("no GPU here" in line for line in report.refusals) or not report.refusals


def assert_step(root: Path, step: GateResult, *, plugins: bool) -> None:
    """One fused attention per attention, q, k and v merged, plugin layers, predicted memory."""
    manifest = read_manifest(root)
    blocks, facts = manifest.model.dit.num_layers, step.facts
    assert len(facts.attentions) == step.count("attention") == 2 * blocks
    assert sum(a.lengths == "kv_length" for a in facts.attentions) == blocks
    assert sum(len(group) == 3 for a in facts.attentions for group in a.projections) == blocks
    merged = [
        layer
        for layer in step.table.profile(0)
        if layer.cls == "gemm"
        and sum(f".self_attn.{n}/MatMul" in "".join(layer.onnx) for n in "qkv") == 3
    ]
    assert len(merged) == blocks
    assert {name: len(nodes) for name, nodes in facts.plugins.items()} == {
        "MaskCacheGather": blocks,
        "MaskCacheScatter": blocks,
    }
    assert step.count("plugin") == (2 * blocks if plugins else 0)
    assert step.conversions <= 1
    limits = Limits(activation_bytes=step_activation_bound(manifest.model.dit, manifest.stream))
    assert findings(facts, step.table, plugins=plugins, limits=limits) == []


def test_every_case_and_every_gpu_is_run() -> None:
    assert {case for case, _ in SOME} == set(CASES) - {"shipped-native"}
    assert {target for _, target in SOME} == set(TARGETS)


@pytest.mark.slow
def test_the_matrix_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["gate_matrix", "--case", "text-encoder", "--target", "sm86", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    assert "text-encoder sm86: text_encoder: no findings" in capsys.readouterr().out
    record = read_record(tmp_path / "gate-text-encoder.json")
    assert record.figures["sm86.findings"].value == 0
    monkeypatch.setattr("sys.argv", [*command[:3], "--target", "sm90"])
    assert main() == 2
    assert "sm90" in capsys.readouterr().err
