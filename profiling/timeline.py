"""One self-contained HTML page: the report's tables and a timeline to zoom and search in."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from liveedit.profiling.kernel_classes import CLASSES
from liveedit.profiling.nsys_report import Report, as_dict
from liveedit.profiling.nsys_trace import Activity, Call, Range, Trace
from liveedit.profiling.nvtx_ranges import format_text

_RANGE, _CALL = len(CLASSES), len(CLASSES) + 1


def page(trace: Trace, report: Report, *, title: str = "LiveEdit timeline") -> str:
    """The page as text. It loads nothing from anywhere.

    ``trace`` may also come from a CPU run: its single stream is then the executing thread.
    """
    names = _Names()
    labels = [format_text(r.name, **r.fields) for r in trace.ranges]
    lanes = [
        *_range_lanes(trace.ranges, labels, names),
        *_device_lanes(trace, labels, names, on_gpu=bool(trace.device)),
        *_call_lane(trace.calls, labels, names),
    ]
    end = max(
        [a.end for a in trace.activities]
        + [r.end for r in trace.ranges]
        + [c.end for c in trace.calls]
    )
    data = {
        "title": title,
        "subtitle": ", ".join(x for x in (trace.device or "CPU", trace.source) if x),
        "unit": "GPU" if trace.device else "CPU",
        "cards": _cards(report),
        "report": as_dict(report),
        "classes": [*CLASSES, "range", "call"],
        "names": names.list,
        "lanes": lanes,
        "end_us": end / 1e3,
        "chunk": _middle_chunk(trace),
    }
    # "</" would end the script element early.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    return _template().replace("/*DATA*/null", text)


class _Names:
    """Each text once; events refer to it by number."""

    def __init__(self) -> None:
        self.list: list[str] = []
        self._index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._index:
            self._index[text] = len(self.list)
            self.list.append(text)
        return self._index[text]


def _range_lanes(ranges: list[Range], labels: list[str], names: _Names) -> list[dict[str, Any]]:
    depths: dict[int, list[list[float]]] = {}
    for r, label in zip(ranges, labels, strict=True):
        parent = names(labels[r.parent]) if r.parent >= 0 else -1
        depths.setdefault(r.depth, []).append(_event(r, names(label), _RANGE, parent))
    levels = {0: "stream", 1: "chunks", 2: "stages, passes"}
    return [_lane(levels.get(d, f"ranges {d}"), "ranges", depths[d]) for d in sorted(depths)]


def _device_lanes(
    trace: Trace, labels: list[str], names: _Names, *, on_gpu: bool
) -> list[dict[str, Any]]:
    streams: dict[int, list[list[float]]] = {}
    for a in trace.activities:
        inside = names(labels[a.range]) if a.range >= 0 else -1
        streams.setdefault(a.stream, []).append(
            _event(a, names(a.name), CLASSES.index(a.kind), inside)
        )
    lanes = []
    for s in sorted(streams):
        if on_gpu and (spans := _projected(trace, s, labels, names)):
            lanes.append(_lane(f"stages on {s}", "ranges", spans))
        name = f"CUDA stream {s}" if on_gpu else "work"
        lanes.append(_lane(name, "device", streams[s]))
    return lanes


def _projected(trace: Trace, stream: int, labels: list[str], names: _Names) -> list[list[float]]:
    """Where each innermost range's work lies on a stream: the host is far ahead of the device."""
    spans: dict[int, tuple[int, int]] = {}
    for a in trace.activities:
        if a.range >= 0 and a.stream == stream:
            start, end = spans.get(a.range, (a.start, a.end))
            spans[a.range] = (min(start, a.start), max(end, a.end))
    out = []
    for index, (start, end) in spans.items():
        chunk = trace.enclosing(index, "chunk")
        inside = names(labels[chunk]) if chunk >= 0 else -1
        out.append([start / 1e3, (end - start) / 1e3, names(labels[index]), _RANGE, inside])
    return out


def _call_lane(calls: list[Call], labels: list[str], names: _Names) -> list[dict[str, Any]]:
    if not calls:
        return []
    events = [
        _event(c, names(c.name), _CALL, names(labels[c.range]) if c.range >= 0 else -1)
        for c in calls
    ]
    return [_lane("host CUDA calls", "calls", events)]


def _event(e: Range | Activity | Call, name: int, kind: int, inside: int) -> list[float]:
    return [round(e.start / 1e3, 3), round((e.end - e.start) / 1e3, 3), name, kind, inside]


def _lane(name: str, kind: str, events: list[list[float]]) -> dict[str, Any]:
    events.sort()
    return {
        "name": name,
        "kind": kind,
        "events": events,
        "longest": max((e[1] for e in events), default=0.0),
    }


def _middle_chunk(trace: Trace) -> list[float] | None:
    """Device time of the middle chunk, a little wider, in us."""
    chunks = [i for i, r in enumerate(trace.ranges) if r.name == "chunk"]
    if not chunks:
        return None
    chosen = chunks[len(chunks) // 2]
    mine = [a for a in trace.activities if trace.enclosing(a.range, "chunk") == chosen]
    spans: list[Range | Activity] = [trace.ranges[chosen], *mine]
    start, end = min(s.start for s in spans), max(s.end for s in spans)
    margin = (end - start) * 0.03
    return [(start - margin) / 1e3, (end + margin) / 1e3]


def _cards(report: Report) -> list[tuple[str, str]]:
    if not report.device:
        per_chunk = ("per chunk", f"{report.chunk_ms:.2f} ms")
        return [("chunks", str(report.chunks)), per_chunk]
    cards = [
        ("chunks", str(report.chunks)),
        ("per chunk", f"{report.chunk_ms:.2f} ms"),
        ("device busy", f"{1 - report.idle_share:.1%}"),
        ("idle in gaps", f"{report.gap_ms:.2f} ms"),
        ("streams overlap", f"{report.overlapped_ms:.2f} ms"),
        ("host syncs", str(report.syncs)),
    ]
    return cards if report.chunks else cards[2:]


@cache
def _template() -> str:
    return resources.files("liveedit.profiling").joinpath("timeline.html").read_text("utf-8")
