"""A plan's layer table under our names, with measured times where a GPU gave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from liveedit.config import from_dict
from liveedit.engines.layers import Layer, LayerTable
from liveedit.errors import UsageError
from liveedit.profiling.layer_names import LayerName, parse_layer
from liveedit.profiling.layer_table import Grouping, LayerTime, group_name
from liveedit.profiling.text_table import text_table


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """A group of a plan's layers."""

    name: str
    layers: int
    classes: str  # e.g. "gemm 2, pointwise 1"
    types: str  # types it computes in
    constant_mb: float


def read_layers(path: Path) -> list[Layer]:
    """Layers of the first optimisation profile of a ``*.layers.json``.

    Raises:
        UsageError: the file cannot be read or is no layer table.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"layer table {path} cannot be read: {error}. `liveedit build` writes it beside a plan"
        ) from None
    table = from_dict(LayerTable, data, path.name)
    if not table.layers:
        raise UsageError(f"layer table {path} is empty; build the plan again")
    return table.profile(table.layers[0].profile)


def layer_name(layer: Layer) -> LayerName:
    """Our name of a fused layer: of the graph nodes it came from, those that multiply decide."""
    return parse_layer(" + ".join(layer.onnx) if layer.onnx else layer.name)


def plan_rows(layers: Sequence[Layer], by: Grouping) -> list[PlanRow]:
    """Layers grouped in execution order of each group's first."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(group_name(layer_name(layer), by), []).append(layer)
    return [
        PlanRow(
            name=name,
            layers=len(members),
            classes=_counts([m.cls for m in members]),
            types=_counts([m.dtype for m in members]),
            constant_mb=sum(t.bytes for m in members for t in m.constants) / 1e6,
        )
        for name, members in groups.items()
    ]


def _counts(words: Sequence[str]) -> str:
    return ", ".join(f"{w} {words.count(w)}" for w in dict.fromkeys(words))


def plan_text(rows: Sequence[PlanRow]) -> str:
    """The table for people."""
    cells = [(r.name, str(r.layers), r.classes, r.types, f"{r.constant_mb:.2f}") for r in rows]
    return text_table(("layer", "count", "kernels", "types", "weights MB"), cells, left=(0, 2, 3))


def read_times(path: Path) -> dict[str, float]:
    """Layer name -> mean ms, from a list of ``{"name", "averageMs"}`` objects.

    Raises:
        UsageError: the file is not such a list.
    """
    try:
        data = json.loads(path.read_text())
        return {str(d["name"]): float(d["averageMs"]) for d in data if "name" in d}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a list of layer times: {error!r}") from None


def plan_times(layers: Sequence[Layer], times: Mapping[str, float]) -> list[LayerTime]:
    """A plan's layers with their measured times.

    Raises:
        UsageError: nothing is timed, or a layer that the plan lacks.
    """
    known = {layer.name: layer for layer in layers}
    foreign = sorted(set(times) - set(known))
    if not times or foreign:
        wrong = f"name layer {foreign[0]!r}, which the plan lacks" if foreign else "are empty"
        raise UsageError(f"the layer times {wrong}; take them from the plan of this layer table")
    return [
        LayerTime(
            layer=layer_name(layer),
            ms=times[name],
            bytes=sum(t.bytes for t in (*layer.inputs, *layer.constants, *layer.outputs)),
        )
        for name, layer in known.items()
        if name in times
    ]
