"""The table of a GPU suite's folder."""

from pathlib import Path

import pytest

from liveedit.profiling.gpu_summary import speedups, summary
from liveedit.profiling.records import Record, new_record, single, write_record

STREAM = {"denoising_step_list": [1000, 750, 500, 250], "num_frame_per_block": 3}


def record(part: str, **figures: float) -> Record:
    named = {n.replace("__", "."): single(v, "ms", "lower") for n, v in figures.items()}
    return new_record("gpu", part, "x", {"stream": STREAM}, named)


CODECS = record("codecs", wan_encode_ms_per_latent=4, wan_decode_ms_per_latent=6)
EDITOR = record("editor-w12-wan", tensorrt__off__chunk_ms=40, tensorrt__off__dit_ms=30)


def test_speed_over_pytorch_is_that_of_a_whole_chunk() -> None:
    eager, compiled = record("reference-eager", w12__pass_ms=10), record("reference-compile", x=1)
    eight = record("eight-bit-w12-wan", tensorrt__fp8__off__chunk_ms=20)
    assert list(speedups([CODECS, EDITOR, eager, compiled, eight])) == [
        ("editor-w12-wan", "tensorrt.over_torch_eager", pytest.approx(80 / 40)),
        ("eight-bit-w12-wan", "tensorrt.fp8.over_torch_eager", pytest.approx(80 / 20)),
    ]


def test_what_was_not_measured_is_not_compared() -> None:
    eager = record("reference-eager", w21__pass_ms=10)
    assert not list(speedups([EDITOR, record("reference-eager", w12__pass_ms=10)]))
    assert not list(speedups([CODECS, EDITOR, eager]))
    other = record("editor-w21-taehv", tensorrt__off__chunk_ms=40)
    assert not list(speedups([CODECS, other, eager]))


def test_the_table_ends_with_it(tmp_path: Path) -> None:
    for one in (CODECS, EDITOR, record("reference-eager", w12__pass_ms=10)):
        write_record(tmp_path / f"{one.part}.json", one)
    lines = summary(tmp_path).splitlines()
    assert lines[-1].split() == ["editor-w12-wan", "tensorrt.over_torch_eager", "2.00", "x"]
    assert any("wan_decode_ms_per_latent" in line for line in lines)
