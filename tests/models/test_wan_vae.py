"""The Wan VAE against diffusers, streaming against one-shot, and the published counts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

from liveedit.config import WanVAEConfig
from liveedit.errors import UsageError
from liveedit.models.wan_vae import LATENT_MEAN, LATENT_STD, WanVAE

# Every width differs from its neighbours, and no side is a power of two.
SMALL = WanVAEConfig(base_dim=8, dim_mult=(1, 2, 3, 3))
HEIGHT_PX, WIDTH_PX = 24, 40


def random_vae(config: WanVAEConfig = SMALL) -> WanVAE:
    torch.manual_seed(0)
    vae = WanVAE(config)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "gamma" in name:
                parameter.uniform_(0.5, 1.5)
    return vae.eval()


def clip(num_frames: int, batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, num_frames, HEIGHT_PX, WIDTH_PX)


def zeros(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [torch.zeros(shape) for shape in shapes]


def stream_encode(vae: WanVAE, frames: Tensor) -> Tensor:
    caches = zeros(vae.encode_cache_shapes(HEIGHT_PX, WIDTH_PX))
    latents = []
    for group in (frames[:, :, :1], *torch.split(frames[:, :, 1:], 4, dim=2)):
        latent, caches = vae.encode_step(group, caches, first=not latents)
        latents.append(latent)
    return torch.cat(latents, dim=2)


def stream_decode(vae: WanVAE, latents: Tensor) -> Tensor:
    caches = zeros(vae.decode_cache_shapes(HEIGHT_PX, WIDTH_PX))
    frames: list[Tensor] = []
    for latent in torch.split(latents, 1, dim=2):
        group, caches = vae.decode_step(latent, caches, first=not frames)
        frames.append(group)
    return torch.cat(frames, dim=2)


@pytest.mark.parametrize(("base_dim", "blocks"), [(8, 2), (12, 2)])
@torch.no_grad()
def test_equals_diffusers(base_dim: int, blocks: int) -> None:
    ours = random_vae(WanVAEConfig(base_dim=base_dim, num_res_blocks=blocks))
    theirs = AutoencoderKLWan(base_dim=base_dim, num_res_blocks=blocks).eval()
    state = {k: v.clone() for k, v in ours.state_dict().items()}
    theirs.load_state_dict(convert_wan_vae_to_diffusers(state), strict=True)
    assert theirs.config.latents_mean == list(LATENT_MEAN)
    assert theirs.config.latents_std == list(LATENT_STD)

    frames = clip(13, batch=2)
    want = theirs.encode(frames).latent_dist.mean
    got = ours.encode_raw(frames)
    assert got.shape == (2, 16, 4, HEIGHT_PX // 8, WIDTH_PX // 8)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()

    latents = torch.randn(2, 16, 4, HEIGHT_PX // 8, WIDTH_PX // 8)
    want = theirs.decode(latents).sample
    got = ours.decode_raw(latents).clamp(-1, 1)
    assert got.shape == (2, 3, 13, HEIGHT_PX, WIDTH_PX)
    assert want.std() > 0.01
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@torch.no_grad()
def test_pixels_and_latents_follow_the_contract() -> None:
    vae = random_vae()
    with torch.no_grad():
        vae.decoder.head[2].weight.mul_(30)  # both clamps are reached
    frames = clip(5)
    mean, std = (torch.tensor(s).view(1, -1, 1, 1, 1) for s in (LATENT_MEAN, LATENT_STD))
    latents = vae.encode(frames)
    torch.testing.assert_close(latents * std + mean, vae.encode_raw(frames))
    raw = vae.decode_raw(latents * std + mean)
    assert raw.min() < 0
    assert raw.max() > 1
    torch.testing.assert_close(vae.decode(latents), raw.clamp(0, 1))


@torch.no_grad()
def test_streaming_equals_one_shot_bit_for_bit() -> None:
    vae = random_vae()
    frames = clip(9 + 12 + 12)
    latents = vae.encode(frames)
    assert latents.shape[2] == 9
    assert torch.equal(stream_encode(vae, frames), latents)
    decoded = vae.decode(latents)
    assert decoded.shape == frames.shape
    assert torch.equal(stream_decode(vae, latents), decoded)


@torch.no_grad()
def test_the_past_is_kept_and_the_future_is_not_seen() -> None:
    vae = random_vae()
    frames = clip(13)
    latents = vae.encode(frames)
    changed = frames.clone()
    changed[:, :, 5:9] = 1 - changed[:, :, 5:9]
    others = vae.encode(changed)
    assert torch.equal(others[:, :, :2], latents[:, :, :2])
    assert not torch.equal(others[:, :, 2], latents[:, :, 2])
    assert not torch.equal(others[:, :, 3], latents[:, :, 3])


@torch.no_grad()
def test_steps_leave_their_inputs_alone() -> None:
    vae = random_vae()
    caches = [torch.rand(shape) for shape in vae.decode_cache_shapes(HEIGHT_PX, WIDTH_PX)]
    before = copy.deepcopy(caches)
    _, new = vae.decode_step(torch.randn(1, 16, 1, 3, 5), caches, first=False)
    assert all(torch.equal(a, b) for a, b in zip(caches, before, strict=True))
    assert [c.shape for c in new] == [c.shape for c in caches]


@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_cache_shapes_are_the_same_before_and_after(first: bool) -> None:
    vae = random_vae()
    encode, decode = (
        vae.encode_cache_shapes(HEIGHT_PX, WIDTH_PX),
        vae.decode_cache_shapes(HEIGHT_PX, WIDTH_PX),
    )
    assert (len(encode), len(decode)) == (24, 32)
    _, new = vae.encode_step(clip(1 if first else 4), zeros(encode), first)
    assert [tuple(c.shape) for c in new] == encode
    _, new = vae.decode_step(torch.randn(1, 16, 1, 3, 5), zeros(decode), first)
    assert [tuple(c.shape) for c in new] == decode


def test_cache_bytes_at_real_size() -> None:
    with torch.device("meta"):
        vae = WanVAE(WanVAEConfig())
    encode, decode = (
        sum(int(np.prod(shape)) for shape in shapes) * 2 / 1e9
        for shapes in (vae.encode_cache_shapes(480, 832), vae.decode_cache_shapes(480, 832))
    )
    assert (round(encode, 1), round(decode, 1)) == (1.1, 1.9)  # published, GB in half precision


@torch.no_grad()
def test_two_dimensional_form_gives_the_same_numbers() -> None:
    vae = random_vae()
    frames = clip(13)
    latents = vae.encode(frames)
    decoded = vae.decode(latents)
    vae.fold_time_()
    assert {p.dim() for n, p in vae.named_parameters() if n.endswith("weight")} == {4}
    torch.testing.assert_close(vae.encode(frames), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.decode(latents), decoded, rtol=1e-5, atol=1e-5)
    assert torch.equal(stream_decode(vae, latents), vae.decode(latents))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_close_and_finite(dtype: torch.dtype) -> None:
    vae = random_vae()
    frames = clip(5)
    latents = vae.encode(frames)
    half = copy.deepcopy(vae).to(dtype)
    got = half.encode(frames.to(dtype))
    assert got.dtype == dtype
    assert (got.float() - latents).norm() < 0.05 * latents.norm()
    norm = half.encoder.head[0]
    x = torch.zeros(1, norm.gamma.shape[0], 2, 2, dtype=dtype)
    assert torch.equal(norm(x), x)
    x[:, 0] = torch.finfo(dtype).max
    assert norm(x).isfinite().all()


def test_refuses_a_wrong_frame_count() -> None:
    with pytest.raises(UsageError, match=r"1 \+ 4k frames, got 4"):
        random_vae().encode(clip(4))


def test_official_counts_and_keys() -> None:
    with torch.device("meta"):
        state = WanVAE(WanVAEConfig()).state_dict()
    assert len(state) == 194
    assert sum(v.numel() for v in state.values()) == 126_892_531
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name, shape in {
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
        "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.downsamples.6.shortcut.bias": (384,),
        "encoder.downsamples.8.time_conv.bias": (384,),
        "encoder.downsamples.10.residual.6.weight": (384, 384, 3, 3, 3),
        "encoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
        "encoder.middle.1.norm.gamma": (384, 1, 1),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "encoder.middle.1.proj.bias": (384,),
        "encoder.head.0.gamma": (384, 1, 1, 1),
        "encoder.head.2.weight": (32, 384, 3, 3, 3),
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.weight": (16, 16, 1, 1, 1),
        "decoder.conv1.weight": (384, 16, 3, 3, 3),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.7.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
        "decoder.upsamples.14.residual.2.weight": (96, 96, 3, 3, 3),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
    }.items():
        assert shapes[name] == shape, name
