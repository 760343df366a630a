"""Bench results as text and Markdown tables, and comparisons with older records."""

from __future__ import annotations

from collections.abc import Sequence

from liveedit.errors import UsageError
from liveedit.profiling.records import Change, Figure, Record
from liveedit.profiling.text_table import markdown_table, text_table

_STAGES = (
    "upload",
    "encode",
    "noise",
    "pass full",
    "pass pruned",
    "pass clean",
    "commit",
    "mask",
    "decode",
    "download",
    "other",
)


def stage_rows(record: Record) -> list[tuple[str, ...]]:
    """Stage, p50, p95, p99, share of the chunk's median."""
    chunk = record.figures["chunk_ms"].value
    rows: list[tuple[str, ...]] = []
    for name in _STAGES:
        figure = record.figures.get(f"stage_ms.{name}")
        if figure is not None:
            rows.append((name, *_percentiles(figure), f"{figure.value / chunk:.1%}"))
    rows.append(("chunk", *_percentiles(record.figures["chunk_ms"]), "100.0%"))
    return rows


def _percentiles(figure: Figure) -> tuple[str, str, str]:
    p95 = figure.value if figure.p95 is None else figure.p95
    p99 = figure.value if figure.p99 is None else figure.p99
    return f"{figure.value:.2f}", f"{p95:.2f}", f"{p99:.2f}"


def text_report(record: Record) -> str:
    """One case for people."""
    f = record.figures
    chunk = f["chunk_ms"]
    lines = [
        f"{record.part}",
        f"  end to end {f['fps'].value:.2f} FPS ({f['fps'].p99:.2f} in the slowest chunks)   "
        f"DiT only {_value(record, 'fps_dit_only', '.2f')} FPS   {chunk.count} chunks",
        f"  included: {record.configuration['included']}",
        "",
        text_table(("stage", "p50 ms", "p95", "p99", "share"), stage_rows(record)),
        "",
        f"  first chunk after {f['first_chunk_ms'].value:.0f} ms and "
        f"{f['first_chunk_frames'].value:.0f} source frames; open {f['open_ms'].value:.0f} ms; "
        f"prompt {f['prompt_ms'].value:.1f} ms",
        f"  kept tokens in pruned passes: {f['realised_keep'].value:.1%} "
        f"(asked: keep {record.configuration['keep']:g}, {record.configuration['mask']})",
        f"  DiT {f['dit_gflop_per_chunk'].value:.2f} GFLOP per chunk at "
        f"{_value(record, 'dit_gflop_per_s', '.1f')} GFLOP/s; codec "
        f"{f['codec_gflop_per_chunk'].value:.2f} GFLOP per chunk",
        f"  memory: buffers {f['memory_predicted_buffers'].value:.1f} MB + weights "
        f"{f['memory_predicted_weights'].value:.1f} MB predicted, "
        f"{f['memory_measured_steady'].value:.1f} MB measured (engines' activations included)",
    ]
    extra = [name for name in f if name.startswith(("host.", "pass_speed.", "reference."))]
    lines += [f"  {name}: {_figure(f[name])}" for name in extra]
    return "\n".join(lines)


def _value(record: Record, name: str, form: str) -> str:
    """A figure that only some backends can have."""
    figure = record.figures.get(name)
    return "-" if figure is None else format(figure.value, form)


def _figure(figure: Figure) -> str:
    text = f"{figure.value:.3g} {figure.unit}"
    if figure.p99 is not None:
        text += f" (p95 {figure.p95:.3g}, p99 {figure.p99:.3g}, n {figure.count})"
    return text


_SUMMARY = ("case", "FPS", "slow 1 %", "DiT only", "chunk ms", "kept")


def _summary_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    return [
        (
            r.part,
            f"{r.figures['fps'].value:.2f}",
            f"{r.figures['fps'].p99:.2f}",
            _value(r, "fps_dit_only", ".2f"),
            f"{r.figures['chunk_ms'].value:.1f}",
            f"{r.figures['realised_keep'].value:.1%}",
        )
        for r in records
    ]


def sweep_report(records: Sequence[Record]) -> str:
    """All cases, and the worst beside the best."""
    ordered = sorted(records, key=lambda r: -r.figures["fps"].value)
    lines = [text_table(_SUMMARY, _summary_rows(ordered))]
    if len(ordered) > 1:
        best, worst = ordered[0], ordered[-1]
        ratio = best.figures["fps"].value / worst.figures["fps"].value
        lines.append(
            f"best {best.part} {best.figures['fps'].value:.2f} FPS, "
            f"worst {worst.part} {worst.figures['fps'].value:.2f} FPS ({ratio:.2f}x apart)"
        )
    return "\n".join(lines)


def markdown_report(records: Sequence[Record]) -> str:
    """Cases and stages with the environment they were measured in."""
    env = records[0].environment
    gpus = ", ".join(f"{g.name} ({g.sm_clock_mhz} of {g.sm_clock_max_mhz} MHz)" for g in env.gpus)
    where = gpus + f", driver {env.driver}" if gpus else f"{env.cpu}, {env.cpu_cores} cores"
    versions = ", ".join(f"{k} {v}" for k, v in sorted(env.packages.items()))
    parts = [
        "# LiveEdit bench",
        f"{where}; {env.os}; Python {env.python}; liveedit {env.liveedit} {env.commit}; {versions}",
        f"`{records[0].command}`",
        markdown_table(_SUMMARY, _summary_rows(records)),
    ]
    for r in records:
        head = ("stage", "p50 ms", "p95", "p99", "share")
        notes = "; ".join(r.notes)
        parts += [f"## {r.part}", markdown_table(head, stage_rows(r)), notes]
    return "\n\n".join(parts) + "\n"


def dit_points(records: Sequence[Record]) -> list[tuple[str, float, float]]:
    """Of each case the DiT's FLOP per byte and GFLOP/s.

    Raises:
        UsageError: no case has a time of its passes alone.
    """
    points = []
    for r in records:
        rate, flops, moved = (
            r.figures.get(n) for n in ("dit_gflop_per_s", "dit_gflop_per_chunk", "dit_gb_per_chunk")
        )
        if rate and flops and moved:
            points.append((r.part, flops.value / moved.value, rate.value))
    if not points:
        raise UsageError("passes have no time of their own; on a GPU add --stages")
    return points


def comparison(changes: Sequence[Change]) -> str:
    """What changed, beyond noise first."""
    order = {"worse": 0, "better": 1, "changed": 2, "same": 3}
    rows = [
        (
            c.name,
            f"{c.old:.4g}",
            f"{c.new:.4g}",
            c.unit,
            f"{(c.ratio - 1):+.1%}" if c.old else "-",
            f"{c.noise:.2g}",
            c.verdict,
        )
        for c in sorted(changes, key=lambda c: order[c.verdict])
    ]
    head = ("figure", "old", "new", "unit", "change", "noise", "verdict")
    return text_table(head, rows, left=(0, 3, 6))
