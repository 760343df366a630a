"""A quantised bundle's report as records, and the order in which two precisions are timed."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from liveedit.config import to_dict
from liveedit.engines import flavour as flavours
from liveedit.engines import gpu
from liveedit.errors import BackendError, UsageError
from liveedit.evaluation.known_edits import EditScore
from liveedit.export.drift import Drift
from liveedit.export.edit_quality import Quality
from liveedit.export.verdict import Limits, Speed, reach
from liveedit.profiling import precision_speed
from liveedit.profiling.doc_tables import fill
from liveedit.profiling.quantize_record import quantize_records, write_quantize_records
from liveedit.profiling.records import read_record


def report() -> dict[str, object]:
    base = EditScore(
        named_colour=True, followed=None, region_db=20.0, region_ssim=0.8, background_db=None,
        background_ssim=None,
    )  # fmt: skip
    worse = EditScore(
        named_colour=False, followed=None, region_db=19.8, region_ssim=0.8, background_db=None,
        background_ssim=None,
    )  # fmt: skip
    quality = Quality(
        clip="c", mask_cache="off", agreement_db=40, edited_db=30, edited_ssim=1,
        background_db=None, background_loss_db=None, base=base, quantised=worse,
    )  # fmt: skip
    steady = tuple([19.0, *(20.0 + i % 2 for i in range(9))])
    drift = Drift(
        clip="c", mask_cache="released", chunks=10, period=2, base=steady,
        quantised=(*steady[:8], 19.0, 20.0),
    )  # fmt: skip
    verdict = reach(Limits(), [quality], drift, Speed(base_fps=10, quantised_fps=12))
    return {
        "format": "int8", "base": "fp16", "layers": ["blocks.0.ffn.0"],
        "left_out": ["blocks.0.ffn.2"], "weights_ratio": 0.57,
        "sensitivity": [
            {"layer": "blocks.0.ffn.2", "edited_db": 30.0},
            {"layer": "blocks.0.ffn.0", "edited_db": 50.0},
        ],
        "verdict": to_dict(verdict),
        "calibration": {"stream": {}, "graph": {}, "clips": {"a": "b"}, "passes": 10},
    }  # fmt: skip


def test_a_report_becomes_two_records(tmp_path: Path) -> None:
    records = quantize_records(report(), "tiny", "generated", "liveedit quantize")
    paths = write_quantize_records(tmp_path, records)
    assert [p.name for p in paths] == [
        "quantize-tiny-int8-from-fp16.json",
        "sensitivity-tiny-int8-from-fp16.json",
    ]
    verdict, ranked = (read_record(p) for p in paths)
    values = {name: figure.value for name, figure in verdict.figures.items()}
    assert values["region_db.loss"] == pytest.approx(0.2)
    assert values["named_colour.loss"] == 100
    assert values["drift.base_chunk_2"] == values["drift.base_last"] == 20
    assert values["drift.quantised_last"] == 20
    assert values["drift.excess"] == pytest.approx(1.0)
    assert values["fps.quantised"] == 12
    assert "background_db.loss" not in values
    assert any("refused: " in note and "over 10 chunks" in note for note in verdict.notes)
    assert ranked.figures["blocks.0.ffn.2"].value == 30


def test_figures_of_one_record_are_listed() -> None:
    records = quantize_records(report(), "tiny", "generated", "liveedit quantize")
    text = "<!-- figures: sensitivity/tiny-int8-from-fp16 lowest=1 -->\nold\n<!-- end -->\n"
    filled = fill(text, records)
    assert "old" not in filled
    assert "| blocks.0.ffn.2 | 30 dB | 1 |" in filled
    assert "blocks.0.ffn.0" not in filled
    named = fill(text.replace("lowest=1", "blocks.0.ffn.0"), records)
    assert "| blocks.0.ffn.0 | 50 dB | 1 |" in named
    assert "not measured yet" in fill(text, [])
    with pytest.raises(UsageError, match="has no figure of"):
        fill(text.replace("lowest=1", "head"), records)


def test_speed_is_measured_there_and_back() -> None:
    rates, order = iter([10.0, 12.0, 14.0, 12.0]), []

    def run(precision: str) -> float:
        order.append(precision)
        return next(rates)

    assert precision_speed.compare_speed("fp16", "int8", run) == (11.0, 13.0)
    assert order == ["fp16", "int8", "int8", "fp16"]


def test_speed_is_asked_of_the_flavour_that_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(capability: str | None, *modules: str) -> None:
        monkeypatch.setattr(gpu, "compute_capability", lambda: capability)
        monkeypatch.setattr(flavours, "installed", lambda f: f.module in modules)

    monkeypatch.setattr(flavours, "load", lambda f: None)
    here(None, "tensorrt")
    assert precision_speed.gpu_flavour("int8") == ("", "no GPU on this machine")
    here("sm89")
    assert "neither TensorRT nor TensorRT-RTX" in precision_speed.gpu_flavour("int8")[1]
    here("sm90", "tensorrt_rtx")
    assert "does not build for sm90" in precision_speed.gpu_flavour("int8")[1]
    here("sm86", "tensorrt_rtx")
    assert "no FP8 matrix products" in precision_speed.gpu_flavour("fp8")[1]
    device = MagicMock(side_effect=BackendError("no kernels"))
    monkeypatch.setattr(precision_speed, "CudaDevice", device)
    assert precision_speed.gpu_flavour("int8") == ("", "no kernels")
    device.side_effect = None
    assert precision_speed.gpu_flavour("int8") == ("tensorrt-rtx", "")
    here("sm90", "tensorrt_rtx", "tensorrt")
    assert precision_speed.gpu_flavour("fp8") == ("tensorrt", "")
