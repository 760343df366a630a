"""Layer times as TensorRT reports them, into the table of a plan."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from test_layers import plan_file

from liveedit.cli import main
from liveedit.engines import plan_loader
from liveedit.engines.flavour import FLAVOURS
from liveedit.errors import UsageError
from liveedit.profiling.layer_profiler import LayerTimes, layer_profiler
from liveedit.runtime import cuda_device


class StandIn:
    """The base class of a library that is not here."""


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_reported_times_reach_the_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = ModuleType(FLAVOURS[name].module)
    library.IProfiler = StandIn  # type: ignore[attr-defined]
    times = LayerTimes()
    profiler = layer_profiler(library, times)
    assert isinstance(profiler, StandIn)
    profiler.report_layer_time("gemm_1", 100.0)  # a first run that loads kernels
    times.reset()
    for ms in (0.2, 0.4):
        profiler.report_layer_time("gemm_1", ms)
        profiler.report_layer_time("_gemm_mha_v2", 2 * ms)
    assert list(times.average_ms) == ["gemm_1", "_gemm_mha_v2"]
    path = times.write(tmp_path / "times.json")
    assert json.loads(path.read_text())[0] == {"count": 2}
    command = ["profile", "layers", "--plan", str(plan_file(tmp_path)), "--times", str(path)]
    assert main([*command, "--by", "class", "--gpu", "H200"]) == 0
    shown = capsys.readouterr().out
    assert "qkvo" in shown
    assert "0.600" in shown  # mean of 0.4 and 0.8 ms of attention


def test_the_real_library_takes_the_profiler() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    times = LayerTimes()
    profiler = layer_profiler(rtx, times)
    assert isinstance(profiler, rtx.IProfiler)
    profiler.report_layer_time("gemm_1", 0.25)
    assert times.average_ms == {"gemm_1": 0.25}


def test_nothing_reported_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="outside of CUDA graphs"):
        LayerTimes().write(tmp_path / "times.json")


def test_a_plan_is_measured_in_full_passes_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "layers", "--backend", "tensorrt-rtx", "--kept", "48"]) == 2
    assert "full passes of a bundle's own plan" in capsys.readouterr().err


def test_the_roofline_is_that_of_the_card_that_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Card:
        name = "NVIDIA Abacus 9000"

    monkeypatch.setattr(cuda_device, "CudaDevice", Card)
    command = ["profile", "layers", "--backend", "tensorrt-rtx"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "GPU 'NVIDIA Abacus 9000' is not in the table" in said
    assert "--gpu-peaks" in said
    # With its peaks given, the next thing missing is the plan.
    here = SimpleNamespace(flavour="tensorrt-rtx", compute_capability="sm90")
    monkeypatch.setattr(plan_loader, "environment", lambda flavour: here)
    assert main([*command, "--gpu-peaks", "100,200,1000"]) == 1
    assert "holds no fp32 plans. Run: liveedit build" in capsys.readouterr().err
