"""Tables in the docs, written from committed records and never by hand.

A document marks a table with ``<!-- records: KIND -->`` and ``<!-- end -->``; what stands between
is replaced. Without a record of that kind it says "not measured yet". With figures named after the
kind, each record is a row and each figure a column. ``<!-- figures: KIND/PART PREFIX ... -->``
lists the figures of one record whose names begin with one of the prefixes (all without one), a row
each; ``lowest=N`` among the prefixes lists only the N lowest, in that order.
``<!-- groups: KIND/PART FIGURE ... -->`` is for one record whose figures are named GROUP.FIGURE: a
row per group, a column per figure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from liveedit.errors import UsageError
from liveedit.profiling.build_record import build_name
from liveedit.profiling.records import Figure, Record
from liveedit.profiling.text_table import markdown_table

_BLOCK = re.compile(
    r"(<!-- records: (?P<kind>[\w-]+)(?P<figures>(?: [\w.]+)*) -->\n).*?(<!-- end -->)", re.DOTALL
)
_FIGURES = re.compile(
    r"(<!-- figures: (?P<kind>[\w-]+)/(?P<part>[\w.-]+)(?P<words>(?: [\w.=]+)*) -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)
_GROUPS = re.compile(
    r"(<!-- groups: (?P<kind>[\w-]+)/(?P<part>[\w.-]+)(?P<figures>(?: \w+)+) -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)
_UNITS = {"bytes": "MiB"}  # as tables show them
NOT_MEASURED = "not measured yet"


def fill(text: str, records: Sequence[Record]) -> str:
    """The document with every marked table renewed.

    Raises:
        UsageError: a marker names a figure that a record of its kind lacks.
    """

    def renew(match: re.Match[str]) -> str:
        chosen = [r for r in records if r.kind == match["kind"]]
        body = _table(chosen, match["figures"].split()) if chosen else NOT_MEASURED
        return f"{match[1]}{body}\n{match[4]}"

    def of_one(match: re.Match[str], table: Callable[[Record], str]) -> str:
        chosen = [r for r in records if (r.kind, r.part) == (match["kind"], match["part"])]
        body = table(chosen[-1]) if chosen else NOT_MEASURED
        return f"{match[1]}{body}\n{match[5]}"

    def renew_figures(match: re.Match[str]) -> str:
        return of_one(match, lambda record: _list(record, match["words"].split()))

    def renew_groups(match: re.Match[str]) -> str:
        return of_one(match, lambda record: _groups(record, match["figures"].split()))

    text = _BLOCK.sub(renew, text)
    return _GROUPS.sub(renew_groups, _FIGURES.sub(renew_figures, text))


def fill_file(path: Path, records: Sequence[Record]) -> bool:
    """Renew a document in place. Returns whether it changed."""
    old = path.read_text()
    new = fill(old, records)
    if new != old:
        path.write_text(new)
    return new != old


def _table(records: Sequence[Record], names: Sequence[str]) -> str:
    rows = []
    for r in records:
        for name in names:
            if name not in r.figures:
                raise UsageError(f"record {r.kind}/{r.part} has no figure {name!r}")
        where = ", ".join(g.name for g in r.environment.gpus) or r.environment.cpu
        cells = [_cell(r.figures[n]) for n in names]
        case = build_name(r) if r.kind == "build" else r.part
        rows.append((case, where, *cells, r.made_at[:10], r.environment.commit))
    units = {n: _UNITS.get(unit := records[-1].figures[n].unit, unit) for n in names}
    head = ["case", "machine", *(f"{n.replace('_', ' ')}, {units[n]}" for n in names)]
    return markdown_table([*head, "date", "commit"], rows)


def _list(record: Record, words: Sequence[str]) -> str:
    """Figures of one record, a row each."""
    prefixes = tuple(w for w in words if not w.startswith("lowest="))
    lowest = next((int(w.removeprefix("lowest=")) for w in words if w not in prefixes), None)
    rows = [(n, f) for n, f in record.figures.items() if n.startswith(prefixes or ("",))]
    if not rows:
        raise UsageError(f"record {record.kind}/{record.part} has no figure of {list(prefixes)}")
    if lowest is not None:
        rows = sorted(rows, key=lambda row: row[1].value)[:lowest]
    cells = [(n, f"{f.value:.4g} {f.unit}", str(f.count)) for n, f in rows]
    return markdown_table(["figure", "value", "of"], cells)


def _groups(record: Record, names: Sequence[str]) -> str:
    """A group of figures per row; a group without one of them has a dash there."""
    dotted = [tuple(name.rsplit(".", 1)) for name in record.figures if "." in name]
    groups = dict.fromkeys(group for group, name in dotted if name in names)
    units = {name: record.figures[f"{group}.{name}"].unit for group, name in dotted}
    if absent := [name for name in names if name not in units]:
        raise UsageError(f"record {record.kind}/{record.part} has no figure GROUP.{absent[0]}")
    rows = []
    for group in groups:
        cells = [record.figures.get(f"{group}.{name}") for name in names]
        edits = max(figure.count for figure in cells if figure is not None)
        rows.append((group, *("-" if f is None else _cell(f) for f in cells), str(edits)))
    heads = (f"{n.replace('_', ' ')}, {_UNITS.get(units[n], units[n])}" for n in names)
    return markdown_table(["group", *heads, "of"], rows)


def _cell(figure: Figure) -> str:
    if figure.unit == "bytes":
        return f"{figure.value / 2**20:.0f}"
    text = f"{figure.value:.3g}"
    return text if figure.p99 is None else f"{text} (p99 {figure.p99:.3g})"
