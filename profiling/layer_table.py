"""Measured layers grouped by our names, against what their FLOPs and bytes allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from liveedit.profiling.layer_names import LayerName, parse_layer
from liveedit.profiling.onnx_flops import NodeFlops
from liveedit.profiling.ort_profile import NodeTime
from liveedit.profiling.text_table import text_table

Grouping = Literal["class", "part", "block", "layer"]


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """One executed layer."""

    layer: LayerName
    ms: float
    bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A group of layers. ``bound_ms`` is the roofline's time for its FLOPs and bytes."""

    name: str
    count: int
    ms: float
    flops: float
    bytes: float
    bound_ms: float

    @property
    def gflops(self) -> float:
        return self.flops / self.ms / 1e6 if self.ms else 0.0

    @property
    def gbps(self) -> float:
        return self.bytes / self.ms / 1e6 if self.ms else 0.0

    @property
    def roofline_share(self) -> float:
        return self.bound_ms / self.ms if self.ms else 0.0

    @property
    def lost_ms(self) -> float:
        """What a perfect kernel would give back."""
        return max(0.0, self.ms - self.bound_ms)


def place_nodes(nodes: Sequence[NodeTime]) -> list[LayerTime]:
    """ONNX Runtime's nodes under our names.

    Nodes of an inlined function, and reshapes that a fusion adds, have lost their place: they run
    where the call stood, so they take the block of the named node before them.
    """
    out: list[LayerTime] = []
    block: int | None = None
    for node in nodes:
        if "/" in node.node:
            layer = parse_layer(node.node, node.operator)
            block = layer.block
        else:
            layer = _inlined(node.operator, block)
        out.append(LayerTime(layer=layer, ms=node.typical_ms, bytes=node.bytes))
    return out


def _inlined(operator: str, block: int | None) -> LayerName:
    if operator == "Attention":
        return replace(parse_layer("blocks.0/TRT_Attention_0"), block=block)
    name = LayerName(block=block, part="", detail="", accounting="pointwise")
    if block is None or operator == "Reshape":
        return replace(name, part="reshapes")
    return replace(
        name, part="self-attention", detail="gather, scatter", accounting="gather_scatter"
    )


def group(
    times: Iterable[LayerTime],
    flops: Iterable[NodeFlops],
    *,
    by: Grouping = "part",
    peak_gflops: float,
    bandwidth_gbps: float,
) -> list[LayerRow]:
    """Rows in order of time."""
    work: dict[str, float] = {}
    for n in flops:
        key = group_name(n.layer, by)
        work[key] = work.get(key, 0.0) + n.flops
    ms: dict[str, float] = {}
    moved: dict[str, float] = {}
    count: dict[str, int] = {}
    for t in times:
        key = group_name(t.layer, by)
        ms[key] = ms.get(key, 0.0) + t.ms
        moved[key] = moved.get(key, 0.0) + t.bytes
        count[key] = count.get(key, 0) + 1
    rows = [
        LayerRow(
            name=key,
            count=count[key],
            ms=ms[key],
            flops=work.get(key, 0.0),
            bytes=moved[key],
            bound_ms=max(work.get(key, 0.0) / peak_gflops / 1e6, moved[key] / bandwidth_gbps / 1e6),
        )
        for key in ms
    ]
    return sorted(rows, key=lambda r: -r.ms)


def group_name(layer: LayerName, by: Grouping) -> str:
    if by == "class":
        return layer.accounting
    if by == "block":
        return "outside blocks" if layer.block is None else f"block {layer.block}"
    if by == "part":
        return replace(layer, block=None).text
    return layer.text


def text(rows: Sequence[LayerRow], *, limit: int = 24) -> str:
    """The table for people."""
    total = sum(r.ms for r in rows) or 1.0
    shown = rows[:limit]
    cells = [
        (
            r.name,
            str(r.count),
            f"{r.ms:.3f}",
            f"{r.ms / total:.1%}",
            f"{r.flops / 1e9:.3f}" if r.flops else "-",
            f"{r.gflops:.1f}" if r.flops else "-",
            f"{r.gbps:.2f}" if r.bytes else "-",
            f"{r.roofline_share:.0%}",
            f"{r.lost_ms:.3f}",
        )
        for r in shown
    ]
    head = ("layer", "nodes", "ms", "share", "GFLOP", "GFLOP/s", "GB/s", "of roofline", "lost ms")
    out = text_table(head, cells)
    if len(rows) > limit:
        rest = sum(r.ms for r in rows[limit:])
        out += f"\n... {len(rows) - limit} more rows, {rest:.3f} ms"
    return out


def fix_first(rows: Sequence[LayerRow], count: int = 3) -> list[str]:
    """The groups where a perfect kernel would give back most, and what limits them."""
    total = sum(r.ms for r in rows) or 1.0
    out = []
    for r in sorted(rows, key=lambda r: -r.lost_ms)[:count]:
        if r.lost_ms <= 0:
            continue
        out.append(
            f"{r.name}: {r.lost_ms:.3f} ms ({r.lost_ms / total:.0%} of the pass) above its "
            f"roofline, which it reaches to {r.roofline_share:.0%}"
        )
    return out
