"""Tables in the docs are what the committed records say."""

from pathlib import Path

import pytest

from liveedit.cli import main
from liveedit.errors import UsageError
from liveedit.profiling.build_record import build_name
from liveedit.profiling.doc_tables import NOT_MEASURED, fill, fill_file
from liveedit.profiling.records import (
    Figure,
    distribution,
    new_record,
    read_folder,
    read_record,
    single,
    write_record,
)

ROOT = Path(__file__).parents[2]


def test_committed_documents_are_up_to_date() -> None:
    records = read_folder(ROOT / "profiling/records")
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    marked = [p for p in documents if p.is_file() and "<!-- end -->" in p.read_text()]
    assert marked
    for path in marked:
        assert fill(path.read_text(), records) == path.read_text(), f"liveedit bench tables {path}"


def test_tables_come_from_records(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("before\n<!-- records: bench fps -->\nold\n<!-- end -->\nafter\n")
    assert fill_file(document, [])
    assert NOT_MEASURED in document.read_text()
    figures = {"fps": distribution([9, 10, 11], "frame/s", "higher"), "x": single(1, "ms")}
    record = new_record("bench", "case", "liveedit bench", {}, figures)
    assert fill_file(document, [record])
    lines = document.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines[2].startswith("| case | machine | fps, frame/s |")
    assert "| case |" in lines[4]
    assert "10 (p99 11)" in lines[4]
    assert not fill_file(document, [record])
    with pytest.raises(UsageError, match="no figure 'speed'"):
        fill("<!-- records: bench speed -->\n<!-- end -->", [record])


def test_every_build_is_called_as_its_file() -> None:
    for path in (ROOT / "profiling/records").glob("build-*.json"):
        assert path.stem == f"build-{build_name(read_record(path))}"


def test_bytes_are_shown_in_mib() -> None:
    record = new_record("kernels", "case", "c", {}, {"plan": single(3 * 2**20, "bytes")})
    lines = fill("<!-- records: kernels plan -->\n<!-- end -->", [record]).splitlines()
    assert "plan, MiB" in lines[1]
    assert "| 3 |" in lines[3]


def test_groups_are_rows() -> None:
    figures = {
        "psnr": single(1, "dB"),
        "box.psnr": Figure(value=2, unit="dB", count=7),
        "box.right": Figure(value=50, unit="%", count=4),
        "ball.psnr": Figure(value=3, unit="dB", count=5),
    }
    record = new_record("quality", "case", "c", {}, figures)
    marked = "<!-- groups: quality/case {} -->\n<!-- end -->"
    lines = fill(marked.format("right psnr"), [record]).splitlines()
    assert lines[1] == "| group | right, % | psnr, dB | of |"
    assert lines[3:5] == ["| box | 50 | 2 | 7 |", "| ball | - | 3 | 5 |"]
    with pytest.raises(UsageError, match=r"no figure GROUP\.speed"):
        fill(marked.format("psnr speed"), [record])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, folder = tmp_path / "a.md", tmp_path / "records"
    document.write_text("<!-- records: bench fps -->\n<!-- end -->\n")
    folder.mkdir()
    write_record(
        folder / "r.json", new_record("bench", "case", "c", {}, {"fps": single(3, "frame/s")})
    )
    args = ["bench", "tables", str(document), "--records", str(folder)]
    assert main([*args, "--check"]) == 2
    assert "out of date" in capsys.readouterr().err
    assert main(args) == 0
    assert main([*args, "--check"]) == 0
