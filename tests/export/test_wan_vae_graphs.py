"""The Wan VAE's ONNX graphs as a stream, and their form that engine builders need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from micro import MICRO_STREAM, MICRO_WAN

from liveedit.bundle import read_manifest
from liveedit.export.sources import random_sources
from liveedit.models.wan_vae import WanVAE

GRAPHS = ("encode_first", "encode_next", "decode_first", "decode_next")
HEIGHT_PX, WIDTH_PX = MICRO_STREAM.height_px, MICRO_STREAM.width_px


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_suit_builders(micro_wan_bundle: Path, name: str) -> None:
    model = onnx.load(micro_wan_bundle / f"graphs/{name}.fp32.onnx", load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert {"Conv", "MatMul", "Softmax"} <= kinds
    assert not kinds & {"Attention", "ScaledDotProductAttention"}, "no engine fuses so wide a head"
    read = {tensor for node in model.graph.node for tensor in node.input}
    assert {i.name for i in model.graph.input} <= read, "builders drop inputs that nothing reads"
    constants = {i.name for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":  # quantisers look for the weight right at the convolution
            assert node.input[1] in constants, node.name


def stream(root: Path, half: str, groups: list[torch.Tensor]) -> np.ndarray:
    """Every step of the encoder or decoder in ONNX Runtime, joined in time."""
    specs = read_manifest(root).graphs["fp32"]
    outputs, caches = [], None
    for group in groups:
        spec = specs[f"{half}_{'next' if outputs else 'first'}"]
        session = ort.InferenceSession(root / spec.file, providers=["CPUExecutionProvider"])
        if caches is None:
            caches = [np.zeros(tuple(map(int, i.shape)), np.float32) for i in spec.inputs[1:]]
        names = [i.name for i in spec.inputs]
        output, *caches = session.run(
            [o.name for o in spec.outputs], dict(zip(names, [group.numpy(), *caches], strict=True))
        )
        outputs.append(output)
    return np.concatenate(outputs, axis=2)


@torch.no_grad()
def test_the_stream_equals_torch_in_one_shot(micro_wan_bundle: Path) -> None:
    assert MICRO_WAN.wan_vae is not None
    vae = WanVAE(MICRO_WAN.wan_vae)
    vae.load_state_dict(dict(random_sources(MICRO_WAN, 0)[0]["codec"]))
    frames = torch.rand(1, 3, 13, HEIGHT_PX, WIDTH_PX, generator=torch.Generator().manual_seed(3))
    latents = vae.encode(frames)
    got = stream(micro_wan_bundle, "encode", list(torch.split(frames, [1, 4, 4, 4], dim=2)))
    np.testing.assert_allclose(got, latents.numpy(), rtol=1e-4, atol=1e-4)
    got = stream(micro_wan_bundle, "decode", list(torch.split(latents, 1, dim=2)))
    np.testing.assert_allclose(got, vae.decode(latents).numpy(), rtol=1e-4, atol=1e-4)
