"""The cached, pruned step against one masked pass over the whole clip."""

from dataclasses import replace

import pytest
import torch

from liveedit.config import DiTConfig, StreamConfig
from liveedit.models.block_mask import block_causal_mask
from liveedit.models.dit import CausalWanDiT
from liveedit.models.dit_step import DiTStep, Prompt, StepState
from liveedit.models.rope import rope_tables

DIT = DiTConfig(
    dim=96, num_layers=3, num_heads=4, ffn_dim=160, freq_dim=32, text_dim=40, text_len=12
)
STREAM = StreamConfig(height_px=32, width_px=48, num_frame_per_block=2, local_attn_size=12)


def random_dit(seed: int = 0) -> CausalWanDiT:
    torch.manual_seed(seed)
    model = CausalWanDiT(DIT).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1).add_(0.05)
    return model


def step_inputs(dit: CausalWanDiT, stream: StreamConfig, text: torch.Tensor, chunk: int) -> dict:
    """A full pass over chunk ``chunk`` written at the end of a window that is still filling."""
    frames, length = stream.num_frame_per_block, stream.block_seq_length
    positions = torch.arange(chunk * frames, (chunk + 1) * frames)
    cos, sin = rope_tables(
        dit.config.head_dim, positions, stream.height_px // 16, stream.width_px // 16
    )
    cross_k, cross_v = Prompt(dit)(text)
    return dict(
        noise=torch.zeros(1, 16, frames, stream.latent_height, stream.latent_width),
        sigma=torch.ones(1),
        sigma_next=torch.zeros(1),
        rope_cos=cos,
        rope_sin=sin,
        keep_index=torch.arange(length, dtype=torch.int32),
        token_row=torch.arange(length, dtype=torch.int32),
        write_index=torch.tensor([chunk * length]),
        kv_length=torch.tensor([(chunk + 1) * length], dtype=torch.int32),
        cross_k=cross_k,
        cross_v=cross_v,
    )


@torch.no_grad()
def test_cached_chunks_equal_one_block_causal_pass() -> None:
    dit, blocks = random_dit(), 5
    F = STREAM.num_frame_per_block
    clean, source, text = (
        torch.randn(1, 16, blocks * F, STREAM.latent_height, STREAM.latent_width),
        torch.randn(1, 16, blocks * F, STREAM.latent_height, STREAM.latent_width),
        torch.randn(1, DIT.text_len, DIT.text_dim),
    )
    t = torch.tensor([100.0 * (b + 1) for b in range(blocks)])
    mask = block_causal_mask(blocks * F, F, STREAM.frame_seq_length)
    whole = dit(clean, source, t.repeat_interleave(F).view(1, -1), text, mask)
    step, state = DiTStep(dit), StepState.zeros(dit, STREAM)
    for b in range(blocks):
        chunk = slice(b * F, (b + 1) * F)
        x0, _, *caches = step(
            noisy=clean[:, :, chunk],
            source=source[:, :, chunk],
            timestep=t[b : b + 1],
            **step_inputs(dit, STREAM, text, b),
            **vars(state),
        )
        state = StepState(*caches)
        velocity = clean[:, :, chunk] - x0  # sigma is 1
        torch.testing.assert_close(velocity, whole[:, :, chunk], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pruned_pass_equals_attention_of_the_kept_tokens_alone() -> None:
    """Dropped tokens keep their stored output; kept ones see history and kept tokens only."""
    dit = random_dit()
    F, L = STREAM.num_frame_per_block, STREAM.block_seq_length
    latent, source = torch.randn(2, 1, 16, F, STREAM.latent_height, STREAM.latent_width)
    text = torch.randn(1, DIT.text_len, DIT.text_dim)
    inputs = step_inputs(dit, STREAM, text, 0)
    step, t = DiTStep(dit), torch.tensor([500.0])
    first = step(
        noisy=latent, source=source, timestep=t, **inputs, **vars(StepState.zeros(dit, STREAM))
    )
    state = StepState(*first[2:])
    keep = torch.tensor([1, 4, 5, 9, -1, -1], dtype=torch.int32)  # two rows of padding
    row = torch.full((L,), -1, dtype=torch.int32)
    row[keep[:4].long()] = torch.arange(4, dtype=torch.int32)
    pruned = {
        **inputs,
        "keep_index": keep,
        "token_row": row,
        "kv_length": torch.tensor([4], dtype=torch.int32),
    }
    _, _, k, v, store = step(noisy=latent, source=source, timestep=t, **pruned, **vars(state))
    dropped = row < 0
    for before, after in zip(state.attn_store, store, strict=True):
        assert torch.equal(before[:, dropped], after[:, dropped])
    # First block, by hand: a pass over the kept tokens as if they were the whole chunk.
    block = dit.blocks[0]
    x = dit.tokens(latent, source)
    e0 = dit.time(t)[1].unsqueeze(0)
    shift, scale, _ = block.pieces(e0)[:3]
    h = (block.norm(x) * (1 + scale) + shift)[:, keep[:4].long()]
    attn = block.self_attn
    cos, sin = inputs["rope_cos"][:, keep[:4].long()], inputs["rope_sin"][:, keep[:4].long()]
    from liveedit.models.rope import apply_rope

    q = apply_rope(attn.heads(attn.norm_q(attn.q(h))), cos, sin)
    kk = apply_rope(attn.heads(attn.norm_k(attn.k(h))), cos, sin)
    out = attn.merge(torch.nn.functional.scaled_dot_product_attention(q, kk, attn.heads(attn.v(h))))
    torch.testing.assert_close(store[0][:, keep[:4].long()], out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(k[0][:, :, :4], kk, rtol=1e-4, atol=1e-5)
    assert torch.equal(k[0][:, :, 6:], state.k_cache[0][:, :, 6:]), "rows past the write are kept"
    assert len(v) == DIT.num_layers


@pytest.mark.parametrize("sigma_next", [0.75, 0.0])
@torch.no_grad()
def test_next_latent_is_renoised_x0(sigma_next: float) -> None:
    dit = random_dit()
    F = STREAM.num_frame_per_block
    latent, source, noise = torch.randn(3, 1, 16, F, STREAM.latent_height, STREAM.latent_width)
    inputs = step_inputs(dit, STREAM, torch.randn(1, DIT.text_len, DIT.text_dim), 0)
    inputs |= {
        "noise": noise,
        "sigma": torch.tensor([0.9]),
        "sigma_next": torch.tensor([sigma_next]),
    }
    x0, after, *_ = DiTStep(dit)(
        noisy=latent,
        source=source,
        timestep=torch.tensor([900.0]),
        **inputs,
        **vars(StepState.zeros(dit, replace(STREAM))),
    )
    torch.testing.assert_close(after, (1 - sigma_next) * x0 + sigma_next * noise)
    assert not torch.allclose(x0, latent)
