"""One rule, two forms: the dense mask and FlexAttention's agree, and with the plain definition."""

from __future__ import annotations

import os

import pytest
import torch

from liveedit.models.block_mask import (
    BlockCausal,
    Rule,
    TeacherForcing,
    attend,
    attention_mask,
    block_mask,
    dense_mask,
)

CPU = torch.device("cpu")
RULES: dict[str, tuple[Rule, int]] = {
    "causal": (BlockCausal(3, 5), 7 * 5),  # the last block is not whole
    "window": (BlockCausal(2, 7, local_attn_size=4, sink_size=2), 10 * 7),
    "teacher_forcing": (TeacherForcing(6, 3, 5), (6 + 9) * 5),
}


def test_window_and_sink_by_hand() -> None:
    """Blocks of 2 frames: the fourth sees the sink (0, 1) and frames 6, 7."""
    mask = dense_mask(BlockCausal(2, 1, local_attn_size=4, sink_size=2), 8)
    assert mask[7].tolist() == [True, True, False, False, False, False, True, True]
    assert mask[2].tolist() == [True] * 4 + [False] * 4


def test_teacher_forcing_by_hand() -> None:
    """Two clean frames before three noisy ones, blocks of one frame."""
    mask = dense_mask(TeacherForcing(2, 1, 1), 5).int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],  # the first noisy block sees itself only
        [1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", RULES)
def test_flex_attention_equals_the_dense_mask(name: str) -> None:
    rule, length = RULES[name]
    dense = attention_mask(rule, length, CPU)
    assert isinstance(dense, torch.Tensor)
    blocks = block_mask(rule, length, CPU)
    by_token = torch.stack(
        [
            blocks.mask_mod(torch.tensor(0), torch.tensor(0), torch.tensor(q), torch.arange(length))
            for q in range(length)
        ]
    )
    assert torch.equal(by_token, dense)
    q, k, v = torch.randn(3, 2, 2, length, 16)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, blocks), attend(q, k, v, dense))


@pytest.mark.gpu
@pytest.mark.parametrize("name", RULES)
def test_flex_attention_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        assert os.environ.get("LIVEEDIT_REQUIRE_GPU") != "1", "LIVEEDIT_REQUIRE_GPU=1, but no GPU"
        pytest.skip("no GPU")
    rule, length = RULES[name]
    device = torch.device("cuda")
    q, k, v = torch.randn(3, 2, 2, length, 16, device=device)
    q.requires_grad_()
    results = []
    for mask in (attention_mask(rule, length, device), dense_mask(rule, length).to(device)):
        out = attend(q, k, v, mask)
        results.append((out, *torch.autograd.grad(out.square().sum(), q)))
    for flex, dense in zip(*results, strict=True):
        torch.testing.assert_close(flex, dense, rtol=2e-2, atol=2e-3)  # TF32 in the kernel
