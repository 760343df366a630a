"""Where a bundle's weights come from: official files, or a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from liveedit.config import ModelConfig, TAEHVConfig
from liveedit.errors import CheckpointError, UsageError
from liveedit.export.checkpoints import (
    load_dit,
    load_taehv,
    load_text_encoder,
    load_wan_vae,
    verify,
)
from liveedit.export.graphs import build_codec
from liveedit.export.random_weights import RandomWeights
from liveedit.export.tensor_file import read_tensor_file
from liveedit.export.tokenizer import byte_tokenizer, wan_tokenizer
from liveedit.models.dit import CausalWanDiT
from liveedit.models.umt5 import UMT5Encoder

Weights = dict[str, Mapping[str, Tensor]]


def with_taehv(model: ModelConfig) -> ModelConfig:
    """The same editor with TAEHV as its codec."""
    if model.taehv is not None:
        return model
    return replace(model, wan_vae=None, patch=None, taehv=TAEHVConfig())


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
    model: ModelConfig,
    checkpoint: Path,
    wan: Path,
    taehv: Path | None,
    *,
    ema: bool,
    text_encoder: bool = True,
) -> tuple[Weights, bytes, dict[str, str]]:
    """The official files, memory-mapped and strictly checked, and the tokenizer of ``wan``.

    Args:
        checkpoint: the LiveEdit DiT.
        wan: the Wan2.1-T2V-1.3B folder.
        taehv: the TAEHV file, if ``model`` has that codec.
        text_encoder: False leaves it out, and its file may be missing.

    Raises:
        CheckpointError: a file is missing or is not exactly what ``model`` names.
    """
    weights: Weights = {"dit": load_dit(checkpoint, model.dit, ema=ema)}
    if model.wan_vae is not None:
        weights["codec"] = load_wan_vae(wan / "Wan2.1_VAE.pth", model.wan_vae)
    elif model.taehv is not None and taehv is not None:
        weights["codec"] = load_taehv(taehv, model.taehv)
    else:
        raise UsageError(f"{model.name} has a codec of its own that official files do not hold")
    if text_encoder:
        file = wan / "models_t5_umt5-xxl-enc-bf16.pth"
        weights["text_encoder"] = load_text_encoder(file, model.text)
    return weights, wan_tokenizer(wan), {"checkpoint": checkpoint.name}


def trained_sources(model: ModelConfig, folder: Path) -> tuple[Weights, bytes, dict[str, str]]:
    """What `liveedit train` leaves: ``editor.pt`` (its averaged weights), ``codec.pt`` and
    ``tokenizer.json`` in one folder.

    Raises:
        CheckpointError: a file is missing or is not exactly what ``model`` names.
    """
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(f"{tokenizer} is missing; it lies beside the editor's checkpoint")
    editor = read_tensor_file(folder / "editor.pt")
    averaged = editor.get("ema", editor)
    states = {
        "dit": averaged.get("dit", {}),
        "text_encoder": averaged.get("text", {}),
        "codec": read_tensor_file(folder / "codec.pt"),
    }
    weights: Weights = {}
    for name, module in modules(model).items():
        expected = {key: tensor.shape for key, tensor in module.state_dict().items()}
        weights[name] = verify(states[name], expected, f"{folder} ({name})")
    return weights, tokenizer.read_bytes(), {"weights": "trained with liveedit train"}
