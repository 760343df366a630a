"""What a run looks like while it trains: curves of its figures, and edits of a few clips."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from liveedit.config import StreamConfig
from liveedit.distill.editor import Editor
from liveedit.distill.guidance import full_attention
from liveedit.distill.latents import LatentScene
from liveedit.distill.learner import Learner
from liveedit.distill.loop import Stage, read_metrics
from liveedit.distill.presets import TrainConfig
from liveedit.distill.rollout import stream_edit, whole_clip_edit
from liveedit.distill.samplers import seeded
from liveedit.models.patch_codec import PatchCodec
from liveedit.profiling.plots import training_curves

CLIPS, STEPS = 4, 8  # shown clips; network calls of a foundation model's edit


class Pictured(Stage, Protocol):
    """A trainer whose editor can be looked at."""

    config: TrainConfig
    stream: StreamConfig
    tokenizer: Tokenizer
    editor: Editor
    learner: Learner

    def clips(self, count: int) -> list[LatentScene]:
        """The first coded scenes."""


class Pictures:
    """Writes ``loss.png``, and with a codec ``samples/STEP.png``, beside the checkpoint.

    Args:
        codec: decodes samples; None leaves them out.
    """

    def __init__(self, trainer: Pictured, codec: PatchCodec | None) -> None:
        self.trainer, self.codec = trainer, codec

    def draw(self) -> None:
        """Renew the curves and add a grid. Processes that share their weights must all call."""
        trainer = self.trainer
        first = trainer.processes.first
        if first and (rows := read_metrics(trainer.out)):
            training_curves(rows, trainer.out / "loss.png")
        if self.codec is None or not (first or trainer.config.parallel == "shard"):
            return
        block = trainer.stream.num_frame_per_block
        scenes = [s for s in trainer.clips(4 * CLIPS) if s.source.shape[1] >= block][:CLIPS]
        if not scenes:
            return
        # Compiled blocks would be compiled once more for these shapes.
        with trainer.learner.averaged(), torch.compiler.set_stance("force_eager"):
            edited = [self._edit(scene, n) for n, scene in enumerate(scenes)]
        if first:
            path = trainer.out / "samples" / f"{trainer.step:07d}.png"
            path.parent.mkdir(exist_ok=True)
            rows_of = zip(scenes, edited, strict=True)
            write_grid(path, [self._row(scene, latent) for scene, latent in rows_of])

    @torch.no_grad()
    def _edit(self, scene: LatentScene, seed: int) -> Tensor:
        """The scene's first edit by the mean weights: [1, C, F, h, w], F whole blocks."""
        trainer = self.trainer
        source = self._latent(scene.source).to(trainer.processes.device)
        embeds = trainer.editor.embed(trainer.tokenizer, [scene.edits[0]["instruction"]])
        if trainer.config.stage == "foundation":
            sigmas = [1 - i / STEPS for i in range(STEPS)]
            velocity = full_attention(trainer.editor.dit, embeds, source)
            return whole_clip_edit(velocity, source, sigmas, seeded([seed])).cpu()
        return stream_edit(trainer.editor.dit, embeds, source, trainer.stream, seeded([seed])).cpu()

    def _latent(self, coded: np.ndarray) -> Tensor:
        block = self.trainer.stream.num_frame_per_block
        frames = min(2, coded.shape[1] // block) * block
        return torch.from_numpy(coded[:, :frames]).float()[None]

    @torch.no_grad()
    def _row(self, scene: LatentScene, edited: Tensor) -> tuple[str, list[np.ndarray]]:
        assert self.codec is not None
        shown = []
        for latent in (self._latent(scene.source), self._latent(scene.targets[0]), edited):
            frame = self.codec.decode(latent)[0, :, -2]
            shown.append((frame.permute(1, 2, 0) * 255 + 0.5).to(torch.uint8).numpy())
        return scene.edits[0]["instruction"], shown


def write_grid(path: Path, rows: list[tuple[str, list[np.ndarray]]]) -> None:
    """A PNG: a row per clip (source, wanted, edited), its instruction above it."""
    from PIL import Image, ImageDraw

    height, width = rows[0][1][0].shape[:2]
    line = 13
    sheet = Image.new("RGB", (width * len(rows[0][1]), len(rows) * (height + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (words, frames) in enumerate(rows):
        top = y * (height + line)
        draw.text((3, top + 1), f"{words}   (source, wanted, edited)", fill="black")
        for x, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (x * width, top + line))
    sheet.save(path)
