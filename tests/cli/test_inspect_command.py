"""``liveedit inspect``: both forms, and the memory budget against a count by hand."""

from __future__ import annotations

import json

import pytest
from bundle_factory import make_manifest, micro_model, micro_stream

from liveedit.bundle import read_manifest
from liveedit.cli import main
from liveedit.runtime import MaskCachePolicy, StreamEditor
from liveedit.runtime.memory_budget import memory_budget
from liveedit.runtime.null_backend import NullBackend


def test_json_and_table_agree(bundle, capsys):
    assert main(["inspect", str(bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(bundle), "--verify"]) == 0
    table = capsys.readouterr().out
    assert facts["model"] == "micro"
    assert facts["frame"] == {"height_px": 32, "width_px": 48}
    assert [s["timestep"] for s in facts["steps"]] == [1000, 750, 500, 250]
    assert facts["total_bytes"] == sum(facts["files"].values())
    assert set(facts["graphs"]["fp32"]) >= {"dit_step", "prompt", "encode_next"}
    for text in ("48 x 32 px", "window  12", "1000, 750, 500, 250", "taehv", "dit_step.onnx"):
        assert text in table


def test_a_changed_file_is_found_with_verify(bundle, capsys):
    (bundle / "fp32" / "prompt.onnx").write_bytes(b"other")
    assert main(["inspect", str(bundle)]) == 0
    assert main(["inspect", str(bundle), "--verify"]) == 1
    assert "prompt.onnx has 5 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["taehv", "wan_vae"])
def test_memory_budget_equals_what_the_editor_allocates(tmp_path, codec):
    manifest = make_manifest(tmp_path, codec=codec)
    backend = NullBackend()
    StreamEditor(
        tmp_path, manifest, backend, precision="fp32", mask_cache=MaskCachePolicy()
    ).close()
    budget = memory_budget(manifest, "fp32")
    assert sum(budget.values()) == sum(backend.sizes.values())


def test_memory_budget_by_hand(bundle):
    model, stream = micro_model("taehv"), micro_stream()
    dit, budget = model.dit, memory_budget(read_manifest(bundle), "fp32")
    kv = dit.num_heads * stream.kv_cache_length * dit.head_dim
    assert budget["kv_cache"] == 4 * dit.num_layers * 2 * kv
    assert budget["stored_outputs"] == 4 * dit.num_layers * stream.block_seq_length * dit.dim
    one_latent = 16 * stream.latent_height * stream.latent_width
    picture = 3 * stream.height_px * stream.width_px
    assert budget["codec_caches"] == 4 * 2 * (picture + one_latent)  # two sets
    graphs = (bundle / "fp32").iterdir()
    assert budget["weights"] == sum(p.stat().st_size for p in graphs)
