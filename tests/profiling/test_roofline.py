"""The bounds against the published table of bounds, GPU names, and the command."""

import json

import pytest

from liveedit.cli import main
from liveedit.config import LIVEEDIT_1_3B, ModelConfig, StreamConfig, TAEHVConfig
from liveedit.errors import UsageError
from liveedit.profiling.accounting import MaskCache
from liveedit.profiling.gpus import GPUS, custom_gpu, find_gpu
from liveedit.profiling.roofline import bound

TAE = ModelConfig(name="tae", wan_vae=None, taehv=TAEHVConfig())
MASK = MaskCache(keep=0.3)
COLUMNS = [
    ("half", 21, LIVEEDIT_1_3B, None),
    ("half", 12, LIVEEDIT_1_3B, None),
    ("8bit", 21, LIVEEDIT_1_3B, None),
    ("8bit", 21, TAE, None),
    ("8bit", 12, LIVEEDIT_1_3B, MASK),
    ("8bit", 12, TAE, MASK),
]
TABLE = {  # bound and estimate per column
    "H200": [(44, 24), (56, 30), (69, 31), (109, 54), (93, 42), (180, 94)],
    "H100": [(43, 24), (55, 30), (68, 31), (106, 53), (91, 42), (172, 92)],
    "A100": [(14, 8), (18, 10), (22, 10), (35, 17), (30, 13), (58, 30)],
    "RTX 5090": [(9, 6), (12, 7), (21, 11), (45, 31), (26, 12), (73, 48)],
    "RTX 4090": [(7, 5), (9, 6), (17, 8), (35, 24), (20, 9), (55, 36)],
    "L4": [(5, 3), (7, 4), (8, 4), (13, 8), (11, 5), (20, 13)],
    "Jetson Thor": [(10, 6), (13, 7), (16, 9), (22, 15), (20, 11), (30, 22)],
    "AGX Orin 64": [(2, 1), (2, 1), (3, 2), (5, 3), (4, 2), (8, 5)],
}


@pytest.mark.parametrize("name", list(TABLE))
def test_bounds(name: str) -> None:
    # The published table states neither its memory traffic nor its small-card efficiencies.
    slack = 0.04 if GPUS[name].bandwidth_gbps > 1000 else 0.09
    for (precision, window, model, mask), (fps, estimate) in zip(COLUMNS, TABLE[name], strict=True):
        stream = StreamConfig(local_attn_size=window)
        got = bound(GPUS[name], model, stream, precision=precision, mask=mask)
        assert abs(got.bound_fps - fps) <= 0.5 + slack * fps
        assert abs(got.estimate_fps - estimate) <= 0.5 + slack * estimate
        assert got.estimate_fps < got.bound_fps < got.stage_fps("dit")


@pytest.mark.parametrize(
    ("name", "fps"),
    [("H200", 512), ("RTX 5090", 205), ("RTX 4090", 154), ("L4", 55), ("AGX Orin 64", 22)],
)
def test_bounds_at_320x576(name: str, fps: float) -> None:
    stream = StreamConfig(local_attn_size=12, height_px=320, width_px=576)
    got = bound(GPUS[name], TAE, stream, precision="8bit", mask=MASK)
    assert got.bound_fps == pytest.approx(fps, rel=0.03)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("5090", "RTX 5090"),
        ("thor", "Jetson Thor"),
    ],
)
def test_gpu_names(text: str, name: str) -> None:
    assert find_gpu(text).name == name


@pytest.mark.parametrize("text", ["GTX 9000", "", "A10", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_unknown_gpu_lists_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"not in the table.*H200.*AGX Orin 64"):
        find_gpu(text)


def test_custom_gpu() -> None:
    assert custom_gpu("989,1979,4800").bandwidth_gbps == 4800
    for text in ("989", "a,b,c", "1,2,-3", "nan,1,1"):
        with pytest.raises(UsageError, match="three positive numbers"):
            custom_gpu(text)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "roofline", "--gpu", "H200", "--window", "12", "--json"]) == 0
    out = capsys.readouterr().out
    assert "self_attention" in out
    data = json.loads(out.splitlines()[-1])
    assert data["gpu"] == "H200"
    assert data["window"] == 12
    assert data["bound_fps"] == pytest.approx(56, abs=0.5)

    assert main(["profile", "roofline", "--gpu", "Voodoo 2"]) == 2
    assert "Known: H200" in capsys.readouterr().err
    assert main(["profile", "roofline", "--window", "10"]) == 2
    assert "multiples of num_frame_per_block" in capsys.readouterr().err
    assert main(["profile", "roofline", "--keep", "1.5"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
