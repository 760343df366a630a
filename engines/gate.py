"""The gate: does a built plan contain what its graph promises? Needs no GPU.

A builder may accept a graph and still drop an operand, miss a fusion or add conversions. Each of
these shows in the final layer table or in a warning, and each is a finding here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from liveedit.config import DiTConfig, StreamConfig
from liveedit.engines.graph_facts import GraphFacts
from liveedit.engines.layers import Layer, LayerTable

# A conversion of less than this is bookkeeping of indices, not data on the hot path.
SMALL_BYTES = 64 * 1024
EIGHT_BIT = ("Int8", "FP8")
DROPPED = re.compile(r"unused input|is unused or used only at compile-time", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a plan may use beyond what its graph states."""

    activation_bytes: int | None = None
    weights_slack: float = 0.02  # share of the graph's weights that may be added or folded away
    weights_slack_bytes: int = 512 * 1024  # convolutions pad their channels
    float_gemm_rows: int = 8  # an FP32 product of more rows is no island in an FP16 graph
    conversions: int = 1  # standalone casts of more than SMALL_BYTES: the step formula is FP32


def step_activation_bound(dit: DiTConfig, stream: StreamConfig) -> int:
    """Bytes of activations that a 16-bit ``dit_step`` may take, for any number of kept tokens.

    One block runs at a time. Its attention holds copies of one K and one V cache beside q, k, v and
    a few full-width tensors; its FFN holds the hidden tensor beside fewer of them.
    """
    tokens = 2 * stream.block_seq_length * dit.dim
    caches = 2 * 2 * stream.kv_cache_length * dit.dim
    hidden = 2 * stream.block_seq_length * dit.ffn_dim
    return max(caches + 6 * tokens, hidden + 6 * tokens) + 16 * 2**20


def dropped_operands(warnings: tuple[str, ...]) -> list[str]:
    """Warnings that say an input has no effect: the plan would compute something else."""
    return [w for w in warnings if DROPPED.search(w)]


def findings(
    facts: GraphFacts, table: LayerTable, *, plugins: bool, limits: Limits | None = None
) -> list[str]:
    """Every promise of the graph that the plan breaks; empty for a good plan.

    Args:
        plugins: whether the plan was built with the plugins of the custom operators.
    """
    limits = limits or Limits()
    found = [f"an operand is dropped: {w}" for w in dropped_operands(table.warnings)]
    found += _memory(facts, table, limits)
    for index in sorted({layer.profile for layer in table.layers}):
        layers = table.profile(index)
        for line in [
            *_attentions(facts, layers),
            *_projections(facts, layers),
            *_plugins(facts, layers, plugins),
            *_types(facts, layers, limits),
            *_conversions(facts, layers, limits),
        ]:
            found.append(f"profile {index}: {line}")
    return found


def _attentions(facts: GraphFacts, layers: list[Layer]) -> list[str]:
    found = []
    fused = [layer for layer in layers if layer.cls == "attention"]
    most = len(facts.attentions) + len(facts.softmaxes)
    if not len(facts.attentions) <= len(fused) <= most:
        found.append(
            f"{len(fused)} fused attention kernels for {len(facts.attentions)} attention nodes"
        )
    for fact in facts.attentions:
        own = [layer for layer in fused if fact.node in layer.onnx]
        if len(own) != 1:
            found.append(f"attention {fact.node} is in {len(own)} fused kernels, not 1")
        elif fact.lengths and not _bounded(own[0]):
            found.append(
                f"attention {fact.node} does not read its KV length {fact.lengths!r}: it would "
                "attend to rows that hold nothing"
            )
    return found


def _bounded(layer: Layer) -> bool:
    """Whether a kernel reads one int32, its number of valid keys."""
    return any(t.dtype == "Int32" and t.bytes == 4 for t in layer.inputs)


def _projections(facts: GraphFacts, layers: list[Layer]) -> list[str]:
    found = []
    for fact in facts.attentions:
        for group in fact.projections:
            if not any(layer.cls == "gemm" and set(group) <= set(layer.onnx) for layer in layers):
                found.append(
                    f"the projections {', '.join(group)} of {fact.node} are not one matrix product"
                )
    return found


def _plugins(facts: GraphFacts, layers: list[Layer], plugins: bool) -> list[str]:
    present = [layer for layer in layers if layer.cls == "plugin"]
    found = []
    for operator, nodes in facts.plugins.items():
        for node in nodes:
            count = sum(node in layer.onnx or node in layer.name for layer in present)
            if count != int(plugins):
                found.append(f"{operator} {node} is in {count} plugin layers, not {int(plugins)}")
    return found


def _types(facts: GraphFacts, layers: list[Layer], limits: Limits) -> list[str]:
    found = []
    gemms = [layer for layer in layers if layer.cls == "gemm"]
    for layer in gemms:
        shape = layer.outputs[0].shape if layer.outputs else ()
        rows = shape[-2] if len(shape) > 1 else 1
        if layer.dtype == "Float" and rows > limits.float_gemm_rows:
            found.append(f"{layer.name} is a matrix product of {rows} rows in FP32")
    for node in facts.float_linears:
        types = {layer.dtype for layer in gemms if node in layer.onnx} - {"Float"}
        if types:
            found.append(f"the FP32 linear {node} is computed in {', '.join(sorted(types))}")
    for node in facts.quantised_linears:
        if not any(layer.dtype in EIGHT_BIT and node in layer.onnx for layer in gemms):
            found.append(
                f"the quantised linear {node} has no {' or '.join(EIGHT_BIT)} matrix product"
            )
    for node in facts.quantised_convolutions:
        own = [layer for layer in layers if layer.cls == "conv" and node in layer.onnx]
        if not any(layer.dtype in EIGHT_BIT for layer in own):
            found.append(f"the quantised convolution {node} is not computed in eight bits")
    return found


def conversions(layers: list[Layer]) -> list[Layer]:
    """Standalone layers that only convert type or format, and are not small.

    A fused kernel named Cast whose types are equal copies a tensor to an output.
    """
    return [
        layer
        for layer in layers
        if layer.cls == "reformat"
        and layer.kind != "NoOp"
        and (not layer.ops or ("Cast" in layer.ops and _changes_type(layer)))
        and sum(t.bytes for t in layer.outputs) > SMALL_BYTES
    ]


def _changes_type(layer: Layer) -> bool:
    return {t.dtype for t in layer.inputs} != {t.dtype for t in layer.outputs}


def copies(layers: list[Layer]) -> list[Layer]:
    """Standalone layers that only move data."""
    return [layer for layer in layers if layer.cls == "reformat" and "Cast" not in layer.ops]


def _conversions(facts: GraphFacts, layers: list[Layer], limits: Limits) -> list[str]:
    found = conversions(layers)
    if len(found) <= limits.conversions:
        return []
    names = ", ".join(layer.name for layer in found[:5])
    return [f"{len(found)} standalone casts or reformats, {limits.conversions} allowed: {names}"]


def _memory(facts: GraphFacts, table: LayerTable, limits: Limits) -> list[str]:
    found = []
    slack = limits.weights_slack * facts.weights_bytes + limits.weights_slack_bytes
    if abs(table.weights_bytes - facts.weights_bytes) > slack:
        found.append(
            f"the plan holds {table.weights_bytes} bytes of weights, the graph "
            f"{facts.weights_bytes}"
        )
    most = max(table.activation_bytes, default=0)
    if limits.activation_bytes is not None and most > limits.activation_bytes:
        found.append(f"activations take {most} bytes, predicted {limits.activation_bytes}")
    return found
