"""Records: the one form in which a measurement is kept.

A record is a JSON file: what was measured, where, with which command and configuration, and its
figures. The bench, the GPU suite and the tables in the docs all use it. A record is only read if it
has every field and no other; two records are only compared if they measured the same thing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from liveedit.bundle import write_atomic
from liveedit.config import from_dict, to_dict
from liveedit.errors import UsageError
from liveedit.profiling.environment import Environment, read_environment

SCHEMA_VERSION = 1
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number with its unit. A distribution also has its size and percentiles.

    ``value`` is the number to quote: the median of a distribution. ``spread`` is half the width of
    the middle half of the samples: the noise a comparison must exceed.
    """

    value: float
    unit: str
    better: Better = "neither"
    count: int = 1
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "p50", "p95", "p99", "spread"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise UsageError(f"figure {name} is {number}; only finite numbers are recorded")
        if self.count < 1:
            raise UsageError(f"figure count is {self.count}; at least one sample is needed")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One part of one measurement session."""

    schema: int = SCHEMA_VERSION
    kind: str  # bench, soak, kernels, reference, ...
    part: str  # which case of that kind
    made_at: str  # UTC, ISO 8601
    command: str
    environment: Environment
    configuration: dict[str, Any]  # what was asked for; decides comparability
    figures: dict[str, Figure]
    notes: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.figures:
            raise UsageError(f"record {self.kind}/{self.part} has no figures")
        try:
            datetime.fromisoformat(self.made_at)
        except ValueError:
            raise UsageError(f"record made_at {self.made_at!r} is not an ISO 8601 time") from None


def new_record(
    kind: str,
    part: str,
    command: str,
    configuration: dict[str, Any],
    figures: dict[str, Figure],
    *,
    notes: Sequence[str] = (),
    environment: Environment | None = None,
) -> Record:
    """A record of now and here."""
    return Record(
        kind=kind,
        part=part,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        environment=environment or read_environment(),
        configuration=configuration,
        figures=figures,
        notes=tuple(notes),
    )


def single(value: float, unit: str, better: Better = "neither") -> Figure:
    """A figure that is one number."""
    return Figure(value=float(value), unit=unit, better=better)


def distribution(samples: Sequence[float], unit: str, better: Better = "neither") -> Figure:
    """A figure from samples: median, p95, p99, and half the interquartile range as noise.

    Raises:
        UsageError: no samples, or one that is not finite.
    """
    if not len(samples):
        raise UsageError("a distribution needs at least one sample")
    array = np.asarray(samples, dtype=np.float64)
    low, p50, high, p95, p99 = (float(x) for x in np.percentile(array, [25, 50, 75, 95, 99]))
    return Figure(
        value=p50,
        unit=unit,
        better=better,
        count=len(array),
        p50=p50,
        p95=p95,
        p99=p99,
        spread=(high - low) / 2,
    )


def write_record(path: Path, record: Record) -> Path:
    """Write a record, whole or not at all."""
    text = json.dumps(to_dict(record), indent=1, sort_keys=True, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")
    return path


def read_record(path: Path) -> Record:
    """Read and check a record.

    Raises:
        UsageError: missing, not JSON, of another schema, or a field is wrong; the sentence names
            the file and the field.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"record {path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"record {path} is not an object; make it with: liveedit bench --out")
    if data.get("schema") != SCHEMA_VERSION:
        raise UsageError(
            f"record {path} has schema {data.get('schema')!r}; this version reads {SCHEMA_VERSION}"
        )
    try:
        return from_dict(Record, data, "record")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def read_folder(folder: Path) -> list[Record]:
    """All records of a folder, by kind, part and time.

    Raises:
        UsageError: the folder is missing, or one of its files is not a record.
    """
    if not folder.is_dir():
        raise UsageError(f"no records folder at {folder}")
    records = [read_record(p) for p in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda r: (r.kind, r.part, r.made_at))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure in two records. ``noise`` is the larger of both spreads."""

    name: str
    unit: str
    old: float
    new: float
    noise: float
    verdict: Literal["better", "worse", "changed", "same"]

    @property
    def ratio(self) -> float:
        return self.new / self.old if self.old else math.inf


def check_comparable(old: Record, new: Record) -> None:
    """Two records compare if they measured the same part on the same kind of machine.

    Raises:
        UsageError: names the first field that differs, with both values.
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("kind", old.kind, new.kind),
        ("part", old.part, new.part),
        ("environment.cpu", old.environment.cpu, new.environment.cpu),
        ("environment.cpu_cores", old.environment.cpu_cores, new.environment.cpu_cores),
        ("environment.threads", old.environment.threads, new.environment.threads),
        (
            "environment.gpus",
            [g.name for g in old.environment.gpus],
            [g.name for g in new.environment.gpus],
        ),
    ]
    for key in sorted({*old.configuration, *new.configuration}):
        pairs.append(
            (f"configuration.{key}", old.configuration.get(key), new.configuration.get(key))
        )
    for name, a, b in pairs:
        if a != b:
            raise UsageError(
                f"the records cannot be compared: {name} is {a!r} in the old one and {b!r} in the "
                "new one"
            )


def compare(old: Record, new: Record) -> list[Change]:
    """What changed, figure by figure, and whether by more than the noise.

    Raises:
        UsageError: the records are not comparable, or a figure changed its unit.
    """
    check_comparable(old, new)
    changes = []
    for name in old.figures:
        if name not in new.figures:
            continue
        a, b = old.figures[name], new.figures[name]
        if a.unit != b.unit:
            raise UsageError(
                f"the records cannot be compared: figures.{name}.unit is {a.unit!r} in the old one "
                f"and {b.unit!r} in the new one"
            )
        noise = max(a.spread or 0.0, b.spread or 0.0)
        changes.append(
            Change(
                name=name,
                unit=a.unit,
                old=a.value,
                new=b.value,
                noise=noise,
                verdict=_verdict(a, b, noise),
            )
        )
    return changes


def _verdict(a: Figure, b: Figure, noise: float) -> Literal["better", "worse", "changed", "same"]:
    if abs(b.value - a.value) <= noise:
        return "same"
    if a.better == "neither":
        return "changed"
    return "better" if (b.value > a.value) == (a.better == "higher") else "worse"
