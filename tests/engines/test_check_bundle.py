from __future__ import annotations

from pathlib import Path

import pytest
from engine_bundles import write_bundle
from engine_graphs import step_model

from liveedit.cli import main

pytestmark = pytest.mark.builder
pytest.importorskip("tensorrt_rtx")
pytest.importorskip("polygraphy")


def check(root: Path) -> int:
    return main(["build", str(root), "--check", "--flavour", "tensorrt-rtx"])


def test_a_supported_graph_is_reported(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(bundle) == 0
    assert capfd.readouterr().err.strip() == "dit_step: supported"
    assert not (bundle / "engines").exists()


def test_a_refused_node_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = step_model(blocks=1)
    model.graph.node[0].domain, model.graph.node[0].op_type = "liveedit", "NoSuchOperator"
    assert check(write_bundle(tmp_path, {"dit_step": model})) == 1
    said = capfd.readouterr().err
    assert "NoSuchOperator" in said
    assert "tensorrt-rtx refuses nodes of dit_step" in said
