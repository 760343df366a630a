"""PNG plots of bench records. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liveedit.errors import UsageError
from liveedit.profiling.records import Record

_BLUE, _ORANGE, _GREEN, _GREY = "#2563eb", "#f59e0b", "#10b981", "#64748b"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            "plots need matplotlib. Run: pip install matplotlib, or leave the plot out (bench: "
            "--no-plots)"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.25,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "legend.frameon": False,
        }
    )
    return plt


def latency_histogram(samples: Mapping[str, Sequence[float]], path: Path) -> Path:
    """Chunk times of each case, with median and p99 marked."""
    import numpy as np

    plt = _pyplot()
    figure, axes = plt.subplots(len(samples), 1, figsize=(7, 1.1 + 1.9 * len(samples)), sharex=True)
    for axis, (label, times) in zip(np.atleast_1d(axes), samples.items(), strict=True):
        axis.hist(times, bins=min(40, max(8, len(times) // 2)), color=_BLUE, alpha=0.8)
        p50, p99 = np.percentile(times, [50, 99])
        axis.axvline(p50, color=_GREY, linestyle="--", label=f"median {p50:.1f} ms")
        axis.axvline(p99, color=_ORANGE, label=f"p99 {p99:.1f} ms")
        axis.set_title(f"{label}, {len(times)} chunks")
        axis.set_ylabel("chunks")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    np.atleast_1d(axes)[-1].set_xlabel("time per chunk, ms")
    return _save(figure, path)


def fps_against_keep(records: Sequence[Record], path: Path) -> Path:
    """FPS over the realised share of kept tokens, end to end and DiT only."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.2))
    groups: dict[str, list[Record]] = {}
    for r in records:
        c = r.configuration
        key = f"{c['model']} {c['backend']} {c['precision']}"
        groups.setdefault(key, []).append(r)
    for color, (label, group) in zip(
        (_BLUE, _ORANGE, _GREEN, _GREY) * 3, groups.items(), strict=False
    ):
        group = sorted(group, key=lambda r: r.figures["realised_keep"].value)
        x = [100 * r.figures["realised_keep"].value for r in group]
        for name, style, what in (("fps", "-", "end to end"), ("fps_dit_only", "--", "DiT only")):
            f = [r.figures[name] for r in group if name in r.figures]
            if len(f) < len(group):
                continue
            axis.errorbar(
                x,
                [v.value for v in f],
                yerr=[v.spread or 0.0 for v in f],
                color=color,
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=3,
                label=f"{label}, {what}",
            )
    axis.set_xlabel("tokens kept in pruned passes, %")
    axis.set_ylabel("frames per second")
    axis.set_ylim(bottom=0)
    axis.set_title("Speed against realised keep ratio (bars: middle half of the chunks)")
    axis.legend()
    return _save(figure, path)


