"""The rollout that training uses is the stream that the runtime runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from liveedit.bundle import read_manifest
from liveedit.distill.rollout import from_generator, stream_edit
from liveedit.export.sources import modules, random_sources
from liveedit.runtime import MaskCachePolicy, StreamEditor
from liveedit.runtime.noise import normal
from liveedit.runtime.tokenizer import PromptTokenizer

CHUNKS = 5  # the window of 3 chunks, sink 1, is full before the end


def philox(block: int, draw: int, shape: Sequence[int]) -> Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(normal(count, seed=0, chunk=block, draw=draw)).view(*shape)


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    from micro import MICRO

    weights = random_sources(MICRO, 0)[0]
    made = modules(MICRO)
    for name, module in made.items():
        module.to_empty(device="cpu").load_state_dict(dict(weights[name]))
        module.eval().requires_grad_(name == "dit")
    return made


def test_training_rollout_equals_the_runtime(
    micro_bundle: Path, networks: dict[str, torch.nn.Module]
) -> None:
    manifest = read_manifest(micro_bundle)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12 * CHUNKS, 48, 64, 3), dtype=np.uint8)
    with StreamEditor.open(
        micro_bundle, threads=1, mask_cache=MaskCachePolicy(mode="off")
    ) as editor:
        editor.set_prompt("turn it red")
        chunks = editor.push(frames) + editor.flush()
    tokenizer = PromptTokenizer(
        micro_bundle / manifest.tokenizer,
        text_len=manifest.model.dit.text_len,
        vocab_size=manifest.model.text.vocab_size,
    )
    embeds = networks["text_encoder"](*map(torch.from_numpy, tokenizer.encode("turn it red")))
    source = networks["codec"].encode(torch.tensor(frames).float().permute(3, 0, 1, 2)[None] / 255)
    last = [len(manifest.stream.denoising_step_list) - 1] * CHUNKS
    edited = stream_edit(networks["dit"], embeds, source, manifest.stream, philox, exits=last)
    assert edited.requires_grad  # as in training
    pixels = networks["codec"].decode(edited.detach())[0].permute(1, 2, 3, 0)
    got = np.concatenate([c.frames for c in chunks])[: len(pixels)]
    np.testing.assert_allclose(got, pixels.numpy() * 255, atol=0.6)
    assert got.std() > 5


def test_only_the_exit_pass_carries_a_gradient_and_the_past_is_detached(
    networks: dict[str, torch.nn.Module],
) -> None:
    from micro import MICRO, MICRO_STREAM

    dit = networks["dit"]
    rng = torch.Generator().manual_seed(0)
    source = torch.randn(1, 16, 6, 6, 8, generator=rng)
    embeds = torch.randn(1, MICRO.dit.text_len, MICRO.dit.text_dim, generator=rng)

    def run(exits: list[int], keep: int) -> list[Tensor]:
        """Gradients of block ``keep`` of the result by the weights."""
        noise = from_generator(torch.Generator().manual_seed(1))
        out = stream_edit(dit, embeds, source, MICRO_STREAM, noise, exits=exits)
        wanted = out[:, :, 3 * keep : 3 * keep + 3].square().sum()
        return list(torch.autograd.grad(wanted, list(dit.parameters()), allow_unused=True))

    first = run([0, 0], 0)
    # One pass at t = 1000 over one block: the same gradient as the network called by itself.
    noise = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    v, _ = dit.stream(
        noise, source[:, :, :3], torch.tensor([[1000.0]]).double(), dit.text_kv(embeds), 0, []
    )
    alone = torch.autograd.grad((noise - v).square().sum(), list(dit.parameters()))
    for a, b in zip(first, alone, strict=True):
        assert a is not None
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max() + 1))
    # With no pass of its own to go through, a block's past gives nothing back.
    with torch.no_grad():
        assert not stream_edit(dit, embeds, source, MICRO_STREAM, from_generator(rng)).requires_grad
