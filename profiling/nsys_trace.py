"""Reads the SQLite export of an Nsight Systems capture.

Only documented tables and columns are used; tables of features that were not traced may be absent.
Device work is tied to our NVTX ranges through the host call that launched it (same correlation
number), which also holds for the kernels of a replayed CUDA graph.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from liveedit.errors import UsageError
from liveedit.profiling.kernel_classes import KernelClass, kernel_class
from liveedit.profiling.nvtx_ranges import DOMAIN, parse_text

# Event types of NVTX_EVENTS.
_PUSH_POP, _START_END, _DOMAIN_CREATE = 59, 60, 75


@dataclass(frozen=True, slots=True)
class Range:
    """An NVTX range on a host thread. Times in ns from the start of the capture."""

    start: int
    end: int
    name: str
    fields: dict[str, str]
    thread: int
    parent: int  # index of the enclosing range, -1 at the top
    depth: int


@dataclass(frozen=True, slots=True)
class Activity:
    """A kernel, copy or memset on a device stream. ``range`` is the innermost range, or -1."""

    start: int
    end: int
    stream: int
    name: str
    kind: KernelClass
    bytes: int
    range: int
    launched: int  # when the host call began; -1 where it was not traced


@dataclass(frozen=True, slots=True)
class Call:
    """A CUDA API call on the host."""

    start: int
    end: int
    name: str
    thread: int
    range: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One capture, in time order."""

    device: str
    ranges: list[Range]
    activities: list[Activity]
    calls: list[Call] = field(default_factory=list)
    source: str = ""

    def enclosing(self, index: int, name: str) -> int:
        """The range called ``name`` that holds range ``index`` (itself included), or -1."""
        while index >= 0 and self.ranges[index].name != name:
            index = self.ranges[index].parent
        return index


