"""The trained networks of an editor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from liveedit.config import ModelConfig
from liveedit.distill.checkpoint import load_state
from liveedit.distill.text_cache import TextCache
from liveedit.distill.tokenizer import encode_prompts
from liveedit.errors import CheckpointError
from liveedit.models.dit import CausalWanDiT
from liveedit.models.umt5 import UMT5Encoder


class Editor(nn.Module):
    """The DiT and its text encoder, trained together; or the DiT alone, with remembered texts.

    Args:
        texts: embeddings of every prompt, instead of an encoder.
    """

    def __init__(self, model: ModelConfig, texts: TextCache | None = None) -> None:
        super().__init__()
        self.dit = CausalWanDiT(model.dit)
        self.text = UMT5Encoder(model.text) if texts is None else None
        self.texts = texts
        if self.text is not None:
            self.text.look_at_neighbours()
        # The first guess of every velocity is zero.
        nn.init.zeros_(self.dit.head.head.weight)
        if self.dit.head.head.bias is not None:
            nn.init.zeros_(self.dit.head.head.bias)

    def train_text(self, wanted: bool) -> None:
        """Whether the text encoder, if there is one, learns."""
        if self.text is not None:
            self.text.requires_grad_(wanted)

    def embed(self, tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
        """[B, text_len, text_dim], zero rows after each prompt."""
        device = self.dit.head.modulation.device
        if self.texts is not None:
            return self.texts.embeds(prompts).to(device)
        assert self.text is not None
        ids, mask = encode_prompts(tokenizer, prompts, self.dit.config.text_len)
        return self.text(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))


def by_part(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """State dict of an `Editor` as one state dict per network: `dit` and, if it has it, `text`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def joined(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of `by_part`."""
    return {f"{part}.{name}": v for part, state in parts.items() for name, v in state.items()}


def weights_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint as an `Editor` names them."""
    return joined({part: state[part] for part in ("dit", "text") if part in state})


def load_mean_weights(
    editor: Editor, path: Path, *, stages: Sequence[str], option: str
) -> dict[str, Any]:
    """Take the running mean of a checkpoint's weights, if it is of one of the ``stages``.

    Args:
        option: of the command line, to name in messages.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: it is of another stage, or of other networks.
    """
    state = load_state(path)
    if state.get("stage") not in stages:
        what = f"of stage {state['stage']}" if "stage" in state else "no stage's"
        raise CheckpointError(
            f"{option} {path} is {what}, and must be of stage {' or '.join(stages)}; "
            "give the latest.pt of such a run"
        )
    try:
        editor.load_state_dict(joined(state["ema"]))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{option} {path} does not fit the networks: {error}") from None
    return state
