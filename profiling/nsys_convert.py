"""An export of Nsight Systems as what people read: tables, one JSON file and a timeline page."""

from __future__ import annotations

import json
from pathlib import Path

from liveedit.bundle import write_atomic
from liveedit.profiling.nsys_report import Report, analyse, as_dict
from liveedit.profiling.nsys_trace import read_trace
from liveedit.profiling.timeline import page


def convert(database: Path, out: Path) -> Report:
    """Write ``out.json`` and ``out.html`` of an SQLite export.

    Raises:
        UsageError: no such file, not an export, or nothing was captured.
    """
    trace = read_trace(database)
    report = analyse(trace)
    write_atomic(Path(f"{out}.json"), json.dumps(as_dict(report), indent=1).encode() + b"\n")
    write_atomic(Path(f"{out}.html"), page(trace, report).encode())
    return report