def read_trace(path: Path, domain: str = DOMAIN) -> Trace:
    """Read an export made by ``nsys export --type sqlite``.

    Raises:
        UsageError: not such a file, or nothing was captured.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}; make it with: nsys export --type sqlite REPORT")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        return _read(connection, path, domain)
    except sqlite3.DatabaseError as error:
        raise UsageError(
            f"{path} cannot be read as an Nsight Systems SQLite export: {error}. Make it with: "
            "nsys export --type sqlite REPORT"
        ) from None
    finally:
        connection.close()


def _read(connection: sqlite3.Connection, path: Path, domain: str) -> Trace:
    tables = {r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    if "StringIds" not in tables:
        raise UsageError(
            f"{path} is not an Nsight Systems SQLite export: it has no table StringIds. Make it "
            "with: nsys export --type sqlite REPORT"
        )
    strings = dict(connection.execute("SELECT id, value FROM StringIds"))
    ranges = _ranges(connection, tables, strings, domain)
    work = list(_device_work(connection, tables, strings))
    if not work:
        raise UsageError(
            f"the capture in {path} is empty: it holds no GPU work. Trace CUDA "
            "(nsys --trace=cuda,nvtx) and see that the capture range is reached"
        )
    calls = list(_api_calls(connection, tables, strings))
    zero = min(w.start for w in work)
    zero = min([zero, *(r.start for r in ranges), *(c.start for c in calls)])
    ranges = [_shift_range(r, zero) for r in ranges]
    launches = {c.correlation: c for c in calls}
    inside = _innermost(ranges, [(c.thread, c.start - zero) for c in calls])
    at = {c.correlation: i for c, i in zip(calls, inside, strict=True)}
    activities = []
    for w in sorted(work, key=lambda w: (w.start, w.end)):
        call = launches.get(w.correlation)
        activities.append(
            Activity(
                start=w.start - zero,
                end=w.end - zero,
                stream=w.stream,
                name=w.name,
                kind=w.kind,
                bytes=w.bytes,
                range=at.get(w.correlation, -1),
                launched=call.start - zero if call else -1,
            )
        )
    return Trace(
        device=_device(connection, tables),
        ranges=ranges,
        activities=activities,
        calls=[
            Call(c.start - zero, c.end - zero, c.name, c.thread, i)
            for c, i in zip(calls, inside, strict=True)
        ],
        source=path.name,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    start: int
    end: int
    stream: int
    correlation: int
    name: str
    kind: KernelClass
    bytes: int


@dataclass(frozen=True, slots=True)
class _ApiCall:
    start: int
    end: int
    thread: int
    correlation: int
    name: str


def _device_work(
    connection: sqlite3.Connection, tables: set[str], strings: dict[int, str]
) -> Iterator[_Work]:
    if "CUPTI_ACTIVITY_KIND_KERNEL" in tables:
        query = (
            "SELECT start, end, streamId, correlationId, demangledName, shortName "
            "FROM CUPTI_ACTIVITY_KIND_KERNEL"
        )
        for start, end, stream, correlation, full, short in connection.execute(query):
            name = strings.get(short, "") or strings.get(full, "")
            # The namespace of a plugin is only in the full name.
            kind = kernel_class(strings.get(full, "") or name)
            yield _Work(start, end, stream, correlation, name, kind, 0)
    copies: tuple[tuple[str, KernelClass], ...] = (("MEMCPY", "copy"), ("MEMSET", "memset"))
    for suffix, kind in copies:
        table = f"CUPTI_ACTIVITY_KIND_{suffix}"
        if table in tables:
            query = f"SELECT start, end, streamId, correlationId, bytes FROM {table}"
            for start, end, stream, correlation, size in connection.execute(query):
                yield _Work(start, end, stream, correlation, suffix.lower(), kind, size)
    if "CUPTI_ACTIVITY_KIND_GRAPH_TRACE" in tables:  # whole graphs, when nodes are not traced
        query = "SELECT start, end, streamId, correlationId FROM CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
        for start, end, stream, correlation in connection.execute(query):
            yield _Work(start, end, stream, correlation, "CUDA graph", "graph", 0)


def _api_calls(
    connection: sqlite3.Connection, tables: set[str], strings: dict[int, str]
) -> Iterator[_ApiCall]:
    if "CUPTI_ACTIVITY_KIND_RUNTIME" not in tables:
        return
    query = (
        "SELECT start, end, globalTid, correlationId, nameId FROM CUPTI_ACTIVITY_KIND_RUNTIME "
        "ORDER BY start"
    )
    for start, end, thread, correlation, name in connection.execute(query):
        yield _ApiCall(start, end, thread, correlation, strings.get(name, "?").split("_v")[0])


def _ranges(
    connection: sqlite3.Connection, tables: set[str], strings: dict[int, str], domain: str
) -> list[Range]:
    if "NVTX_EVENTS" not in tables:
        return []
    columns = {r[1] for r in connection.execute("PRAGMA table_info(NVTX_EVENTS)")}
    text = "text" if "text" in columns else "NULL"
    text_id = "textId" if "textId" in columns else "NULL"
    query = f"SELECT start, end, eventType, {text}, {text_id}, globalTid, domainId FROM NVTX_EVENTS"
    rows = connection.execute(query).fetchall()

    def words(row: tuple[object, ...]) -> str:
        return str(row[3] if row[3] is not None else strings.get(row[4], ""))  # type: ignore[call-overload]

    ours = {r[6] for r in rows if r[2] == _DOMAIN_CREATE and words(r) == domain}
    found = [
        (r[0], r[1], words(r), r[5])
        for r in rows
        if r[2] in (_PUSH_POP, _START_END) and r[6] in ours and r[1] is not None
    ]
    return nest(found)


def nest(found: Iterable[tuple[int, int, str, int]]) -> list[Range]:
    """Parents and depths of (start, end, text, thread) intervals, per thread."""
    out: list[Range] = []
    stacks: dict[int, list[int]] = {}
    for start, end, text, thread in sorted(found, key=lambda f: (f[0], -f[1])):
        stack = stacks.setdefault(thread, [])
        while stack and out[stack[-1]].end < end:
            stack.pop()
        while stack and out[stack[-1]].end <= start:
            stack.pop()
        name, fields = parse_text(text)
        out.append(Range(start, end, name, fields, thread, stack[-1] if stack else -1, len(stack)))
        stack.append(len(out) - 1)
    return out


def _innermost(ranges: list[Range], points: list[tuple[int, int]]) -> list[int]:
    """Index of the innermost range around each (thread, time), or -1."""
    events: list[tuple[int, int, int, int]] = []  # time, order, thread, index
    for i, r in enumerate(ranges):
        events.append((r.start, 0, r.thread, i))
        events.append((r.end, 2, r.thread, i))
    for i, (thread, time) in enumerate(points):
        events.append((time, 1, thread, i))
    events.sort()
    open_ranges: dict[int, list[int]] = {}
    out = [-1] * len(points)
    for _, order, thread, i in events:
        stack = open_ranges.setdefault(thread, [])
        if order == 0:
            stack.append(i)
        elif order == 2:
            stack.remove(i)
        elif stack:
            out[i] = stack[-1]
    return out


def _shift_range(r: Range, zero: int) -> Range:
    return Range(r.start - zero, r.end - zero, r.name, r.fields, r.thread, r.parent, r.depth)


def _device(connection: sqlite3.Connection, tables: set[str]) -> str:
    if "TARGET_INFO_GPU" not in tables:
        return ""
    row = connection.execute("SELECT name FROM TARGET_INFO_GPU LIMIT 1").fetchone()
    return str(row[0]) if row else ""
