"""The tiny codec: published layout, streaming against one pass, and the pixel conventions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from liveedit.config import TAEHVConfig
from liveedit.models.taehv import LEADING_FRAMES, TAEHV, trim_growth

SMALL = TAEHVConfig(encoder_width=6, decoder_widths=(10, 8, 6, 4), pixel_convention="native")
HEIGHT, WIDTH = 24, 40


def model(config: TAEHVConfig = SMALL) -> TAEHV:
    torch.manual_seed(0)
    return TAEHV(config).eval()


def clip(num_frames: int) -> Tensor:
    return torch.rand(1, 3, num_frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def test_default_layout_is_the_published_one() -> None:
    with torch.device("meta"):
        state = TAEHV(TAEHVConfig()).state_dict()
    assert len(state) == 128
    assert sum(t.numel() for t in state.values()) == 11_315_539
    assert sum(t.numel() for k, t in state.items() if k.startswith("encoder.")) == 1_470_928
    expected = {
        "encoder.0.weight": (64, 3, 3, 3),
        "encoder.0.bias": (64,),
        "encoder.2.conv.weight": (64, 128, 1, 1),
        "encoder.3.weight": (64, 64, 3, 3),
        "encoder.4.conv.0.weight": (64, 128, 3, 3),
        "encoder.12.conv.weight": (64, 64, 1, 1),
        "encoder.17.weight": (16, 64, 3, 3),
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.5.conv.4.bias": (256,),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.14.weight": (64, 128, 3, 3),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.weight": (3, 64, 3, 3),
    }
    assert {k: tuple(state[k].shape) for k in expected} == expected
    for key in (
        "encoder.3",
        "encoder.13",
        "decoder.8",
        "decoder.14",
        "decoder.20",
        "decoder.19.conv",
    ):
        assert f"{key}.bias" not in state


@pytest.mark.parametrize("num_frames", [1, 4, 5, 13])
def test_frame_counts(num_frames: int) -> None:
    latent = model().encode(clip(num_frames))
    n = -(-num_frames // 4)
    assert latent.shape == (1, 16, n, HEIGHT // 8, WIDTH // 8)
    assert model().decode(latent).shape == (1, 3, 4 * n - 3, HEIGHT, WIDTH)


def test_a_short_tail_repeats_the_last_frame() -> None:
    frames = clip(6)
    filled = torch.cat([frames, frames[:, :, -1:], frames[:, :, -1:]], 2)
    assert torch.equal(model().encode(frames), model().encode(filled))


@torch.no_grad()
def test_streaming_equals_one_pass() -> None:
    net, frames = model(), clip(20)
    one_pass = net.encode(frames)
    caches = [torch.zeros(s) for s in net.encode_cache_shapes(HEIGHT, WIDTH)]
    latents = []
    for group in torch.split(frames, 4, dim=2):
        latent, caches = net.encode_step(group, caches)
        assert [tuple(c.shape) for c in caches] == net.encode_cache_shapes(HEIGHT, WIDTH)
        latents.append(latent)
    torch.testing.assert_close(torch.cat(latents, 2), one_pass, atol=1e-5, rtol=1e-5)

    caches = [torch.zeros(s) for s in net.decode_cache_shapes(HEIGHT, WIDTH)]
    outputs = []
    for latent in torch.split(one_pass, 1, dim=2):
        output, caches = net.decode_step(latent, caches)
        assert output.shape == (1, 3, 4, HEIGHT, WIDTH)
        assert [tuple(c.shape) for c in caches] == net.decode_cache_shapes(HEIGHT, WIDTH)
        outputs.append(output)
    streamed = torch.cat(outputs, 2)[:, :, LEADING_FRAMES:]
    torch.testing.assert_close(streamed, net.decode(one_pass), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_latent_sees_a_later_frame_and_clips_do_not_mix() -> None:
    net, frames = model(), clip(12)
    changed = frames.clone()
    changed[:, :, 8:] = 0
    before, after = net.encode(frames), net.encode(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2], after[:, :, 2])
    both = net.encode(torch.cat([changed, frames]))
    torch.testing.assert_close(both, torch.cat([after, before]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_wan_convention_shifts_pixels_on_both_sides() -> None:
    native = model()
    wan = model(dataclasses.replace(SMALL, pixel_convention="wan"))
    wan.load_state_dict(native.state_dict())
    frames = clip(4)
    assert torch.equal(wan.encode(frames), native.encode((frames + 1) / 2))
    latent = torch.randn(1, 16, 2, 3, 5, generator=torch.Generator().manual_seed(2))
    raw = native.decode_raw(latent)
    torch.testing.assert_close(wan.decode(latent), (2 * raw - 1).clamp(0, 1))
    torch.testing.assert_close(native.decode(latent), raw.clamp(0, 1))


def test_taller_growth_weights_keep_their_last_rows() -> None:
    net = model()
    state = net.state_dict()
    key = "decoder.7.conv.weight"
    tall = dict(state) | {key: torch.cat([torch.full_like(state[key], 9.0), state[key]])}
    trimmed = trim_growth(tall, net)
    assert torch.equal(trimmed[key], state[key])
    net.load_state_dict(trimmed)


@torch.no_grad()
def test_steps_can_be_traced() -> None:
    net = model()
    caches = [torch.rand(s) for s in net.decode_cache_shapes(HEIGHT, WIDTH)]

    class Decode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, latent: Tensor, *caches: Tensor) -> tuple[Tensor, list[Tensor]]:
            return self.net.decode_step(latent, list(caches))

    latent = torch.rand(1, 16, 1, HEIGHT // 8, WIDTH // 8)
    program = torch.export.export(Decode(), (latent, *caches))
    frames, out = program.module()(latent, *caches)
    expected, expected_caches = net.decode_step(latent, caches)
    torch.testing.assert_close(frames, expected)
    torch.testing.assert_close(out, expected_caches)
