"""The released files of an editor with a Wan VAE, at toy size and under their own names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from micro import MICRO_STREAM, MICRO_WAN

from liveedit import config
from liveedit.cli import main

CHECKPOINT = "ar-forcing_002000.pt"
TOKENIZER = "wan/google/umt5-xxl/tokenizer.json"
TEXT_ENCODER = "wan/models_t5_umt5-xxl-enc-bf16.pth"


@dataclass
class ReleasedFiles:
    root: Path

    def write(self) -> None:
        """Random weights, the same at every call."""
        import torch

        from liveedit.export.sources import random_sources

        weights, tokenizer, _ = random_sources(MICRO_WAN, 0)
        states = {name: {k: w[k] for k in w} for name, w in weights.items()}
        generator = {f"model.{k}": v for k, v in states["dit"].items()}
        torch.save({"generator": generator, "step": 2000}, self.root / CHECKPOINT)
        (self.root / TOKENIZER).parent.mkdir(parents=True)
        (self.root / TOKENIZER).write_bytes(tokenizer)
        torch.save(states["codec"], self.root / "wan/Wan2.1_VAE.pth")
        torch.save(states["text_encoder"], self.root / TEXT_ENCODER)

    def run(self, *options: str) -> int:
        """``liveedit export`` of these files; its exit status."""
        files = ["--checkpoint", str(self.root / CHECKPOINT), "--wan", str(self.root / "wan")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(config.MODELS, "micro", (MICRO_WAN, MICRO_STREAM))
            return main(["export", "--config", "micro", *files, "-o", str(self.out), *options])

    @property
    def out(self) -> Path:
        return self.root / "bundle"

    def leftovers(self) -> set[str]:
        return {p.name for p in self.root.iterdir()} - {"wan", CHECKPOINT}
