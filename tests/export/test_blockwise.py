"""Calibration one block at a time against calibration of the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from noise_clips import noise_clips

from liveedit.bundle import read_manifest
from liveedit.errors import BackendError
from liveedit.export import blockwise
from liveedit.export.blockwise import calibrate_blocks
from liveedit.export.calibration import calibrate, load_statistics, save_statistics
from liveedit.export.graph_trial import load_step
from liveedit.export.stages import Stage, cut
from liveedit.export.weights import half_storage


@pytest.mark.parametrize("halved", [False, True])
def test_parts_hold_one_block_each(micro_bundle: Path, halved: bool) -> None:
    model = load_step(micro_bundle, read_manifest(micro_bundle), "fp32")
    if halved:
        half_storage(model)
    whole = ir.to_proto(model).graph
    stages = cut(model)
    assert [s.name for s in stages] == ["part 0", "part 1", "part 2", "part 3"]
    parts = [onnx.load_from_string(s.model).graph for s in stages]
    assert sorted(n.name for p in parts for n in p.node) == sorted(n.name for n in whole.node)
    for part, prefix in zip(parts[1:3], ("blocks.0.", "blocks.1."), strict=True):
        large = [t.name for t in part.initializer if np.prod(t.dims) > 1024]
        assert large
        assert all(name.startswith(prefix) for name in large)
    outputs = [o.name for p in parts for o in p.output]
    assert {o.name for o in whole.output} <= set(outputs)


def test_statistics_equal_those_of_the_whole_model(micro_bundle: Path, tmp_path: Path) -> None:
    """But for rounding: two clips of unequal length, all passes, a full window, both modes.

    ONNX Runtime fuses an addition with the norm behind it unless a cut lies between them.
    """
    manifest, data, shown = read_manifest(micro_bundle), noise_clips(48, 24), []
    whole = calibrate(micro_bundle, manifest, "fp32", data, threads=1)
    parts = calibrate_blocks(
        micro_bundle, manifest, "fp32", data, side_by_side=3, threads=1, progress=shown.append
    )
    assert parts.origin == whole.origin
    assert parts.origin.passes == 2 * (5 + 3) * 5
    assert list(parts.tensors) == list(whole.tensors)
    for name, known in whole.tensors.items():
        bound = 1e-5 * float(known.amax.max())
        np.testing.assert_allclose(parts.tensors[name].amax, known.amax, rtol=0, atol=bound)
        np.testing.assert_allclose(parts.tensors[name].rows, known.rows, rtol=0, atol=bound)
    # Two groups, of three streams and of one: 5 and 3 chunks of 5 passes, in 4 parts each, after
    # a text encoder of 3 parts and a prompt graph of 3.
    assert shown[-1] == f"{(25 + 15) * 4 + 2 * (3 + 3)} loads of a part, 80 passes"
    save_statistics(tmp_path / "ranges.npz", parts)
    assert load_statistics(tmp_path / "ranges.npz", manifest, "fp32").origin == whole.origin


def test_a_stream_that_fails_ends_the_others(
    micro_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(micro_bundle)
    data = noise_clips(48, 48)
    data[1] = replace(data[1], prompt="")
    with pytest.raises(Exception, match="prompt"):
        calibrate_blocks(micro_bundle, manifest, "fp32", data, side_by_side=4, threads=1)
    good = blockwise.cut

    def broken(model: ir.Model) -> list[Stage]:
        stages = good(model)
        return [*stages[:2], replace(stages[2], model=stages[2].model[:-40]), *stages[3:]]

    monkeypatch.setattr(blockwise, "cut", broken)
    with pytest.raises(BackendError, match="cannot run part 2 of text_encoder"):
        calibrate_blocks(micro_bundle, manifest, "fp32", noise_clips(48), threads=1)
