"""What a capture says: time per stage, pass kind and kernel class, gaps, overlap, host time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from liveedit.profiling.kernel_classes import CLASSES
from liveedit.profiling.nsys_trace import Activity, Trace
from liveedit.profiling.stage_timer import STAGES
from liveedit.profiling.text_table import text_table

_SYNCHRONISING = ("Synchronize", "EventQuery", "StreamQuery")


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage or pass kind. Times in ms; ``gpu`` is busy time (overlaps counted once)."""

    name: str
    count: int
    gpu_ms: float
    gpu_ms_p50: float
    gpu_ms_p99: float
    host_ms: float
    kernels: int
    share: float  # of all GPU busy time


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    name: str
    count: int
    gpu_ms: float
    share: float  # of summed kernel time
    top: tuple[tuple[str, float, int], ...]  # kernel, ms, count


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Idle device time between two activities."""

    start_ms: float
    gap_ms: float
    after: str
    before: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the text, the JSON and the page show. Times in ms."""

    device: str
    source: str
    chunks: int
    span_ms: float
    busy_ms: float  # at least one stream busy
    overlapped_ms: float  # at least two streams busy
    streams: dict[int, float]  # busy time per stream
    stages: tuple[StageRow, ...]
    passes: tuple[StageRow, ...]
    classes: tuple[ClassRow, ...]
    gap_count: int
    gap_ms: float
    gaps: tuple[Gap, ...]  # the largest
    launch_delay_us_p50: float | None  # host call to start on the device
    host_calls: dict[str, tuple[int, float]]  # API function -> count, ms
    syncs: int  # API calls that wait for or ask the device

    @property
    def chunk_ms(self) -> float:
        return self.span_ms / self.chunks if self.chunks else 0.0

    @property
    def idle_share(self) -> float:
        return 1.0 - self.busy_ms / self.span_ms if self.span_ms else 0.0


def analyse(trace: Trace, *, largest_gaps: int = 12) -> Report:
    """Reduce a capture to a report."""
    acts = trace.activities
    span = (min(a.start for a in acts), max(a.end for a in acts))
    union = _union((a.start, a.end) for a in acts)
    busy = sum(b - a for a, b in union)
    streams = {
        s: _length((a.start, a.end) for a in acts if a.stream == s) / 1e6
        for s in sorted({a.stream for a in acts})
    }
    gaps = _gaps(acts)
    calls: dict[str, tuple[int, float]] = {}
    for c in trace.calls:
        n, ms = calls.get(c.name, (0, 0.0))
        calls[c.name] = (n + 1, ms + (c.end - c.start) / 1e6)
    delays = [(a.start - a.launched) / 1e3 for a in acts if a.launched >= 0]
    return Report(
        device=trace.device,
        source=trace.source,
        chunks=sum(r.name == "chunk" for r in trace.ranges),
        span_ms=(span[1] - span[0]) / 1e6,
        busy_ms=busy / 1e6,
        overlapped_ms=_overlapped(acts) / 1e6,
        streams=streams,
        stages=_stage_rows(trace, busy, _stage_of),
        passes=_stage_rows(trace, busy, _pass_of),
        classes=_class_rows(acts),
        gap_count=len(gaps),
        gap_ms=sum(g.gap_ms for g in gaps),
        gaps=tuple(sorted(gaps, key=lambda g: -g.gap_ms)[:largest_gaps]),
        launch_delay_us_p50=float(np.median(delays)) if delays else None,
        host_calls=dict(sorted(calls.items(), key=lambda kv: -kv[1][1])),
        syncs=sum(n for name, (n, _) in calls.items() if any(s in name for s in _SYNCHRONISING)),
    )


def as_dict(report: Report) -> dict[str, Any]:
    """Plain data for JSON."""
    data = asdict(report)
    data["chunk_ms"] = report.chunk_ms
    data["idle_share"] = report.idle_share
    data["streams"] = {str(k): v for k, v in report.streams.items()}
    return data


def _stage_of(trace: Trace, index: int) -> tuple[int, str]:
    """The stage range around a range, and its label."""
    while index >= 0:
        if trace.ranges[index].name in STAGES:
            return index, trace.ranges[index].name
        index = trace.ranges[index].parent
    return -1, "outside stages"


def _pass_of(trace: Trace, index: int) -> tuple[int, str]:
    index = trace.enclosing(index, "pass")
    if index < 0:
        return -1, ""
    return index, f"{trace.ranges[index].fields.get('kind', '?')} pass"


def _stage_rows(trace: Trace, busy: int, label: Any) -> tuple[StageRow, ...]:
    instances: dict[str, dict[int, list[Activity]]] = {}
    for i in range(len(trace.ranges)):
        index, name = label(trace, i)
        if index == i:
            instances.setdefault(name, {})[i] = []
    for a in trace.activities:
        index, name = label(trace, a.range)
        if name:
            instances.setdefault(name, {}).setdefault(index, []).append(a)
    rows = []
    for name, found in instances.items():
        each = [_length((a.start, a.end) for a in work) / 1e6 for work in found.values()]
        total = _length((a.start, a.end) for work in found.values() for a in work)
        host = [trace.ranges[i] for i in found if i >= 0]
        rows.append(
            StageRow(
                name=name,
                count=len(found),
                gpu_ms=total / 1e6,
                gpu_ms_p50=float(np.percentile(each, 50)),
                gpu_ms_p99=float(np.percentile(each, 99)),
                host_ms=sum(r.end - r.start for r in host) / 1e6,
                kernels=sum(len(work) for work in found.values()),
                share=total / busy if busy else 0.0,
            )
        )
    return tuple(sorted(rows, key=lambda r: -r.gpu_ms))


