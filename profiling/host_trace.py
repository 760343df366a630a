"""A CPU run as a trace: the spans of a stage timer, for the same reports and timeline page."""

from __future__ import annotations

from collections.abc import Sequence

from liveedit.profiling.kernel_classes import KernelClass
from liveedit.profiling.nsys_trace import Activity, Trace, nest
from liveedit.profiling.nvtx_ranges import format_text
from liveedit.profiling.stage_timer import Span

# What a stage's time mostly is: a whole engine run, data moved, or small host arithmetic.
_KINDS: dict[str, KernelClass] = {
    "encode": "graph",
    "pass": "graph",
    "decode": "graph",
    "upload": "copy",
    "commit": "copy",
    "download": "copy",
    "noise": "elementwise",
    "mask": "elementwise",
}


def host_trace(spans: Sequence[Span], source: str) -> Trace:
    """Ranges from every span; one activity per stage. Times count from the first span."""
    assert spans, source
    zero = min(s.start for s in spans)
    ranges = nest((s.start - zero, s.end - zero, format_text(s.name, **s.fields), 0) for s in spans)
    activities = [
        Activity(
            start=r.start,
            end=r.end,
            stream=0,
            name=format_text(r.name, **({"kind": r.fields["kind"]} if "kind" in r.fields else {})),
            kind=_KINDS[r.name],
            bytes=0,
            range=i,
            launched=-1,
        )
        for i, r in enumerate(ranges)
        if r.name in _KINDS
    ]
    return Trace(device="", ranges=ranges, activities=activities, source=source)
