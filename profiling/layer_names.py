"""From a graph's node names to the words people use: block 7 / self-attention / qkv.

Nodes are named ``<checkpoint module path>/<operator>_<number>``, e.g.
``blocks.7.self_attn.q/MatMul_93``; TensorRT joins the names of what it fused with ``+``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Accounting class of a module path inside a block; the first match wins.
_BLOCK_PARTS = (
    (r"self_attn\.(q|k|v|o)$", "qkvo"),
    (r"self_attn", "self_attention"),
    (r"cross_attn\.(q|k|v|o)$", "cross_projection"),
    (r"cross_attn", "cross_attention"),
    (r"ffn", "ffn"),
)
_WORDS = {
    "self_attn": "self-attention",
    "cross_attn": "cross-attention",
    "ffn": "FFN",
    "ffn.0": "FFN up",
    "ffn.1": "FFN GELU",
    "ffn.2": "FFN down",
}
# Operators of a block that the exporter names by the block alone.
_OPERATORS = {
    "MaskCacheGather": ("self-attention", "gather"),
    "RotaryEmbedding": ("self-attention", "rotary"),
    "TensorScatter": ("self-attention", "KV write"),
    "TRT_Attention": ("self-attention", "attention"),
    "MaskCacheScatter": ("self-attention", "scatter"),
    "Attention": ("cross-attention", "attention"),
    "LayerNormalization": ("norm", ""),
    "RMSNormalization": ("norm", ""),
}
_MATH = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "TRT_Attention", "FusedMatMul"}


@dataclass(frozen=True, kw_only=True)
class LayerName:
    """Where a layer belongs. ``block`` is None outside the blocks."""

    block: int | None
    part: str  # e.g. "self-attention", "FFN up", "head"
    detail: str  # e.g. "q"; "" where the part says it all
    accounting: str  # class of `accounting`, or "pointwise", "gather_scatter", "copy"

    @property
    def text(self) -> str:
        parts = [f"block {self.block}"] if self.block is not None else []
        parts += [self.part] if self.part else []
        parts += [self.detail] if self.detail else []
        return " / ".join(parts) or "step"


def parse_layer(name: str, op_type: str = "") -> LayerName:
    """Place a node or a fused layer. For a fused layer the first part that does arithmetic decides.

    ``op_type`` may be given where the name does not end in it.
    """
    pieces = [p.strip() for p in re.split(r"\s*\+\s*|,", name) if p.strip()] or [name]
    best = min(range(len(pieces)), key=lambda i: (_operator(pieces[i], op_type) not in _MATH, i))
    return _parse_one(pieces[best], op_type)


def _operator(name: str, op_type: str) -> str:
    if op_type:
        return op_type
    return re.sub(r"_\d+$", "", name.split("/")[1] if "/" in name else name)


def _parse_one(name: str, op_type: str) -> LayerName:
    path = name.split("/", 1)[0]  # a fusion's own name may follow the operator's
    operator = _operator(name, op_type)
    match = re.match(r"blocks\.(\d+)(?:\.(.*))?$", path)
    block = int(match[1]) if match else None
    inner = (match[2] or "") if match else path
    part, detail = _part(inner), _detail(inner)
    if block is not None and not inner:
        part, detail = _OPERATORS.get(operator, ("modulation and residual", ""))
    return LayerName(
        block=block,
        part=part,
        detail=detail,
        accounting=_class(inner, operator, block is not None),
    )


def _part(inner: str) -> str:
    if inner in _WORDS:
        return _WORDS[inner]
    head = inner.split(".", 1)[0]
    return _WORDS.get(head, head)


def _detail(inner: str) -> str:
    if inner in _WORDS or "." not in inner:
        return ""
    return inner.split(".", 1)[1]


def _class(inner: str, operator: str, in_block: bool) -> str:
    if operator.startswith("MaskCache"):
        return "gather_scatter"
    if operator in ("TensorScatter", "TRT_KVCacheUpdate"):
        return "copy"
    if operator not in _MATH:
        return "pointwise"
    if operator == "TRT_Attention":
        return "self_attention"
    if operator == "Attention" and in_block and "self_attn" not in inner:
        return "cross_attention"
    if operator in ("Conv", "ConvTranspose") and inner != "patch_embedding":
        return "convolution"
    for pattern, name in _BLOCK_PARTS if in_block else ():
        if re.search(pattern, inner):
            if name == "qkvo" and operator == "Attention":
                return "self_attention"
            return name
    if inner.split(".")[0] in ("patch_embedding", "time_embedding", "time_projection", "head"):
        return "embedding"
    return "attention" if operator == "Attention" else "gemm"
