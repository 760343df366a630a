"""The record schema: round trip, refusal by field name, comparison beyond noise."""

import dataclasses
import json
from pathlib import Path

import pytest

from liveedit.errors import UsageError
from liveedit.profiling.environment import read_environment
from liveedit.profiling.records import (
    Figure,
    Record,
    compare,
    distribution,
    new_record,
    read_folder,
    read_record,
    single,
    write_record,
)

ENVIRONMENT = read_environment()


def record(**figures: Figure) -> Record:
    return new_record(
        "bench",
        "tiny",
        "liveedit bench --chunks 8",
        {"backend": "onnxruntime-cpu", "window": 12, "keep": [0.3, 1.0]},
        figures or {"fps": distribution([9.0, 10.0, 11.0, 10.0], "frame/s", "higher")},
        environment=ENVIRONMENT,
    )


def test_round_trip(tmp_path: Path) -> None:
    made = record()
    path = write_record(tmp_path / "a.json", made)
    assert read_record(path) == made
    assert read_folder(tmp_path) == [made]


def test_distribution() -> None:
    figure = distribution(list(range(101)), "ms", "lower")
    assert (figure.value, figure.p50, figure.p95, figure.p99) == (50, 50, 95, 99)
    assert figure.count == 101
    assert figure.spread == 25
    with pytest.raises(UsageError, match="at least one"):
        distribution([], "ms")
    with pytest.raises(UsageError, match="finite"):
        distribution([1.0, float("nan")], "ms")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"schema": 7}, "has schema 7"),
        ({"schema": None}, "has schema None"),
        ({"command": 3}, r"record\.command: expected str"),
        ({"surplus": 1}, "unknown key 'surplus'"),
        ({"figures": {}}, "no figures"),
        ({"figures": {"fps": {"value": "fast", "unit": "x"}}}, r"figures\.fps\.value"),
        ({"figures": {"fps": {"value": 1, "unit": "x", "better": "red"}}}, "better: 'red'"),
        ({"figures": {"fps": {"value": 1, "unit": "x", "count": 0}}}, "count is 0"),
        ({"made_at": "yesterday"}, "ISO 8601"),
        ({"environment": {}}, r"record\.environment: missing key"),
    ],
)
def test_unreadable_record_names_the_field(
    tmp_path: Path, edit: dict[str, object], message: str
) -> None:
    path = write_record(tmp_path / "a.json", record())
    data = {**json.loads(path.read_text()), **edit}
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=message) as caught:
        read_record(path)
    assert "a.json" in str(caught.value)


def test_not_a_record(tmp_path: Path) -> None:
    for text in ("{", "[1]", ""):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UsageError, match=r"a\.json"):
            read_record(tmp_path / "a.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_record(tmp_path / "none.json")
    with pytest.raises(UsageError, match="no records folder"):
        read_folder(tmp_path / "none")


def test_compare() -> None:
    old = record(
        fps=distribution([9.5, 10, 10, 10.5], "frame/s", "higher"),
        latency=distribution([100, 101, 102, 103], "ms", "lower"),
        memory=single(100, "MB"),
        gone=single(1, "MB"),
    )
    new = record(
        fps=distribution([11.5, 12, 12, 12.5], "frame/s", "higher"),
        latency=distribution([100, 101, 103, 104], "ms", "lower"),
        memory=single(101, "MB"),
    )
    got = {c.name: c for c in compare(old, new)}
    assert {n: c.verdict for n, c in got.items()} == {
        "fps": "better",
        "latency": "same",
        "memory": "changed",
    }
    assert got["fps"].ratio == pytest.approx(1.2)
    assert compare(new, old)[0].verdict == "worse"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": "large"}, "part is 'tiny' in the old one and 'large' in the new one"),
        ({"configuration": {"backend": "null"}}, r"configuration\.backend"),
        (
            {"environment": dataclasses.replace(ENVIRONMENT, cpu="Abacus")},
            r"environment\.cpu is .* 'Abacus'",
        ),
        ({"figures": {"fps": single(1, "chunk/s")}}, r"figures\.fps\.unit"),
    ],
)
def test_records_that_cannot_be_compared(change: dict[str, object], message: str) -> None:
    old = record()
    with pytest.raises(UsageError, match=message):
        compare(old, dataclasses.replace(old, **change))


def test_environment_is_described() -> None:
    assert ENVIRONMENT.cpu
    assert ENVIRONMENT.cpu_cores >= 1
    assert "numpy" in ENVIRONMENT.packages
