"""A prompt for a measurement: text where the bundle can encode it, else fixed embeddings."""

from __future__ import annotations

import numpy as np

from liveedit.runtime.stream import StreamEditor


def give_prompt(editor: StreamEditor, text: str, precision: str) -> None:
    """Set a prompt. What it says does not change what a pass costs."""
    manifest = editor.manifest
    if "text_encoder" in manifest.graphs[precision]:
        editor.set_prompt(text)
        return
    dit = manifest.model.dit
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((1, dit.text_len, dit.text_dim), dtype=np.float32)
    embeds[:, 8:] = 0  # a short prompt
    editor.set_text_embeds(embeds)
