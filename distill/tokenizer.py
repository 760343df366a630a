"""The default editor's own tokenizer: small, lower-case, and able to spell any word."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from liveedit.distill import phrases

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5


def train_tokenizer() -> Tokenizer:
    """Whole words of every phrase the data can produce, and letters for the rest.

    Words it never saw fall apart into a known beginning and letters; other scripts become <unk>.
    Accents and punctuation are dropped. Deterministic.
    """
    words = sorted({word for phrase in phrases.everything() for word in phrase.split()})
    letters = string.ascii_lowercase + string.digits
    pieces = [PAD, EOS, UNK, *letters, *(f"##{c}" for c in letters)]
    pieces += [word for word in words if word not in letters]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[.,;:!?'\"()-]"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, 1)]
    )
    return tokenizer


def save_tokenizer(path: Path) -> Tokenizer:
    """Train and write ``tokenizer.json``; returns it."""
    tokenizer = train_tokenizer()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], text_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and attention mask, both [N, text_len], padded with 0; long prompts lose their end."""
    ids = np.zeros((len(prompts), text_len), np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(tokenizer.encode_batch(list(prompts))):
        tokens = encoding.ids
        if len(tokens) > text_len:
            tokens = [*tokens[: text_len - 1], 1]
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask
