"""Where a bundle's weights come from: official files, or a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from liveedit.config import ModelConfig, TAEHVConfig
from liveedit.export.graphs import build_codec
from liveedit.export.random_weights import RandomWeights
from liveedit.export.tokenizer import byte_tokenizer
from liveedit.models.dit import CausalWanDiT
from liveedit.models.umt5 import UMT5Encoder

Weights = dict[str, Mapping[str, Tensor]]


def with_taehv(model: ModelConfig) -> ModelConfig:
    """The same editor with TAEHV as its codec."""
    if model.taehv is not None:
        return model
    return replace(model, wan_vae=None, taehv=TAEHVConfig())


def modules(model: ModelConfig) -> dict[str, nn.Module]:
    """The networks of an editor on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        return {
            "dit": CausalWanDiT(model.dit),
            "codec": build_codec(model, torch.float32),
            "text_encoder": UMT5Encoder(model.text),
        }


def random_sources(model: ModelConfig, seed: int) -> tuple[Weights, bytes, dict[str, str]]:
    """Weights from a seed, a byte tokenizer, and the note that says so."""
    weights: Weights = {name: RandomWeights(m, seed) for name, m in modules(model).items()}
    return weights, byte_tokenizer(), {"weights": f"random, seed {seed}"}


def checkpoint_sources(
    model: ModelConfig, checkpoint: Path, wan: Path, taehv: Path | None, *, ema: bool
) -> tuple[Weights, bytes, dict[str, str]]:
    """The official files, memory-mapped and strictly checked, and the tokenizer of ``wan``."""
    raise NotImplementedError
