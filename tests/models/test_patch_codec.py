"""The patch codec: exact timing, steps equal to the whole clip, a linear start."""

import torch

from liveedit.config import PatchCodecConfig
from liveedit.models.patch_codec import PatchCodec


def codec() -> PatchCodec:
    torch.manual_seed(0)
    model = PatchCodec(PatchCodecConfig(width=8, num_blocks=2)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.05)
    return model


@torch.no_grad()
def test_steps_equal_the_whole_clip() -> None:
    model, frames = codec(), torch.rand(1, 3, 12, 16, 24)
    latent = model.encode(frames)
    assert latent.shape == (1, 16, 3, 2, 3)
    whole = model.decode(latent)
    assert whole.shape == frames.shape
    shapes = model.decode_cache_shapes(16, 24)
    caches = [torch.zeros(s) for s in shapes]
    for k in range(3):
        part, _ = model.encode_step(frames[:, :, 4 * k : 4 * k + 4], [])
        torch.testing.assert_close(part, latent[:, :, k : k + 1])
        pixels, caches = model.decode_step(part, caches)
        assert [tuple(c.shape) for c in caches] == shapes
        torch.testing.assert_close(pixels, whole[:, :, 4 * k : 4 * k + 4], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_decoder_that_inverts_the_encoder_puts_every_pixel_back() -> None:
    """With as many components as pixels and an orthogonal basis the round trip is exact."""
    model = PatchCodec(PatchCodecConfig(width=4, num_blocks=1, latent_channels=768))
    basis, _ = torch.linalg.qr(torch.randn(768, 768))
    model.encoder.weight.copy_(basis.view(768, 3, 4, 8, 8))
    model.encoder.bias.zero_()
    model.linear.weight.copy_(basis.T.reshape(768, 768, 1, 1))
    model.linear.bias.zero_()
    frames = torch.rand(1, 3, 8, 16, 24)
    torch.testing.assert_close(model.decode(model.encode(frames)), frames, atol=1e-4, rtol=0)
