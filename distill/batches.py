"""Training batches out of coded scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liveedit.distill.latents import LatentScene
from liveedit.distill.objects import SHAPES
from liveedit.distill.palette import COLOURS
from liveedit.distill.phrases import rephrase
from liveedit.distill.presets import PhaseConfig, TrainConfig
from liveedit.errors import UsageError

_SEEDS = 2**63 - 1


@dataclass
class Clips:
    """Clips of one length.

    Attributes:
        source, target: [B, C, F, h, w] float32.
        context: like target; what the past blocks show, which may be another edit.
        mask: [B, 1, F, h, w] float32 in [0, 1].
        contested: like mask; of this and of every other local edit of the scene.
        shapes: [B, F, h, w] int64, index in `objects.SHAPES` of an object that some edit recolours
            or removes, -1 elsewhere.
        colours: [B, 2] int64, see `told_colours`.
        prompts: B instructions.
        names: B scenes, to name in messages.
        seeds: of each clip's own random numbers.
    """

    source: Tensor
    target: Tensor
    context: Tensor
    mask: Tensor
    contested: Tensor
    shapes: Tensor
    colours: Tensor
    prompts: list[str]
    names: list[str]
    seeds: list[int]

    def rows(self) -> dict[str, Any]:
        """What has a row for each clip, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Clips)}


@dataclass
class Batch(Clips):
    """Clips that are trained on together.

    Attributes:
        common_seed: of the random numbers that all clips of the step share.
        frame_positions: [F] absolute latent-frame index of each frame.
    """

    common_seed: int
    frame_positions: Tensor

    def split(self, size: int) -> list[Batch]:
        """Parts of ``size`` clips."""
        return [self.share(i, len(self.prompts) // size) for i in range(len(self.prompts) // size)]

    def to(self, device: torch.device) -> Batch:
        """The same clips on a device. Positions stay on the CPU, where tables are made."""
        rows = self.rows().items()
        moved: dict[str, Any] = {k: v.to(device) for k, v in rows if isinstance(v, Tensor)}
        return replace(self, **moved)

    def share(self, rank: int, world: int) -> Batch:
        """The rows of one process of ``world``."""
        size = len(self.prompts) // world
        rows = slice(rank * size, (rank + 1) * size)
        return replace(self, **{name: value[rows] for name, value in self.rows().items()})


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
    clips: list[Clips] = []
    misses = 0
    while len(clips) < phase.batch_size:
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
        clips.append(_draw_clip(scene, rng, config, phase, block))
    positions = torch.arange(wanted)
    if wanted > block and rng.random() < config.far_context:
        positions[block:] += block * int(rng.integers(1, 300))
    rows = [clip.rows() for clip in clips]
    return Batch(
        **{name: _joined([row[name] for row in rows]) for name in rows[0]},
        common_seed=int(rng.integers(_SEEDS)),
        frame_positions=positions,
    )


def _joined(column: list[Any]) -> Any:
    """One field of several clips as one."""
    if isinstance(column[0], Tensor):
        return torch.cat(column)
    return [value for values in column for value in values]


def _draw_clip(
    scene: LatentScene,
    rng: np.random.Generator,
    config: TrainConfig,
    phase: PhaseConfig,
    block: int,
) -> Clips:
    """One of a scene's edits: a span of it, cropped, with its words."""
    wanted, length = phase.num_latent_frames, scene.source.shape[1]
    n = int(rng.integers(len(scene.edits)))
    # Blocks keep their place: the codec's memory is empty at the start of a clip only.
    grid = 1 if wanted < block else block
    start = grid * int(rng.integers((length - wanted) // grid + 1))
    span = slice(start, start + wanted)
    masks = scene.masks[:, span].astype(np.float32) / 255.0
    context = scene.targets[n]
    if rng.random() < config.other_context:
        other = int(rng.integers(len(scene.edits) + 1))
        context = scene.source if other == len(scene.edits) else scene.targets[other]
    elif rng.random() < config.faded_context:
        context = context + rng.random() * (scene.source.astype(np.float32) - context)
    columns = slice(None)
    if phase.crop_columns:
        left = crop_start(masks[n], phase.crop_columns, rng)
        columns = slice(left, left + phase.crop_columns)
    source, target, past = (
        torch.from_numpy(latent[None, :, span, :, columns]).float()
        for latent in (scene.source, scene.targets[n], context)
    )
    contested, shapes = rivals(scene.edits, masks, n)
    seed = int(rng.integers(_SEEDS))
    words = scene.edits[n]["instruction"]
    if rng.random() < config.rephrase:
        words = rephrase(rng, scene.edits[n])
    if rng.random() < config.drop_prompt:
        words = ""
    return Clips(
        source=source,
        target=target,
        context=past,
        mask=torch.from_numpy(masks[n, None, None, :, :, columns]),
        contested=torch.from_numpy(contested[None, None, :, :, columns]),
        shapes=torch.from_numpy(shapes[None, :, :, columns]),
        colours=torch.tensor([told_colours(scene.edits[n], words)]),
        prompts=[words],
        names=[scene.name],
        seeds=[seed],
    )


def rivals(
    edits: Sequence[dict[str, str]], masks: NDArray[np.float32], n: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What edit n could be mistaken for.

    Args:
        edits: of a scene.
        masks: [edits, F, h, w] in [0, 1].

    Returns:
        `Batch.contested` [F, h, w] and `Batch.shapes` [F, h, w].
    """
    contested = masks[n].copy()
    shapes = np.full(contested.shape, -1, np.int64)
    for edit, mask in zip(edits, masks, strict=True):
        if "global" not in (edit["kind"], edits[n]["kind"]):
            contested = np.maximum(contested, mask)
        if edit["kind"] in ("recolour", "remove"):
            shapes[mask > 0.5] = SHAPES.index(edit["shape"])
    return contested, shapes


def told_colours(edit: Mapping[str, str], words: str) -> tuple[int, int]:
    """The colour that an instruction asks for, and the one by which it names the thing.

    Index in `palette.COLOURS`, or its length where none is said; -1 where nobody knows: of pairs
    of clips, and of changes of the whole picture.
    """
    if edit["kind"] not in ("recolour", "band", "remove", "replace") or not words:
        return -1, -1
    new = edit["new_colour"] if edit["new_colour"] != edit["colour"] else ""
    old = edit["colour"] if edit["colour"] in words.split() else ""
    new_index, old_index = (COLOURS.index(name) if name else len(COLOURS) for name in (new, old))
    return new_index, old_index


def weighted_mean(error: Tensor, weight: Tensor) -> Tensor:
    """Mean of errors [B, C, F, h, w] under weights [B, 1, F, h, w]; each clip counts alike."""
    return ((error * weight).mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))).mean()


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
