"""A network of many equal blocks out of one that was traced with three.

Tracing takes seconds for each block, and all blocks but the first and last give the same nodes. So
three are traced, and the middle one is repeated with the names and weights of the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from liveedit.bundle import TensorSpec

TRACED = 3  # the first, one that is repeated, the last
_MIDDLE, _LAST = 1, 2
_SCOPES = "pkg.torch.onnx.name_scopes"
_IN_BLOCK = re.compile(r"\b(steps|blocks)\.(\d+)\b")
_LISTED = re.compile(r"(.*_)(\d\d)((?:_out)?)")


def unrolled(tensors: Sequence[TensorSpec], blocks: int) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of ``blocks`` blocks, from those of the traced ones."""
    names = _unrolled_names([t.name for t in tensors], blocks)
    known = {t.name: t for t in tensors}
    return tuple(replace(known.get(n) or known[_renumbered(n, _MIDDLE)], name=n) for n in names)


def repeat_middle(model: ir.Model, blocks: int) -> None:
    """Make ``blocks`` blocks of the three that ``model`` has, in place.

    Initializers are named by block, ``blocks.1.ffn.0.weight``, as are inputs and outputs,
    ``k_cache_01``. At most one tensor may go from a block to the next.
    """
    graph = model.graph
    levels = _levels(graph)
    members = [n for n in graph if levels[n] == _MIDDLE]
    entry, leave = _crossing(levels, _MIDDLE), _crossing(levels, _LAST)
    assert (entry is None) == (leave is None), "the middle block only takes or only gives"
    ends = [(n, i) for n, at in levels.items() if at == _LAST for i, v in enumerate(n.inputs)
            if v is not None and v is leave]  # fmt: skip
    order = [_unrolled_names([str(v.name) for v in vs], blocks)
             for vs in (graph.inputs, graph.outputs)]  # fmt: skip
    _rename_last(graph, levels, blocks)
    known = {str(v.name): v for v in (*graph.inputs, *graph.outputs)}
    results = [v for v in graph.outputs if v.producer() in set(members)]
    previous, after = leave, members[-1]
    for block in range(_LAST, blocks - 1):
        copies = {} if entry is None or previous is None else {entry: previous}
        for value in {v: None for n in members for v in n.inputs if v is not None}:
            if value.producer() is None and _block_of(value) == _MIDDLE:
                copies[value] = new = _parallel(value, block)
                if value.is_initializer():
                    graph.register_initializer(new)
                else:
                    known[str(new.name)] = new
        nodes = [_copy(node, copies, block) for node in members]
        graph.insert_after(after, nodes)
        after = nodes[-1]
        previous = None if leave is None else copies[leave]
        for value in results:
            copies[value].name = name = _renumbered(str(value.name), block)
            known[name] = copies[value]
    for node, i in ends:
        node.replace_input_with(i, previous)
    for values, names in zip((graph.inputs, graph.outputs), order, strict=True):
        values[:] = [known[n] for n in names]


def _levels(graph: ir.Graph) -> dict[ir.Node, int]:
    """The last block that a node belongs to or depends on; -1 for what all blocks share."""
    levels: dict[ir.Node, int] = {}
    for node in graph:
        found = [-1]
        for value in node.inputs:
            if value is not None:
                producer = value.producer()
                found.append(_block_of(value) if producer is None else levels[producer])
        levels[node] = max(found)
        if levels[node] >= 0:  # else it is shared, though it may stand where it is first needed
            scopes = node.metadata_props.get(_SCOPES, "")
            levels[node] = max(levels[node], *(int(m[2]) for m in _IN_BLOCK.finditer(scopes)), -1)
    return levels


def _block_of(value: ir.Value) -> int:
    """The block that an initializer or graph input belongs to, or -1."""
    pattern = _IN_BLOCK if value.is_initializer() else _LISTED
    match = pattern.search(str(value.name))
    return int(match[2]) if match else -1


def _crossing(levels: dict[ir.Node, int], level: int) -> ir.Value | None:
    """The tensor that nodes of a block take from the block before."""
    found = {
        value
        for node, at in levels.items()
        if at == level
        for value in node.inputs
        if value is not None and (made := value.producer()) is not None
        if levels[made] == level - 1
    }
    assert len(found) <= 1, [v.name for v in found]
    return next(iter(found), None)


def _parallel(value: ir.Value, block: int) -> ir.Value:
    """What stands in another block for an initializer or input of the middle one."""
    name = str(value.name)
    if value.is_initializer():
        name = _IN_BLOCK.sub(rf"\1.{block}", name)
    else:
        name = _renumbered(name, block)
    return ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)


def _copy(node: ir.Node, copies: dict[ir.Value, ir.Value], block: int) -> ir.Node:
    scopes = node.metadata_props.get(_SCOPES, "")
    new = ir.Node(
        node.domain,
        node.op_type,
        [v if v is None else copies.get(v, v) for v in node.inputs],
        node.attributes.values(),
        overload=node.overload,
        num_outputs=len(node.outputs),
        version=node.version,
        metadata_props={_SCOPES: _IN_BLOCK.sub(rf"\1.{block}", scopes)},
    )
    for old, made in zip(node.outputs, new.outputs, strict=True):
        made.name, made.shape, made.type = f"{old.name}.{block}", old.shape, old.type
        copies[old] = made
    return new


def _rename_last(graph: ir.Graph, levels: dict[ir.Node, int], blocks: int) -> None:
    """The third traced block becomes the last one."""
    for node, level in levels.items():
        if level == _LAST:
            scopes = node.metadata_props.get(_SCOPES, "")
            node.metadata_props[_SCOPES] = _IN_BLOCK.sub(rf"\1.{blocks - 1}", scopes)
    for name, value in list(graph.initializers.items()):
        if _block_of(value) == _LAST:
            del graph.initializers[name]
            value.name = _IN_BLOCK.sub(rf"\1.{blocks - 1}", name)
            graph.register_initializer(value)
    for value in (*graph.inputs, *graph.outputs):
        match = _LISTED.fullmatch(str(value.name))
        if match and int(match[2]) == _LAST:
            value.name = _renumbered(str(value.name), blocks - 1)


def _renumbered(name: str, block: int) -> str:
    match = _LISTED.fullmatch(name)
    assert match, name
    return f"{match[1]}{block:02d}{match[3]}"


def _unrolled_names(names: Sequence[str], blocks: int) -> list[str]:
    out: list[str] = []
    for name in names:
        match = _LISTED.fullmatch(name)
        number = int(match[2]) if match else -1
        if number == _LAST:
            out += [_renumbered(name, block) for block in range(_LAST, blocks)]
        else:
            out.append(name)
    return out
