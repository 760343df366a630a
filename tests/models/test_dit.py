"""The DiT against diffusers' independent implementation and against itself run block by block."""

import pytest
import torch

from liveedit.config import LIVEEDIT_1_3B, DiTConfig
from liveedit.models.block_mask import TeacherForcing, block_causal_mask, dense_mask
from liveedit.models.dit import CausalWanDiT

SMALL = DiTConfig(
    dim=96, num_layers=3, num_heads=4, ffn_dim=160, freq_dim=32, text_dim=40, text_len=12
)


def small_dit(config: DiTConfig = SMALL, seed: int = 0) -> CausalWanDiT:
    torch.manual_seed(seed)
    model = CausalWanDiT(config).eval()
    for parameter in model.parameters():  # norms and biases too, so that a swapped one is seen
        parameter.data.normal_(0, 0.1).add_(0.05)
    return model


def diffusers_twin(model: CausalWanDiT):
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    c = model.config
    twin = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=c.num_heads,
        attention_head_dim=c.head_dim,
        in_channels=c.in_channels,
        out_channels=c.latent_channels,
        text_dim=c.text_dim,
        freq_dim=c.freq_dim,
        ffn_dim=c.ffn_dim,
        num_layers=c.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=c.eps,
    ).eval()
    twin.load_state_dict(convert_wan_transformer_to_diffusers(dict(model.state_dict())))
    return twin


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 2, 2), (3, 6, 10), (5, 14, 4)])
def test_full_attention_equals_diffusers(frames: int, height: int, width: int) -> None:
    model = small_dit()
    generator = torch.Generator().manual_seed(1)
    noisy, source = torch.randn(2, 2, 16, frames, height, width, generator=generator)
    text = torch.randn(2, SMALL.text_len, SMALL.text_dim, generator=generator)
    t = torch.tensor([937.5, 250.0])
    with torch.no_grad():
        ours = model(noisy, source, t.view(2, 1).expand(2, frames), text)
        theirs = diffusers_twin(model)(
            torch.cat((noisy, source), dim=1), t, text, return_dict=False
        )[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_timesteps_are_per_frame() -> None:
    model = small_dit()
    noisy, source = torch.randn(2, 1, 16, 2, 4, 4)
    text = torch.randn(1, SMALL.text_len, SMALL.text_dim)
    mask = block_causal_mask(2, 1, 4)
    with torch.no_grad():
        mixed = model(noisy, source, torch.tensor([[0.0, 500.0]]), text, mask)
        first = model(noisy, source, torch.tensor([[0.0, 900.0]]), text, mask)
    torch.testing.assert_close(mixed[:, :, 0], first[:, :, 0])
    assert not torch.allclose(mixed[:, :, 1], first[:, :, 1])


def test_teacher_forcing_equals_a_cached_step() -> None:
    """The noisy half of [clean, noisy] gives what one pass over [clean past, noisy block] gives."""
    model = small_dit()
    clean, noisy, source = torch.randn(3, 1, 16, 6, 4, 6)
    text = torch.randn(1, SMALL.text_len, SMALL.text_dim)
    t = torch.tensor([[750.0] * 3 + [250.0] * 3])
    zero = torch.zeros_like(t)
    with torch.no_grad():
        both = model(
            torch.cat((clean, noisy), dim=2),
            torch.cat((source, source), dim=2),
            torch.cat((zero, t), dim=1),
            text,
            dense_mask(TeacherForcing(6, 3, 6), 72),
            torch.arange(6).repeat(2),
        )[:, :, 6:]
        step = model(
            torch.cat((clean[:, :, :3], noisy[:, :, 3:]), dim=2),
            source,
            torch.cat((zero[:, :3], t[:, 3:]), dim=1),
            text,
            block_causal_mask(6, 3, 6),
        )
    torch.testing.assert_close(both[:, :, 3:], step[:, :, 3:], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = small_dit().train()
    noisy, source = torch.randn(2, 1, 16, 2, 4, 4)
    text, t = torch.randn(1, SMALL.text_len, SMALL.text_dim), torch.tensor([[250.0, 750.0]])
    grads = []
    for flag in (False, True):
        model.gradient_checkpointing = flag
        model.zero_grad()
        model(noisy, source, t, text).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(model.parameters()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_real_size_has_the_checkpoints_tensors() -> None:
    with torch.device("meta"):
        state = CausalWanDiT(LIVEEDIT_1_3B.dit).state_dict()
    assert len(state) == 825
    assert sum(v.numel() for v in state.values()) == 1_419_095_104
    assert sum(v.numel() for k, v in state.items() if k.startswith("blocks.29.")) == 46_440_704
    for key, shape in {
        "patch_embedding.weight": (1536, 32, 1, 2, 2),
        "text_embedding.0.weight": (1536, 4096),
        "time_projection.1.weight": (9216, 1536),
        "blocks.0.modulation": (1, 6, 1536),
        "blocks.7.self_attn.norm_q.weight": (1536,),
        "blocks.7.norm3.bias": (1536,),
        "blocks.29.ffn.2.weight": (1536, 8960),
        "head.modulation": (1, 2, 1536),
        "head.head.weight": (64, 1536),
    }.items():
        assert tuple(state[key].shape) == shape, key
