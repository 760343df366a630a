"""Compare a graph of a bundle in ONNX Runtime with its torch module."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import torch
from torch import Tensor, nn

from liveedit.bundle import GraphSpec, Manifest, read_manifest
from liveedit.export.graphs import PRECISIONS, dit_inputs, graphs
from liveedit.export.sources import random_sources
from liveedit.export.trace import flat_names, flat_tensors

# float16 has 10 fraction bits; a few layers of it against the same layers in another order.
TOLERANCE = {"fp32": dict(rtol=2e-4, atol=2e-5), "fp16": dict(rtol=3e-2, atol=3e-2)}


def loaded(manifest: Manifest, name: str, precision: str) -> nn.Module:
    """The module behind a graph, with the weights that `random_sources` of seed 0 gave it."""
    model = manifest.model
    graph = graphs(model, manifest.stream)[name]
    weights = random_sources(model, 0)[0][graph.weights]
    module = graph.module(PRECISIONS[precision])
    inner: nn.Module = next(
        (getattr(module, n) for n in ("dit", "codec") if hasattr(module, n)), module
    )
    own = inner.state_dict()
    inner.load_state_dict({k: weights[k].to(own[k].dtype) for k in own})
    return module.eval()


def session(root: Path, spec: GraphSpec) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(root / spec.file, options, providers=["CPUExecutionProvider"])


def compare(root: Path, name: str, precision: str, inputs: dict) -> None:
    """Run a graph of a bundle and its torch module on the same inputs."""
    manifest = read_manifest(root)
    spec = manifest.graphs[precision][name]
    feeds = {n: t.numpy() for n, t in zip(flat_names(inputs), flat_tensors(inputs), strict=True)}
    assert [s.name for s in spec.inputs] == list(feeds)
    actual = session(root, spec).run([o.name for o in spec.outputs], feeds)
    with torch.no_grad():
        produced = loaded(manifest, name, precision)(**inputs)
    if isinstance(produced, Tensor):
        produced = (produced,)
    expected = [t for p in produced for t in (p if isinstance(p, list | tuple) else [p])]
    for out, got, want in zip(spec.outputs, actual, expected, strict=True):
        assert list(got.shape) == list(out.shape), out.name
        torch.testing.assert_close(
            torch.from_numpy(got).float(),
            want.float(),
            **TOLERANCE[precision],
            msg=lambda m, n=out.name: f"{n}: {m}",
        )


def randomised(inputs: dict, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def fill(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        return torch.randn(t.shape, generator=generator).to(t.dtype)

    return {k: [fill(t) for t in v] if isinstance(v, list) else fill(v) for k, v in inputs.items()}


def step_case(root: Path, precision: str, keep: list[int], padding: int, write: int) -> dict:
    """Random caches and latents; ``keep`` tokens kept, ``padding`` rows of padding after them."""
    manifest = read_manifest(root)
    inputs = randomised(dit_inputs(manifest.model, manifest.stream, PRECISIONS[precision]))
    row = torch.full((manifest.stream.block_seq_length,), -1, dtype=torch.int32)
    row[torch.tensor(keep)] = torch.arange(len(keep), dtype=torch.int32)
    angles = torch.randn_like(inputs["rope_cos"])
    return inputs | {
        "timestep": torch.tensor([500.0]),
        "sigma": torch.tensor([0.5]),
        "sigma_next": torch.tensor([0.25]),
        "rope_cos": angles.cos(),
        "rope_sin": angles.sin(),
        "keep_index": torch.tensor(keep + [-1] * padding, dtype=torch.int32),
        "token_row": row,
        "write_index": torch.tensor([write]),
        "kv_length": torch.tensor([write + len(keep)], dtype=torch.int32),
    }
