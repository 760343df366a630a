"""The trained networks of an editor."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from liveedit.config import ModelConfig
from liveedit.distill.tokenizer import encode_prompts
from liveedit.models.dit import CausalWanDiT
from liveedit.models.umt5 import UMT5Encoder


class Editor(nn.Module):
    """The DiT and its text encoder, trained together."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.dit = CausalWanDiT(model.dit)
        self.text = UMT5Encoder(model.text)
        # The first guess of every velocity is zero.
        nn.init.zeros_(self.dit.head.head.weight)
        if self.dit.head.head.bias is not None:
            nn.init.zeros_(self.dit.head.head.bias)

    def embed(self, tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
        """[B, text_len, text_dim], zero rows after each prompt."""
        device = self.dit.head.modulation.device
        ids, mask = encode_prompts(tokenizer, prompts, self.dit.config.text_len)
        return self.text(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))


def by_part(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """State dict of an `Editor` as one state dict per network: `dit` and `text`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def joined(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of `by_part`."""
    return {f"{part}.{name}": v for part, state in parts.items() for name, v in state.items()}
