"""Prompt embeddings of a frozen text encoder, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from liveedit.config import ModelConfig
from liveedit.errors import UsageError
from liveedit.export.checkpoints import load_into, load_text_encoder
from liveedit.models.umt5 import UMT5Encoder
from liveedit.runtime.tokenizer import PromptTokenizer

_MIB = 1 << 20
EOS_ID = 1  # as in every T5
TEXT_FOLDER = "text"


def file_mark(path: Path) -> str:
    """A mark of a large file's content: size, first and last MiB.

    The end of a file of torch.save holds the checksums of all its tensors.
    """
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_MIB))
        file.seek(-min(_MIB, path.stat().st_size), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


class TextCache:
    """The embeddings in a folder, by prompt. ``folder`` is set once the data is known."""

    def __init__(self, text_len: int) -> None:
        self.text_len = text_len
        self.folder = Path()

    def path(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"

    def embeds(self, prompts: Sequence[str]) -> Tensor:
        """[B, text_len, text_dim] float32, zero rows after each prompt.

        Raises:
            UsageError: a prompt was not encoded.
        """
        rows = []
        for prompt in prompts:
            path = self.path(prompt)
            if not path.exists():
                raise UsageError(
                    f"{self.folder} holds no embedding of {prompt!r}; run the command with --data "
                    "and --wan, which adds it"
                )
            short = load_file(path)["embeds"].float()
            rows.append(torch.nn.functional.pad(short, (0, 0, 0, self.text_len - len(short))))
        return torch.stack(rows)


def text_folder(root: Path) -> Path:
    """The one folder of embeddings in a cache.

    Raises:
        UsageError: there is none, or several encoders made some.
    """
    folders = sorted(path for path in (root / TEXT_FOLDER).glob("*") if path.is_dir())
    if len(folders) != 1:
        raise UsageError(
            f"{root / TEXT_FOLDER} holds the embeddings of {len(folders)} text encoders instead of "
            "one; give --data and --wan, which say which"
        )
    return folders[0]


@torch.inference_mode()
def fill_text_cache(
    root: Path, prompts: Iterable[str], wan: Path, model: ModelConfig, device: torch.device
) -> Path:
    """Encode the prompts that are not there yet; the folder that holds them.

    Args:
        root: cache of latents; the folder is one per text encoder.
        wan: the Wan2.1-T2V-1.3B folder, with the encoder and its tokenizer.

    Raises:
        CheckpointError: the encoder's file is not what ``model`` names.
    """
    weights = wan / "models_t5_umt5-xxl-enc-bf16.pth"
    tokenizer_path = wan / "google" / "umt5-xxl" / "tokenizer.json"
    for file in (weights, tokenizer_path):
        if not file.is_file():
            raise UsageError(f"{file} is missing. Point --wan at the whole Wan2.1-T2V-1.3B folder")
    cache = TextCache(model.dit.text_len)
    cache.folder = root / TEXT_FOLDER / file_mark(weights)[:16]
    cache.folder.mkdir(parents=True, exist_ok=True)
    wanted = [p for p in dict.fromkeys(prompts) if not cache.path(p).exists()]
    if not wanted:
        return cache.folder
    encoder = load_into(UMT5Encoder, model.text, load_text_encoder(weights, model.text)).to(device)
    tokenizer = PromptTokenizer(
        tokenizer_path, text_len=model.dit.text_len, vocab_size=model.text.vocab_size
    )
    for prompt in wanted:
        if prompt.strip():
            ids, mask = (torch.from_numpy(a) for a in tokenizer.encode(prompt))
        else:  # an unconditional pass
            mask = torch.zeros(1, cache.text_len, dtype=torch.int64)
            mask[0, 0] = 1
            ids = mask * EOS_ID
        embeds = encoder(ids.to(device), mask.to(device))[0, : int(mask.sum())]
        partial = cache.path(prompt).with_suffix(f".{os.getpid()}.partial")
        save_file({"embeds": embeds.contiguous().cpu()}, partial)
        partial.replace(cache.path(prompt))
    return cache.folder
