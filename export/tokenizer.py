"""Prompt tokenizers for bundles."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from liveedit.errors import CheckpointError

SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as in T5


def byte_tokenizer() -> bytes:
    """tokenizer.json of a byte-level tokenizer: 259 entries, no training, any text."""
    vocab = {token: i for i, token in enumerate(SPECIAL)}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[symbol] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer.to_str().encode()


def wan_tokenizer(wan: Path) -> bytes:
    """tokenizer.json of the Wan 2.1 model folder (``google/umt5-xxl``).

    Raises:
        CheckpointError: the folder has no tokenizer.json.
    """
    path = wan / "google" / "umt5-xxl" / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Point --wan at the Wan2.1-T2V-1.3B folder, complete with its "
            "google/umt5-xxl tokenizer."
        )
    return path.read_bytes()
