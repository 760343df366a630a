"""The function bodies in ONNX Runtime against numpy: bit for bit where the operator moves data."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from liveedit.export.functions import (
    DOMAIN,
    FUNCTIONS,
    NODE_ATTRIBUTES,
    add_functions,
    trt_attention_function,
)

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]


def onnx_type(dtype: np.dtype[Any]) -> int:
    return TensorProto.BFLOAT16 if dtype == BFLOAT16 else helper.np_dtype_to_tensor_dtype(dtype)


def run(op: str, feeds: list[Array | None], num_outputs: int, **attributes: Any) -> list[Array]:
    """One node of the domain in ONNX Runtime; ``None`` is an input left out."""
    names = ["" if v is None else f"in{i}" for i, v in enumerate(feeds)]
    values = {f"in{i}": v for i, v in enumerate(feeds) if v is not None}
    real = next(iter(values.values())).dtype
    outputs = [f"out{i}" for i in range(num_outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, domain=DOMAIN, **attributes)],
        op,
        [helper.make_tensor_value_info(n, onnx_type(v.dtype), v.shape) for n, v in values.items()],
        [
            helper.make_tensor_value_info(
                n, onnx_type(real), ["a", "b", "c", "d"][: values["in0"].ndim]
            )
            for n in outputs
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    add_functions(model, [op])
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for n, v in values.items():
        raw = v.view(np.uint16) if v.dtype == BFLOAT16 else v
        tensor = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, onnx_type(v.dtype))
        binding.bind_ortvalue_input(n, tensor)
    for n in outputs:
        binding.bind_output(n)
    session.run_with_iobinding(binding)
    return [copy_out(v, real) for v in binding.get_outputs()]


def copy_out(value: Any, dtype: np.dtype[Any]) -> Array:
    """numpy() knows no bfloat16, so the bytes are read."""
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, dtype).reshape(value.shape())


def bits(array: Array) -> Array:
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def gather_reference(x: Array, scale: Array, shift: Array, keep_index: Array) -> Array:
    out = np.zeros((1, len(keep_index), x.shape[2]), np.float32)
    for i, t in enumerate(keep_index):
        if 0 <= t < x.shape[1]:
            out[0, i] = x[0, t].astype(np.float32) * (1 + scale[0, 0]) + shift[0, 0]
    return out.astype(x.dtype)


def scatter_reference(
    x: Array, update: Array, store: Array, gate: Array, token_row: Array
) -> list[Array]:
    store_out = store.copy()
    for t, r in enumerate(token_row):
        if 0 <= r < update.shape[1]:
            store_out[0, t] = update[0, r]
    y = x.astype(np.float32) + store_out.astype(np.float32) * gate
    return [y.astype(x.dtype), store_out]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "width"), [(1, 8), (13, 24), (37, 7)])
def test_gather_bits(dtype: np.dtype[Any], length: int, width: int) -> None:
    rng = np.random.default_rng(length)
    x = rng.normal(size=(1, length, width)).astype(dtype)
    scale, shift = rng.normal(size=(2, 1, 1, width)).astype(np.float32)
    extremes = [-1, length, -length - 3, 2**31 - 1, -(2**31), 0, length - 1]
    keep_index = np.r_[rng.integers(0, length, 9), extremes].astype(np.int32)
    (out,) = run("MaskCacheGather", [x, scale, shift, keep_index], 1, **NODE_ATTRIBUTES)
    np.testing.assert_array_equal(bits(out), bits(gather_reference(x, scale, shift, keep_index)))
    assert not out[0, 9:14].any()
    assert out[0, 14:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "count", "width"), [(1, 1, 8), (13, 4, 24), (37, 37, 7)])
def test_scatter_bits(dtype: np.dtype[Any], length: int, count: int, width: int) -> None:
    rng = np.random.default_rng(length)
    x, store = rng.normal(size=(2, 1, length, width)).astype(dtype)
    update = rng.normal(size=(1, count, width)).astype(dtype)
    gate = rng.normal(size=(1, 1, width)).astype(np.float32)
    token_row = rng.integers(-2, count + 2, length).astype(np.int32)
    token_row[:2] = [count - 1, 2**31 - 1][: len(token_row[:2])]
    outs = run("MaskCacheScatter", [x, update, store, gate, token_row], 2, **NODE_ATTRIBUTES)
    wants = scatter_reference(x, update, store, gate, token_row)
    for out, want in zip(outs, wants, strict=True):
        np.testing.assert_array_equal(bits(out), bits(want))


def attention_reference(q: Array, k: Array, v: Array, lengths: Array) -> Array:
    """Softmax over the first ``lengths[b]`` keys, in float64. The query is already scaled."""
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)
    unseen = np.arange(k.shape[2]) >= lengths[:, None, None, None]
    scores = np.where(unseen, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out: Array = (weights / weights.sum(-1, keepdims=True)) @ v.astype(np.float64)
    return out


@pytest.mark.parametrize("length", [1, 5, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float16, 2e-3)])
def test_attention_honours_lengths(dtype: type, tolerance: float, length: int) -> None:
    rng = np.random.default_rng(length)
    q = (rng.normal(size=(1, 3, 6, 8)) / np.sqrt(8)).astype(dtype)
    k, v = rng.normal(size=(2, 1, 3, 16, 8)).astype(dtype)
    lengths = np.array([length], np.int32)
    (out,) = run("TRT_Attention", [q, k, v, None, None, lengths], 1)
    want = attention_reference(q, k, v, lengths)
    assert np.abs(out - want).max() < tolerance
    k[:, :, length:] = 100
    v[:, :, length:] = 100
    (again,) = run("TRT_Attention", [q, k, v, None, None, lengths], 1)
    np.testing.assert_array_equal(out, again)


def test_attention_needs_opset_24() -> None:
    with pytest.raises(ValueError, match="needs opset 24"):
        trt_attention_function(23)


def test_add_functions_twice_adds_once() -> None:
    model = helper.make_model(
        helper.make_graph([], "empty", [], []), opset_imports=[helper.make_opsetid("", 24)]
    )
    add_functions(model)
    add_functions(model)
    assert sorted(f.name for f in model.functions) == sorted(FUNCTIONS)
    assert [o.domain for o in model.opset_import].count(DOMAIN) == 1
