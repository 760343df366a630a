"""How the exporter writes the custom operators of `liveedit.models.ops` as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import values

from liveedit.export.functions import DOMAIN, DOMAIN_VERSION, NODE_ATTRIBUTES
from liveedit.models import ops as _ops  # noqa: F401  registers the torch operators

OPSET = 24

_T, _F, _I = "T", "tensor(float)", "tensor(int32)"
_REAL = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


def _custom(
    name: str, inputs: dict[str, str], outputs: dict[str, str], attributes: tuple[str, ...] = ()
) -> values.Op:
    schema_type = onnx.defs.OpSchema
    optional = schema_type.FormalParameterOption.Optional
    schema = schema_type(
        name,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[
            schema_type.FormalParameter(n.rstrip("?"), t, param_option=optional)
            if n.endswith("?")
            else schema_type.FormalParameter(n, t)
            for n, t in inputs.items()
        ],
        outputs=[schema_type.FormalParameter(n, t) for n, t in outputs.items()],
        type_constraints=[("T", _REAL, "")],
        attributes=[
            schema_type.Attribute(a, schema_type.AttrType.STRING, "", required=False)
            for a in attributes
        ],
    )
    return values.Op(values.Opset(DOMAIN, DOMAIN_VERSION), name, schema)


def _standard(name: str) -> values.Op:
    schema = onnx.defs.get_schema(name, OPSET, "")
    return values.Op(values.Opset("", OPSET), name, schema)


_GATHER = _custom(
    "MaskCacheGather",
    {"x": _T, "scale": _F, "shift": _F, "keep_index": _I},
    {"y": _T},
    tuple(NODE_ATTRIBUTES),
)
_SCATTER = _custom(
    "MaskCacheScatter",
    {"x": _T, "update": _T, "store": _T, "gate": _F, "token_row": _I},
    {"y": _T, "store_out": _T},
    tuple(NODE_ATTRIBUTES),
)
_ATTENTION = _custom(
    "TRT_Attention",
    {"query": _T, "key": _T, "value": _T, "mask?": _T, "query_lengths?": _I, "kv_lengths?": _I},
    {"output": _T},
)
_KV_UPDATE = _standard("TensorScatter")
_ROTARY = _standard("RotaryEmbedding")


def _gather(x: Any, scale: Any, shift: Any, keep_index: Any) -> Any:
    return _GATHER(x, scale, shift, keep_index, **NODE_ATTRIBUTES)


def _scatter(x: Any, update: Any, store: Any, gate: Any, token_row: Any) -> Any:
    return _SCATTER(x, update, store, gate, token_row, **NODE_ATTRIBUTES)


def _kv_update(cache: Any, update: Any, write_index: Any) -> Any:
    return _KV_UPDATE(cache, update, write_index, axis=-2)


def _kv_attention(q: Any, k: Any, v: Any, kv_length: Any) -> Any:
    return _ATTENTION(q, k, v, None, None, kv_length)


def _rotary(x: Any, cos: Any, sin: Any) -> Any:
    return _ROTARY(x, cos, sin, interleaved=1)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    namespace = torch.ops.liveedit
    return {
        namespace.mask_cache_gather.default: _gather,
        namespace.mask_cache_scatter.default: _scatter,
        namespace.kv_update.default: _kv_update,
        namespace.kv_attention.default: _kv_attention,
        namespace.rotary.default: _rotary,
    }
