"""Finding nsys, its version and its command line, with a stand-in program."""

import json
from pathlib import Path

import pytest
from nsys_capture import fake_nsys, stream_capture

from liveedit.cli import main
from liveedit.errors import LiveEditError, UsageError
from liveedit.profiling import nsys_run


def test_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NSYS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nsys_run, "_PLACES", ())
    with pytest.raises(UsageError, match=r"was not found.*nsight-systems-cli"):
        nsys_run.find_nsys()
    monkeypatch.setenv("NSYS", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="not a program"):
        nsys_run.find_nsys()


def test_too_old(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"version 2021\.5; at least 2022\.4"):
        nsys_run.check_version(fake_nsys(tmp_path, "2021.5.1.77"))
    assert nsys_run.check_version(fake_nsys(tmp_path)) == (2025, 3)


def test_command_line_captures_the_steady_state_only(tmp_path: Path) -> None:
    line = nsys_run.command_line(Path("nsys"), tmp_path / "x", ["bench"])
    assert "--cuda-graph-trace=node" in line
    assert "--nvtx-capture=steady@liveedit" in line
    assert line[-3:] == ["-m", "liveedit", "bench"]
    every = nsys_run.command_line(Path("nsys"), tmp_path / "x", ["edit"], capture="all")
    assert not any(a.startswith(("--capture", "--nvtx-capture")) for a in every)


def test_empty_capture_and_failing_program(tmp_path: Path) -> None:
    (tmp_path / "x.nsys-rep").write_text("of an earlier run")
    with pytest.raises(LiveEditError, match=r"captured nothing.*--capture all"):
        nsys_run.profile(fake_nsys(tmp_path, profile="pass"), tmp_path / "x", ["bench"])
    with pytest.raises(LiveEditError, match=r"failed under nsys \(3\)"):
        nsys_run.profile(fake_nsys(tmp_path, profile="pass", code=3), tmp_path / "x", ["bench"])


def test_what_a_failing_program_left_is_shown_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream_capture(tmp_path / "made.sqlite")
    database = nsys_run.profile(fake_nsys(tmp_path, code=3), tmp_path / "x", ["bench"])
    assert database.is_file()
    assert "failed under nsys (3); this is what was captured" in capsys.readouterr().err


def test_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream_capture(tmp_path / "made.sqlite")
    monkeypatch.setenv("NSYS", str(fake_nsys(tmp_path)))
    prefix = tmp_path / "deep" / "run"
    assert main(["profile", "nsys", "-o", str(prefix), "--", "bench", "--chunks", "4"]) == 0
    assert "pruned pass" in capsys.readouterr().out
    assert json.loads(prefix.with_suffix(".json").read_text())["chunks"] == 3
    assert prefix.with_suffix(".html").stat().st_size > 10_000
    assert main(["profile", "nsys", "--print-command", "--", "bench", "--chunks", "4"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("liveedit bench --chunks 4")
    assert main(["profile", "nsys", "--from", str(tmp_path / "none")]) == 2
