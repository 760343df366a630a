"""What a run trains on: a folder of coded scenes, ready, or made of a list of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from liveedit.config import named_config
from liveedit.distill.latents import scene_names
from liveedit.distill.pair_cache import PairCache
from liveedit.distill.pairs import PairFiles
from liveedit.distill.parallel import Processes
from liveedit.distill.presets import TrainConfig
from liveedit.distill.text_cache import fill_text_cache, text_folder
from liveedit.distill.trainer import Trainer
from liveedit.errors import UsageError


@dataclass(frozen=True)
class TrainingData:
    """Where everything lies.

    Attributes:
        names: the scenes of a list; None takes all of the folder, and those added later.
        texts: folder of prompt embeddings, where the configuration has ``cached_text``.
    """

    folder: Path
    names: list[str] | None = None
    texts: Path | None = None

    def open(self, trainer: Trainer) -> None:
        """Let the trainer read it."""
        if self.texts is not None:
            trainer.texts.folder = self.texts
        trainer.open_scenes(self.folder, self.names)


def coded_scenes(config: TrainConfig, folder: Path) -> TrainingData:
    """A folder that `encode`, or an earlier run on a list, left.

    Raises:
        UsageError: it holds no scenes, or no embeddings where the configuration needs them.
    """
    scene_names(folder)
    return TrainingData(folder, texts=text_folder(folder) if config.cached_text else None)


def coded_pairs(
    config: TrainConfig,
    processes: Processes,
    pairs: Sequence[PairFiles],
    cache: Path,
    codec: Path | None,
    wan: Path | None,
) -> TrainingData:
    """Code the pairs, and their words, that the cache lacks.

    Done before a run's own networks are there: the codec and the text encoder are large.

    Raises:
        UsageError: a codec is not named, or clips do not match.
        CheckpointError: a file is not what the configuration names.
    """
    model, stream = named_config(config.model)
    path = codec
    if model.wan_vae is not None:
        path = wan / "Wan2.1_VAE.pth" if wan is not None else None
    if path is None:
        option = "its patch codec: give --codec FILE"
        if model.wan_vae is not None:
            option = "the Wan VAE: give --wan DIR"
        raise UsageError(f"clips of {config.model} are coded by {option}")
    longest = max(phase.num_latent_frames for phase in config.phases)
    coder = PairCache(cache, model, stream, longest, path, processes.device)

    def progress(done: int, total: int) -> None:
        if processes.first and done % 20 == 0:
            print(f"coding clips: {done} of {total} of this process", flush=True)

    names = coder.fill(pairs, processes, progress)
    texts = None
    if config.cached_text:
        if wan is None:
            raise UsageError(f"prompts of {config.model} are encoded by UMT5: give --wan DIR")
        prompts = [config.dmd.negative_prompt, *(pair.instruction for pair in pairs)]
        if processes.first:
            texts = fill_text_cache(cache, prompts, wan, model, processes.device)
        texts = processes.from_first(texts)
    del coder
    if processes.device.type == "cuda":
        torch.cuda.empty_cache()
    return TrainingData(cache, names, texts)
