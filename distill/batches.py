"""Training batches out of coded scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liveedit.distill.latents import LatentScene
from liveedit.distill.phrases import rephrase
from liveedit.distill.presets import PhaseConfig, TrainConfig
from liveedit.errors import UsageError

_SEEDS = 2**63 - 1


@dataclass
class Batch:
    """Clips of one length.

    Attributes:
        source, target: [B, C, F, h, w] float32.
        context: like target; what the past blocks show, which may be another edit.
        mask: [B, 1, F, h, w] float32 in [0, 1].
        prompts: B instructions.
        names: B scenes, to name in messages.
        seeds: of each clip's own random numbers.
        common_seed: of the random numbers that all clips of the step share.
        frame_positions: [F] absolute latent-frame index of each frame.
    """

    source: Tensor
    target: Tensor
    context: Tensor
    mask: Tensor
    prompts: list[str]
    names: list[str]
    seeds: list[int]
    common_seed: int
    frame_positions: Tensor

    def split(self, size: int) -> list[Batch]:
        """Parts of ``size`` clips."""
        return [self.share(i, len(self.prompts) // size) for i in range(len(self.prompts) // size)]

    def to(self, device: torch.device) -> Batch:
        """The same clips on a device. Positions stay on the CPU, where tables are made."""
        return replace(
            self,
            source=self.source.to(device),
            target=self.target.to(device),
            context=self.context.to(device),
            mask=self.mask.to(device),
        )

    def share(self, rank: int, world: int) -> Batch:
        """The rows of one process of ``world``."""
        size = len(self.prompts) // world
        rows = slice(rank * size, (rank + 1) * size)
        return replace(
            self,
            source=self.source[rows],
            target=self.target[rows],
            context=self.context[rows],
            mask=self.mask[rows],
            prompts=self.prompts[rows],
            names=self.names[rows],
            seeds=self.seeds[rows],
        )


def draw_batch(
    scenes: Sequence[LatentScene],
    rng: np.random.Generator,
    config: TrainConfig,
    phase: PhaseConfig,
    block: int,
) -> Batch:
    """Draw scenes, edits, spans and crops. Scenes shorter than the phase's clips are redrawn.

    Raises:
        UsageError: the scenes seem to be too short, all of them.
    """
    wanted = phase.num_latent_frames
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor, str, str, int]] = []
    misses = 0
    while len(rows) < phase.batch_size:
        scene = scenes[int(rng.integers(len(scenes)))]
        length = scene.source.shape[1]
        if length < wanted:
            misses += 1
            if misses > 1000:
                raise UsageError(
                    f"1000 scenes in a row are shorter than num_latent_frames {wanted}; the last "
                    f"one, {scene.name}, has {length}. Code longer clips, or shorten the phase"
                )
            continue
        n = int(rng.integers(len(scene.edits)))
        # Blocks keep their place: the codec's memory is empty at the start of a clip only.
        grid = 1 if wanted < block else block
        start = grid * int(rng.integers((length - wanted) // grid + 1))
        span = slice(start, start + wanted)
        mask = scene.masks[n, span].astype(np.float32) / 255.0
        context = scene.targets[n]
        if rng.random() < config.other_context:
            other = int(rng.integers(len(scene.edits) + 1))
            context = scene.source if other == len(scene.edits) else scene.targets[other]
        elif rng.random() < config.faded_context:
            context = context + rng.random() * (scene.source.astype(np.float32) - context)
        columns = slice(None)
        if phase.crop_columns:
            left = crop_start(mask, phase.crop_columns, rng)
            columns = slice(left, left + phase.crop_columns)
        parts = (scene.source, scene.targets[n], context)
        y, x0, past = (torch.from_numpy(p[:, span, :, columns]).float() for p in parts)
        weight = torch.from_numpy(mask[None, :, :, columns])
        seed = int(rng.integers(_SEEDS))
        words = scene.edits[n]["instruction"]
        if rng.random() < config.rephrase:
            words = rephrase(rng, scene.edits[n])
        if rng.random() < config.drop_prompt:
            words = ""
        rows.append((y, x0, past, weight, words, scene.name, seed))
    sources, targets, contexts, masks, prompts, names, seeds = zip(*rows, strict=True)
    positions = torch.arange(wanted)
    if wanted > block and rng.random() < config.far_context:
        positions[block:] += block * int(rng.integers(1, 300))
    return Batch(
        source=torch.stack(sources),
        target=torch.stack(targets),
        context=torch.stack(contexts),
        mask=torch.stack(masks),
        prompts=list(prompts),
        names=list(names),
        seeds=list(seeds),
        common_seed=int(rng.integers(_SEEDS)),
        frame_positions=positions,
    )


def crop_start(mask: NDArray[np.float32], columns: int, rng: np.random.Generator) -> int:
    """Left edge (even) of a crop that holds a random edited column of mask [F, h, w]."""
    width = mask.shape[-1]
    edited = np.flatnonzero(mask.max(axis=(0, 1)) > 0)
    last = (width - columns) // 2
    if not len(edited):
        return 2 * int(rng.integers(last + 1))
    middle = int(edited[int(rng.integers(len(edited)))])
    low = int(np.clip((middle - columns + 2) // 2, 0, last))
    high = int(np.clip(middle // 2, 0, last))
    return 2 * int(rng.integers(low, high + 1))