def stage_bars(records: Sequence[Record], path: Path) -> Path:
    """Where a chunk's time goes, per case."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.5 * len(records)))
    names = list(dict.fromkeys(n for r in records for n in r.figures if n.startswith("stage_ms.")))
    names.sort(key=lambda n: -max(_value(r, n) for r in records))
    longest = max(r.figures["chunk_ms"].value for r in records)
    names = [  # what nobody could see only crowds the legend
        n for n in names if max(_value(r, n) for r in records) > 0.004 * longest
    ]
    left = [0.0] * len(records)
    for color, name in zip(plt.get_cmap("tab10").colors * 2, names, strict=False):
        width = [_value(r, name) for r in records]
        label = name.removeprefix("stage_ms.")
        axis.barh([r.part for r in records], width, left=left, color=color, label=label)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("median ms per chunk")
    axis.set_title("Stages of a chunk")
    axis.legend(ncols=1, bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=8)
    return _save(figure, path)


def _value(record: Record, name: str) -> float:
    figure = record.figures.get(name)
    return figure.value if figure else 0.0


def roofline(
    points: Sequence[tuple[str, float, float]],
    peak_gflops: float,
    bandwidth_gbps: float,
    path: Path,
    *,
    title: str,
) -> Path:
    """Achieved GFLOP/s of each (name, FLOP per byte, GFLOP/s) under the machine's roof.

    The legend adds the share of the roof that each one reaches.
    """
    import numpy as np

    plt = _pyplot()
    from matplotlib.ticker import LogLocator

    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    ridge = peak_gflops / bandwidth_gbps
    intensities = [p[1] for p in points] + [ridge]
    x = np.logspace(np.log10(min(intensities) / 4), np.log10(max(intensities) * 4), 200)
    axis.plot(x, np.minimum(peak_gflops, bandwidth_gbps * x), color=_GREY, linewidth=2)
    axis.annotate(
        f"{peak_gflops:.0f} GFLOP/s",
        (x[-1], peak_gflops),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=_GREY,
    )
    axis.annotate(
        f"{bandwidth_gbps:.1f} GB/s",
        (x[0], bandwidth_gbps * x[0]),
        xytext=(14, 0),
        textcoords="offset points",
        color=_GREY,
    )
    for color, (name, intensity, rate) in zip(
        plt.get_cmap("tab10").colors * 3, points, strict=False
    ):
        roof = min(peak_gflops, bandwidth_gbps * intensity)
        axis.vlines(intensity, rate, roof, color=color, linestyle=":", linewidth=1)
        label = f"{name}, {rate / roof:.0%}"
        axis.scatter([intensity], [rate], color=color, s=42, zorder=3, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    rates = [p[2] for p in points] + [peak_gflops]
    # A decade at least, or the axis has two labels.
    axis.set_ylim(min(*rates, peak_gflops / 5) / 2, max(rates) * 2)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a decade alone leaves one label
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter("")
    axis.set_xlabel("FLOP per byte (compulsory traffic)")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(title)
    axis.legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
    return _save(figure, path)


def sensitivity(record: Record, path: Path) -> Path:
    """What each linear costs when it alone is quantised: kinds of linears over blocks.

    Figures are called ``blocks.<number>.<kind>``. Those in the record's ``left_out`` are framed.
    """
    import numpy as np

    plt = _pyplot()
    cells = {}
    for name, value in record.figures.items():
        _, block, kind = name.split(".", 2)
        cells[kind, int(block)] = value.value
    kinds = sorted({kind for kind, _ in cells})
    blocks = sorted({block for _, block in cells})
    grid = np.array([[cells.get((kind, block), np.nan) for block in blocks] for kind in kinds])
    figure, axis = plt.subplots(figsize=(2.4 + 0.62 * len(blocks), 1.6 + 0.42 * len(kinds)))
    image = axis.imshow(grid, cmap="RdYlGn", aspect="auto")
    figure.colorbar(image, label="PSNR against high precision, dB")
    for y, row in enumerate(kinds):
        for x, column in enumerate(blocks):
            if not np.isnan(grid[y, x]):
                axis.text(x, y, f"{grid[y, x]:.1f}", ha="center", va="center", fontsize=8)
            if f"blocks.{column}.{row}" in record.configuration["left_out"]:
                frame = plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, linewidth=2.5)
                axis.add_patch(frame)
    axis.set_xticks(range(len(blocks)), [str(b) for b in blocks])
    axis.set_yticks(range(len(kinds)), kinds)
    axis.set_xlabel("block")
    axis.grid(visible=False)
    what = f"{record.configuration['model']}, {record.configuration['format']}"
    framed = "\n(framed: left in high precision)" if record.configuration["left_out"] else ""
    axis.set_title(f"{what}: edited region with one linear quantised{framed}")
    return _save(figure, path)


def training_curves(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Every figure of a training run over its steps; a figure may be missing in some rows."""
    plt = _pyplot()
    names = list(dict.fromkeys(n for row in rows for n in row if n not in ("step", "s_per_step")))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.4 * lines), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        x, y = zip(*points, strict=True)
        axis.plot(x, y, color=_BLUE, linewidth=1, marker="." if len(x) < 30 else None)
        axis.set_title(name)
        if min(y) > 0 and max(y) > 20 * min(y):
            axis.set_yscale("log")
    for axis in list(axes.flat)[len(names) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    _pyplot().close(figure)
    return path
