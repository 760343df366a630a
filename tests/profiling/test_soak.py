"""A long stream stays as it began, and a planted leak is caught."""

import subprocess
import sys
from pathlib import Path

import pytest

from liveedit.cli import main
from liveedit.errors import BackendError, UsageError
from liveedit.profiling.soak import soak


def passes(*options: str) -> str:
    """What the command says, in a process of its own.

    The heap that other tests leave behind moves by itself.
    """
    command = [sys.executable, "-m", "liveedit", "bench", "soak", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_thousand_chunks_of_the_loop(micro_bundle: Path) -> None:
    got = soak(micro_bundle, chunks=1000, backend="null", precision="fp32")
    assert got.failures() == []
    assert got.chunks == 1000
    assert got.calls["run dit_step"] == 5
    assert got.calls["bytes"] > 0
    assert "alloc" not in got.calls


@pytest.mark.slow
def test_a_thousand_chunks_of_a_real_stream(micro_bundle: Path) -> None:
    said = passes("--bundle", str(micro_bundle), "--precision=fp32", "--threads=1", "--chunks=1000")
    assert "passed" in said


def test_a_planted_leak_is_caught(
    micro_bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    got = soak(micro_bundle, chunks=300, backend="null", precision="fp32", leak_bytes=65536)
    (failure,) = got.failures()
    assert "memory grew" in failure
    assert got.rss_slope == pytest.approx(65536, rel=0.5)
    args = ["--bundle", str(micro_bundle), "--backend", "null",
            "--precision", "fp32", "--chunks=300", "--out", str(tmp_path / "s.json")]  # fmt: skip
    assert main(["bench", "soak", *args, "--plant-leak", "65536"]) == 1
    assert "FAILED: memory grew" in capsys.readouterr().out
    assert "passed" in passes(*args)
    assert (tmp_path / "s.json").is_file()


def test_bad_input(micro_bundle: Path) -> None:
    with pytest.raises(UsageError, match="--chunks or --minutes"):
        soak(micro_bundle)
    with pytest.raises(UsageError, match="at least 20 chunks"):
        soak(micro_bundle, chunks=3)
    with pytest.raises(BackendError, match="no backend 'abacus'"):
        soak(micro_bundle, chunks=30, backend="abacus")
