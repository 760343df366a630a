"""FunctionProto twins of the custom operators: what a graph means where no plugin is loaded.

The exporter writes nodes of domain ``liveedit`` (and ``TRT_Attention``) and appends these bodies of
standard operators. ONNX Runtime runs the bodies; TensorRT takes the plugin, or its built-in
attention importer, and inlines the body only where the plugin is not registered. Results equal the
CUDA kernels bit for bit (docs/plugins.md states the arithmetic).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
from onnx import parser

DOMAIN = "liveedit"
DOMAIN_VERSION = 1
PLUGIN_NAMESPACE = "liveedit"
PLUGIN_VERSION = "1"

# TensorRT prefers the plugin over the function only if the node carries both.
NODE_ATTRIBUTES = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": PLUGIN_VERSION}


def _parse(text: str, opset: int) -> onnx.FunctionProto:
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
    return parser.parse_function(header + text)


def mask_cache_gather_function(opset: int = 24) -> onnx.FunctionProto:
    """``MaskCacheGather(x, scale, shift, keep_index) -> y``: kept rows, modulated.

    Inputs: ``x`` [1, L, D] real (a LayerNorm output); ``scale``, ``shift`` [1, 1, D] float32;
    ``keep_index`` [K] int32. Output: ``y`` [1, K, D] of x's type,
    ``y[i] = round(x[keep_index[i]] * (1 + scale) + shift)`` in float32, each step rounded.
    A row whose index lies outside [0, L) is zero. L must be at least 1.
    """
    return _parse(
        """
        MaskCacheGather <plugin_namespace, plugin_version> (x, scale, shift, keep_index) => (y)
        {
            zero_index = Constant <value_ints = [0]> ()
            one = Constant <value_float = 1.0> ()
            zero = Constant <value_float = 0.0> ()
            length = Shape <start = 1, end = 2> (x)
            index = Cast <to = 7> (keep_index)
            above = GreaterOrEqual (index, zero_index)
            below = Less (index, length)
            valid = And (above, below)
            safe = Where (valid, index, zero_index)
            rows = Gather <axis = 1> (x, safe)
            wide = Cast <to = 1> (rows)
            factor = Add (scale, one)
            product = Mul (wide, factor)
            modulated = Add (product, shift)
            column = Constant <value_ints = [1]> ()
            valid_rows = Unsqueeze (valid, column)
            kept = Where (valid_rows, modulated, zero)
            y = CastLike (kept, x)
        }
        """,
        opset,
    )


def mask_cache_scatter_function(opset: int = 24) -> onnx.FunctionProto:
    """``MaskCacheScatter(x, update, store, gate, token_row) -> (y, store_out)``.

    Inputs: ``x`` [1, L, D] real (the residual stream); ``update`` [1, K, D] real, K at least 1;
    ``store`` [1, L, D] real; ``gate`` [1, 1, D] float32; ``token_row`` [L] int32.
    With r = token_row[t]: f = update[r] if 0 <= r < K, else store[t].
    ``y[t] = round(x[t] + f * gate)`` in float32, the product rounded first; ``store_out[t] = f``.
    The selection runs in float32 because ONNX Runtime's CPU provider has no bfloat16 Where.
    """
    return _parse(
        """
        MaskCacheScatter <plugin_namespace, plugin_version> (x, update, store, gate, token_row)
            => (y, store_out)
        {
            zero_index = Constant <value_ints = [0]> ()
            count = Shape <start = 1, end = 2> (update)
            index = Cast <to = 7> (token_row)
            above = GreaterOrEqual (index, zero_index)
            below = Less (index, count)
            kept = And (above, below)
            safe = Where (kept, index, zero_index)
            rows = Gather <axis = 1> (update, safe)
            column = Constant <value_ints = [1]> ()
            kept_rows = Unsqueeze (kept, column)
            wide_rows = Cast <to = 1> (rows)
            wide_store = Cast <to = 1> (store)
            filled = Where (kept_rows, wide_rows, wide_store)
            store_out = CastLike (filled, store)
            gated = Mul (filled, gate)
            residual = Cast <to = 1> (x)
            total = Add (residual, gated)
            y = CastLike (total, x)
        }
        """,
        opset,
    )


def trt_attention_function(opset: int = 24) -> onnx.FunctionProto:
    """``TRT_Attention(query, key, value, "", "", kv_lengths) -> output``: padded attention.

    ``query`` [B, N, Q, H], already multiplied by 1/sqrt(H); ``key``, ``value`` [B, N, S, H];
    ``kv_lengths`` [B] int32, each in [1, S]: keys at and past the length are not seen. Output
    [B, N, Q, H]. TensorRT's own importer of this name wins over this body; ONNX ``Attention`` with
    ``nonpad_kv_seqlen`` would lose the lengths there without a word. ``mask`` and
    ``query_lengths`` exist in TensorRT's signature only: leave both empty. Attention over all keys
    needs no lengths: use ONNX ``Attention``.

    Rows past the longest length are cut off first: ONNX Runtime would compute and mask them, which
    costs more than it does for the rows that count.
    """
    if opset < 24:
        raise ValueError(f"TRT_Attention needs opset 24 (nonpad_kv_seqlen), got {opset}")
    return _parse(
        """
        TRT_Attention <causal_kind, query_form, kv_form, TRT_decomposable>
            (query, key, value, mask, query_lengths, kv_lengths) => (output)
        {
            lengths = Cast <to = 7> (kv_lengths)
            longest = ReduceMax <keepdims = 1> (lengths)
            start = Constant <value_ints = [0]> ()
            axis = Constant <value_ints = [2]> ()
            seen_key = Slice (key, start, longest, axis)
            seen_value = Slice (value, start, longest, axis)
            output = Attention <scale = 1.0> (query, seen_key, seen_value, "", "", "", lengths)
        }
        """,
        opset,
    )


FUNCTIONS: dict[str, Callable[[int], onnx.FunctionProto]] = {
    "MaskCacheGather": mask_cache_gather_function,
    "MaskCacheScatter": mask_cache_scatter_function,
    "TRT_Attention": trt_attention_function,
}


def add_functions(model: onnx.ModelProto, names: Iterable[str] = tuple(FUNCTIONS)) -> None:
    """Append the named function bodies to ``model``, in place, and import their domain.

    The bodies take the opset of the model's standard operators, which ONNX Runtime requires.
    """
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    present = {(f.domain, f.name) for f in model.functions}
    model.functions.extend(FUNCTIONS[n](opset) for n in names if (DOMAIN, n) not in present)
    if all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
