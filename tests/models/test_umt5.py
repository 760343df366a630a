"""The text encoder against transformers and the published counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from liveedit.config import TextEncoderConfig
from liveedit.models.umt5 import UMT5Encoder, relative_buckets

# dim_attn differs from dim so that a swapped projection cannot go unseen.
SMALL = TextEncoderConfig(vocab_size=97, dim=24, dim_attn=40, ffn_dim=56, num_heads=5, num_layers=3)
LENGTHS = (11, 4, 1)


def random_encoder(config: TextEncoderConfig = SMALL) -> UMT5Encoder:
    torch.manual_seed(0)
    encoder = UMT5Encoder(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder.eval()


def prompts(T: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, SMALL.vocab_size, (len(LENGTHS), T))
    mask = (torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]).long()
    return ids * mask, mask


def transformers_encoder(ours: UMT5Encoder) -> UMT5EncoderModel:
    config = ours.config
    theirs = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.dim_attn // config.num_heads,
            d_ff=config.ffn_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.eps,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    state = {}
    for key, value in ours.state_dict().items():
        for old, new in (
            ("token_embedding.", "shared."),
            ("blocks.", "encoder.block."),
            (".norm1.", ".layer.0.layer_norm."),
            (".norm2.", ".layer.1.layer_norm."),
            (".attn.", ".layer.0.SelfAttention."),
            (".pos_embedding.embedding.", ".layer.0.SelfAttention.relative_attention_bias."),
            (".ffn.gate.0.", ".layer.1.DenseReluDense.wi_0."),
            (".ffn.fc1.", ".layer.1.DenseReluDense.wi_1."),
            (".ffn.fc2.", ".layer.1.DenseReluDense.wo."),
        ):
            key = key.replace(old, new)
        state["encoder.final_layer_norm.weight" if key == "norm.weight" else key] = value
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


@pytest.mark.parametrize("T", [11, 150])  # 150 reaches past max_distance
@torch.no_grad()
def test_equals_transformers(T: int) -> None:
    ours = random_encoder()
    ids, mask = prompts(T)
    mask[0] = 1
    ids[0] = torch.randint(2, SMALL.vocab_size, (T,))
    want = transformers_encoder(ours)(input_ids=ids, attention_mask=mask).last_hidden_state
    got = ours(ids, mask)
    scale = want.abs().max()
    assert (got - want)[mask.bool()].abs().max() < 2e-6 * scale
    assert got[~mask.bool()].abs().max() == 0


@torch.no_grad()
def test_padding_is_masked_and_zero() -> None:
    ours = random_encoder()
    ids, mask = prompts()
    out = ours(ids, mask)
    for row, length in enumerate(LENGTHS):
        assert out[row, length:].abs().sum() == 0
        alone = ours(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(out[row : row + 1, :length], alone, rtol=1e-5, atol=1e-5)
    noisy_padding = torch.where(mask.bool(), ids, 5)
    assert torch.equal(ours(noisy_padding, mask), out)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 20), (64, 512)])
def test_buckets_equal_transformers(num_buckets: int, max_distance: int) -> None:
    theirs = UMT5Attention(
        UMT5Config(
            relative_attention_num_buckets=num_buckets,
            relative_attention_max_distance=max_distance,
        )
    )
    distances = torch.arange(-max_distance, max_distance + 1)
    want = theirs._relative_position_bucket(distances).tolist()
    assert relative_buckets(num_buckets, max_distance) == want


def test_xxl_counts_and_keys() -> None:
    config = TextEncoderConfig()
    with torch.device("meta"):
        state = UMT5Encoder(config).state_dict()
    assert len(state) == 242
    assert sum(v.numel() for v in state.values()) == 5_680_910_336
    per_block = {
        "norm1.weight": (4096,),
        "norm2.weight": (4096,),
        "attn.q.weight": (4096, 4096),
        "attn.k.weight": (4096, 4096),
        "attn.v.weight": (4096, 4096),
        "attn.o.weight": (4096, 4096),
        "ffn.gate.0.weight": (10240, 4096),
        "ffn.fc1.weight": (10240, 4096),
        "ffn.fc2.weight": (4096, 10240),
        "pos_embedding.embedding.weight": (32, 64),
    }
    want = {"token_embedding.weight": (256384, 4096), "norm.weight": (4096,)}
    for block in range(24):
        want |= {f"blocks.{block}.{name}": shape for name, shape in per_block.items()}
    assert {name: tuple(value.shape) for name, value in state.items()} == want


def test_trains() -> None:
    torch.manual_seed(0)
    encoder = UMT5Encoder(SMALL)
    head = nn.Linear(SMALL.dim, 2)
    ids, mask = prompts()
    target = torch.tensor([0, 1, 0])
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(head(encoder(ids, mask).mean(1)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    ours = random_encoder()
    for block in ours.blocks[:2]:  # past the largest float16
        block.ffn.fc2.weight.mul_(3e4)
    ids, mask = prompts()
    want = ours(ids, mask)
    got = ours.to(dtype)(ids, mask)
    assert got.dtype == dtype
    assert (got.float() - want).norm() < 0.05 * want.norm()