def _class_rows(acts: Sequence[Activity]) -> tuple[ClassRow, ...]:
    total = sum(a.end - a.start for a in acts) or 1
    rows = []
    for kind in CLASSES:
        mine = [a for a in acts if a.kind == kind]
        if not mine:
            continue
        names: dict[str, tuple[int, int]] = {}
        for a in mine:
            ns, n = names.get(a.name, (0, 0))
            names[a.name] = (ns + a.end - a.start, n + 1)
        top = sorted(names.items(), key=lambda kv: -kv[1][0])[:5]
        time = sum(a.end - a.start for a in mine)
        rows.append(
            ClassRow(
                name=kind,
                count=len(mine),
                gpu_ms=time / 1e6,
                share=time / total,
                top=tuple((name, ns / 1e6, n) for name, (ns, n) in top),
            )
        )
    return tuple(sorted(rows, key=lambda r: -r.gpu_ms))


def _gaps(acts: Sequence[Activity]) -> list[Gap]:
    gaps, last = [], acts[0]
    for a in acts[1:]:
        if a.start > last.end:
            gaps.append(
                Gap(
                    start_ms=last.end / 1e6,
                    gap_ms=(a.start - last.end) / 1e6,
                    after=last.name,
                    before=a.name,
                )
            )
        if a.end > last.end:
            last = a
    return gaps


def _union(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for a, b in sorted(spans):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], b))
        else:
            out.append((a, b))
    return out


def _length(spans: Iterable[tuple[int, int]]) -> int:
    return sum(b - a for a, b in _union(spans))


def _overlapped(acts: Sequence[Activity]) -> int:
    """Time with at least two streams busy."""
    events: list[tuple[int, int]] = []
    for s in {a.stream for a in acts}:
        for a, b in _union((x.start, x.end) for x in acts if x.stream == s):
            events += [(a, 1), (b, -1)]
    events.sort()
    total, active, since = 0, 0, 0
    for time, step in events:
        if active >= 2:
            total += time - since
        active += step
        since = time
    return total


def text(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.device or 'unknown GPU'}: {report.chunks} chunks in {report.span_ms:.2f} ms"
        + (f", {report.chunk_ms:.2f} ms per chunk" if report.chunks else ""),
        f"device busy {report.busy_ms:.2f} ms ({1 - report.idle_share:.1%}), "
        f"two or more streams at once {report.overlapped_ms:.2f} ms",
        "streams: " + ", ".join(f"{s}: {ms:.2f} ms" for s, ms in report.streams.items()),
        "",
        text_table(
            ("stage", "count", "GPU ms", "p50", "p99", "host ms", "kernels", "share"),
            [_stage_cells(r) for r in report.stages],
        ),
    ]
    if report.passes:
        lines += [
            "",
            text_table(
                ("pass", "count", "GPU ms", "p50", "p99", "host ms", "kernels", "share"),
                [_stage_cells(r) for r in report.passes],
            ),
        ]
    lines += [
        "",
        text_table(
            ("kernel class", "count", "GPU ms", "share", "largest kernel"),
            [
                (r.name, str(r.count), f"{r.gpu_ms:.3f}", f"{r.share:.1%}", r.top[0][0][:60])
                for r in report.classes
            ],
            left=(0, 4),
        ),
        "",
        f"{report.gap_count} gaps, {report.gap_ms:.3f} ms idle in all; the largest:",
        text_table(
            ("at ms", "gap ms", "after", "before"),
            [
                (f"{g.start_ms:.3f}", f"{g.gap_ms:.4f}", g.after[:40], g.before[:40])
                for g in report.gaps[:5]
            ],
            left=(2, 3),
        ),
        "",
        text_table(
            ("host call", "count", "ms"),
            [(n, str(c), f"{ms:.3f}") for n, (c, ms) in list(report.host_calls.items())[:8]],
        ),
        f"{report.syncs} host calls that wait for or ask the device"
        + (f", {report.syncs / report.chunks:.2f} per chunk" if report.chunks else ""),
    ]
    if report.launch_delay_us_p50 is not None:
        lines.append(f"launch to start on the device: median {report.launch_delay_us_p50:.1f} us")
    if not report.chunks:
        lines.append(
            "No range of domain 'liveedit' was found: install the nvtx package in the traced "
            "environment to see stages and passes."
        )
    return "\n".join(lines)


def _stage_cells(r: StageRow) -> tuple[str, ...]:
    return (
        r.name,
        str(r.count),
        f"{r.gpu_ms:.3f}",
        f"{r.gpu_ms_p50:.3f}",
        f"{r.gpu_ms_p99:.3f}",
        f"{r.host_ms:.3f}",
        str(r.kernels),
        f"{r.share:.1%}",
    )
