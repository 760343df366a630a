"""What binding an output to its input's buffer really does, and the pixel conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_factory import micro_stream
from toy_bundle import make_bundle

from liveedit.bundle import GraphSpec, Manifest
from liveedit.errors import BackendError
from liveedit.runtime.backend import CHUNK, SEED, Array
from liveedit.runtime.noise import normal
from liveedit.runtime.null_backend import NullBackend
from liveedit.runtime.onnx_backend import OnnxBackend, aligned_zeros
from liveedit.runtime.pixel_format import FrameLayout


def fill(
    backend: OnnxBackend, spec: GraphSpec, binding: dict[str, str], manifest: Manifest
) -> None:
    """Random inputs; 5 kept tokens of the third chunk."""
    rng = np.random.default_rng(1)
    tokens = manifest.stream.block_seq_length
    keep = np.array([0, 3, 7, 8, 17], dtype=np.int32)
    row = np.full(tokens, -1, dtype=np.int32)
    row[keep] = np.arange(5)
    values = {
        "keep_index": keep, "token_row": row, "write_index": 2 * tokens,
        "kv_length": 2 * tokens + 5, "timestep": 500.0, "sigma": 0.5, "sigma_next": 0.25,
    }  # fmt: skip
    for tensor in spec.inputs:
        value = values.get(tensor.name)
        if value is None:
            value = rng.standard_normal(tensor.shape).astype(np.float32)
        backend.write(binding[tensor.name], value)


def test_an_aliased_output_is_written_where_its_input_lies(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path, stream=micro_stream())
    spec = manifest.graphs["fp32"]["dit_step"]
    tokens = manifest.stream.block_seq_length
    results: list[dict[str, Array]] = []
    for in_place in (True, False):
        names = [t.name for t in (*spec.inputs, *spec.outputs)]
        binding = {n: spec.aliases.get(n, n) if in_place else n for n in names}
        backend = OnnxBackend(threads=1)
        made = set()
        for tensor in (*spec.inputs, *spec.outputs):
            buffer = binding[tensor.name]
            if buffer not in made:
                shape = tuple(tokens if isinstance(d, str) else d for d in tensor.shape)
                backend.alloc(buffer, tensor.dtype, shape)
                made.add(buffer)
        fill(backend, spec, binding, manifest)
        before = {a: backend.read(a).copy() for a in spec.aliases.values()}
        addresses = {n: backend.read(n).ctypes.data for n in made}
        engine = backend.load("dit_step", spec, tmp_path / spec.file, [binding])
        engine.run(num_keep=5)
        assert {n: backend.read(n).ctypes.data for n in made} == addresses
        results.append({t.name: backend.read(binding[t.name]).copy() for t in spec.outputs})
        for output, alias in spec.aliases.items():
            changed = (backend.read(alias) != before[alias]).any()
            assert changed == in_place, output
    for name, value in results[0].items():
        assert value.tobytes() == results[1][name].tobytes(), name


def test_pixels() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1).repeat(3, 3)
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        backend = OnnxBackend()
        backend.alloc("frames", "float32", (1, 3, 1, 8, 32))
        backend.frame_ring(1, FrameLayout(8, 32, pixel_range=(low, high)))
        output = backend.output(1)
        out = output.frames(0, 1)
        backend.write_frames("frames", frames)
        pixels = backend.read("frames")
        assert (pixels.min(), pixels.max()) == (low, high)
        np.testing.assert_allclose(
            pixels[0, 1, 0], low + frames[0, ..., 1] / 255 * (high - low), atol=1e-6
        )
        backend.fetch_frames("frames", 0, output, 0)
        assert (out == frames).all()
        backend.write("frames", np.nan)
        backend.fetch_frames("frames", 0, output, 0)
        assert (out == 0).all()
        backend.write("frames", 1e30)
        backend.fetch_frames("frames", 0, output, 0)
        assert (out == 255).all()


def test_rows_noise_and_prefixes() -> None:
    backend = OnnxBackend()
    backend.alloc("kv", "float32", (1, 2, 6, 3))
    backend.alloc("index", "int32", (5,))
    backend.alloc("control", "int64", (8,))
    control = np.zeros(8, dtype=np.int64)
    control[SEED], control[CHUNK] = 1, 2
    backend.write("control", control)
    backend.write_noise("kv", control="control", draw=3)
    assert backend.read("kv").ravel().tolist() == normal(36, seed=1, chunk=2, draw=3).tolist()
    before = backend.read("kv").copy()
    backend.copy("kv", "kv", src_row=4, dst_row=1, count=2)
    assert (backend.read("kv")[:, :, 1:3] == before[:, :, 4:]).all()
    assert (backend.read("kv")[:, :, [0, 3, 4, 5]] == before[:, :, [0, 3, 4, 5]]).all()
    backend.write("index", np.array([4, 5], dtype=np.int32))
    assert backend.read("index").tolist() == [4, 5, 0, 0, 0]
    backend.write("index", 7)
    assert backend.read("index").tolist() == [7] * 5
    backend.zero("index")
    assert not backend.read("index").any()


def test_allocation() -> None:
    for count in range(1, 40):
        assert aligned_zeros((count, 3), np.float16).ctypes.data % 64 == 0
    with pytest.raises(BackendError, match="use a float32 or float16 bundle"):
        OnnxBackend().alloc("x", "bfloat16", (1,))


def test_the_null_backend_counts() -> None:
    backend = NullBackend()
    backend.alloc("x", "bfloat16", (2, 3))
    backend.write("x", 0)
    backend.copy("x", "x", src_row=0, dst_row=1, count=1)
    assert backend.read("x") is backend.read("x")
    assert backend.counts == {"alloc": 1, "write": 1, "copy": 1, "sync": 2}
    assert backend.sizes == {"x": 12}
