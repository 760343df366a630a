"""Prompt text to token ids, as UMT5 wants them."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from liveedit.errors import BundleError, UsageError

PAD_ID = 0
EOS = "</s>"


def clean(text: str) -> str:
    """Unescape HTML twice, collapse white space, strip. Mojibake is left as it is."""
    return " ".join(html.unescape(html.unescape(text)).split())


class PromptTokenizer:
    """The tokenizer of a bundle. Every prompt becomes ``text_len`` ids: tokens, EOS, padding."""

    def __init__(self, path: Path, *, text_len: int, vocab_size: int) -> None:
        """Raises BundleError: the file is no tokenizer, or does not fit the text encoder."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(
                f"{path} is no tokenizer: {error}. Export the bundle again."
            ) from None
        eos = self._tokenizer.token_to_id(EOS)
        if eos is None:
            raise BundleError(f"{path} has no {EOS!r} token. Export the bundle again.")
        size = self._tokenizer.get_vocab_size()
        if size > vocab_size:
            raise BundleError(
                f"{path} has {size} tokens, the text encoder {vocab_size}. Export the bundle again."
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._eos_id = eos
        self.text_len = text_len

    def encode(self, prompt: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """``input_ids`` and ``attention_mask``, int64 [1, text_len] each.

        Raises:
            UsageError: the prompt is empty or too long.
        """
        text = clean(prompt)
        if not text:
            raise UsageError("the prompt is empty; say what to change, such as: make the car red")
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) + 1 > self.text_len:
            raise UsageError(
                f"the prompt has {len(ids)} tokens; this bundle takes at most "
                f"{self.text_len - 1}. Shorten it."
            )
        input_ids = np.full((1, self.text_len), PAD_ID, dtype=np.int64)
        input_ids[0, : len(ids)] = ids
        input_ids[0, len(ids)] = self._eos_id
        attention_mask = np.zeros_like(input_ids)
        attention_mask[0, : len(ids) + 1] = 1
        return input_ids, attention_mask
