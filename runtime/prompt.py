"""A prompt on its way into the buffers that every pass of the DiT attends to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveedit.bundle import Manifest
from liveedit.errors import UsageError
from liveedit.runtime.backend import Backend
from liveedit.runtime.graphs import BundleGraphs
from liveedit.runtime.tokenizer import PromptTokenizer


class PromptEncoder:
    """Text or embeddings to the cross-attention keys and values. Runs once per prompt."""

    def __init__(
        self, root: Path, manifest: Manifest, graphs: BundleGraphs, backend: Backend
    ) -> None:
        self._backend = backend
        self._tokenizer = PromptTokenizer(
            root / manifest.tokenizer,
            text_len=manifest.model.dit.text_len,
            vocab_size=manifest.model.text.vocab_size,
        )
        has_encoder = "text_encoder" in graphs.specs
        self._text_encoder = graphs.load("text_encoder") if has_encoder else None
        self._prompt = graphs.load("prompt")
        self._shape = graphs.buffers["text_embeds"][1]

    def encode(self, text: str) -> None:
        """Raises UsageError: empty or too long, or there is no text encoder."""
        input_ids, attention_mask = self._tokenizer.encode(text)
        if self._text_encoder is None:
            raise UsageError(
                "this bundle holds no text encoder; give set_text_embeds an encoded prompt, or "
                "export the bundle with its text encoder"
            )
        with self._backend.stage("dit"):  # after every pass that reads the preceding prompt
            self._backend.write("input_ids", input_ids)
            self._backend.write("attention_mask", attention_mask)
            self._text_encoder.run()
            self._prompt.run()

    def take(self, embeds: npt.NDArray[np.float32]) -> None:
        """Embeddings made elsewhere. Raises UsageError: wrong shape or not finite."""
        if np.shape(embeds) != self._shape or not np.isfinite(embeds).all():
            raise UsageError(
                f"text embeddings are {list(np.shape(embeds))}; this bundle takes finite values "
                f"of shape {list(self._shape)}"
            )
        with self._backend.stage("dit"):
            self._backend.write("text_embeds", embeds)
            self._prompt.run()
