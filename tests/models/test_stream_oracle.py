"""The cached stream against diffusers: one pass over the whole clip under a block-causal mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_dit import diffusers_twin
from test_dit_step import DIT, STREAM, random_dit, step_inputs

from liveedit.config import StreamConfig
from liveedit.models.block_mask import block_causal_mask
from liveedit.models.dit_step import DiTStep, StepState
from liveedit.runtime.kv_cache import KVCache


def masked(twin: torch.nn.Module, mask: torch.Tensor) -> torch.nn.Module:
    """diffusers hands its self-attention no mask; a processor of our own does."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    class Masked(WanAttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb):
            return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)

    for block in twin.blocks:
        block.attn1.set_processor(Masked())
    return twin


@pytest.mark.parametrize(
    ("window", "sink"), [(12, 0), (6, 0), (6, 2), (4, 2)], ids=lambda n: str(n)
)
@torch.no_grad()
def test_cached_stream_equals_diffusers(window: int, sink: int) -> None:
    """Five chunks, the window full and wrapping; every chunk has a timestep of its own."""
    stream: StreamConfig = replace(STREAM, local_attn_size=window, sink_size=sink)
    dit, blocks, F = random_dit(), 5, stream.num_frame_per_block
    size = (1, 16, blocks * F, stream.latent_height, stream.latent_width)
    clip, source = torch.randn(size), torch.randn(size)
    text = torch.randn(1, DIT.text_len, DIT.text_dim)
    t = torch.tensor([0.0, 0.0, 0.0, 0.0, 500.0]) + torch.arange(blocks)
    mask = block_causal_mask(blocks * F, F, stream.frame_seq_length, window, sink)
    whole = masked(diffusers_twin(dit), mask)(
        torch.cat((clip, source), dim=1),
        t.repeat_interleave(stream.block_seq_length).view(1, -1),
        text,
        return_dict=False,
    )[0]

    step, state, kv = DiTStep(dit), StepState.zeros(dit, stream), KVCache.for_stream(stream)
    for b in range(blocks):
        chunk = slice(b * F, (b + 1) * F)
        inputs = step_inputs(dit, stream, text, b)
        inputs["write_index"] = torch.tensor([kv.write_index])
        inputs["kv_length"] = torch.tensor(
            [kv.kv_length(stream.block_seq_length)], dtype=torch.int32
        )
        x0, _, *caches = step(
            noisy=clip[:, :, chunk],
            source=source[:, :, chunk],
            timestep=t[b : b + 1],
            **inputs,
            **vars(state),
        )
        state = StepState(*caches)
        if copy := kv.commit():
            for cache in (*state.k_cache, *state.v_cache):
                rows = cache[:, :, copy.src : copy.src + copy.count].clone()
                cache[:, :, copy.dst : copy.dst + copy.count] = rows
        velocity = clip[:, :, chunk] - x0  # sigma is 1
        torch.testing.assert_close(velocity, whole[:, :, chunk], rtol=1e-4, atol=1e-4)
