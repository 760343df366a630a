"""A graph of transformer blocks cut into parts that run one after another, a block each.

Nodes are named by module, ``blocks.7.self_attn.q/MatMul_310``, so a cut needs no shapes: a node
belongs to its block or, without one, to the latest part that it reads from. What only unpacks a
stored weight goes where the weight is read. A part holds nothing but references to its weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx
import onnx_ir as ir

_BLOCK = re.compile(r"blocks\.(\d+)\b")
_AFTER = re.compile(r"(head|norm)\b")  # modules behind the last block


@dataclass(frozen=True)
class Stage:
    """One part. ``keep``: tensors made so far that a later part still reads."""

    name: str
    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keep: frozenset[str]


def cut(model: ir.Model) -> list[Stage]:
    """The parts of a graph in the order in which they run: before, each block, after."""
    proto = ir.to_proto(model)
    graph = proto.graph
    numbers = _part_numbers(graph)
    wanted = {o.name for o in graph.output}
    infos = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    constants = {t.name: t for t in graph.initializer}
    made_in = {o: numbers[i] for i, n in enumerate(graph.node) for o in n.output if o}
    last_read: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in node.input:
            last_read[name] = max(last_read.get(name, -1), numbers[i])
    stages = []
    for number in sorted(set(numbers)):
        nodes = [n for i, n in enumerate(graph.node) if numbers[i] == number]
        made = {o for n in nodes for o in n.output if o}
        read = dict.fromkeys(i for n in nodes for i in n.input if i and i not in made)
        inputs = tuple(n for n in read if n not in constants)
        outputs = tuple(o for o in dict.fromkeys(o for n in nodes for o in n.output if o)
                        if o in wanted or last_read.get(o, -1) > number)  # fmt: skip
        part = onnx.ModelProto()
        part.CopyFrom(proto)
        part.graph.Clear()
        part.graph.name = f"part_{number}"
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(constants[n] for n in read if n in constants)
        part.graph.input.extend(infos[n] for n in inputs)
        part.graph.output.extend(infos[n] for n in outputs)
        stages.append(
            Stage(
                f"part {number + 1}",
                part.SerializeToString(),
                inputs,
                outputs,
                frozenset(n for n, m in made_in.items() if m <= number < last_read.get(n, -1)),
            )
        )
    return stages


def _part_numbers(graph: onnx.GraphProto) -> list[int]:
    """The part of each node: -1 before the blocks, their number, then one more."""
    blocks = [_BLOCK.match(n.name) for n in graph.node]
    count = 1 + max((int(m[1]) for m in blocks if m), default=-1)
    constants = {t.name for t in graph.initializer}
    made_in: dict[str, int] = {}
    numbers: list[int] = []
    for node, block in zip(graph.node, blocks, strict=True):
        number = max((made_in[i] for i in node.input if i in made_in), default=-1)
        if block:
            number = max(number, int(block[1]))
        elif _AFTER.match(node.name):
            number = count
        numbers.append(number)
        unpacked = node.op_type == "Cast" and node.input[0] in constants
        if not unpacked:
            made_in |= dict.fromkeys(node.output, number)
    first_read: dict[str, int] = {}
    for i in reversed(range(len(numbers))):
        node = graph.node[i]
        if node.op_type == "Cast" and node.input[0] in constants:
            numbers[i] = first_read.get(node.output[0], numbers[i])
        for name in node.input:
            first_read[name] = min(first_read.get(name, count), numbers[i])
    return numbers
