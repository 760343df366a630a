"""Scenes coded once by the frozen codec and kept on disk: what the editor trains on."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liveedit.distill.edits import Scene, SceneConfig, make_scene
from liveedit.distill.scenes import Footage
from liveedit.errors import UsageError
from liveedit.models.patch_codec import PatchCodec

# What is appended to the file name of a scene's versions.
AS_DRAWN: dict[str, dict[str, bool]] = {"": {}}
ALL_TURNS = AS_DRAWN | {
    "-mirrored": {"mirrored": True},
    "-backwards": {"backwards": True},
    "-mirrored-backwards": {"mirrored": True, "backwards": True},
}


@dataclass(frozen=True, kw_only=True)
class LatentScene:
    """One source with its edits, coded.

    Attributes:
        source: [C, F, h, w] float16.
        targets: [n, C, F, h, w] float16.
        masks: [n, F, h, w] uint8, the largest edit weight among the pixels of each latent.
        edits: n dictionaries: instruction, kind, colour, new_colour, shape, new_shape.
        name: for messages.
    """

    source: NDArray[np.float16]
    targets: NDArray[np.float16]
    masks: NDArray[np.uint8]
    edits: list[dict[str, str]]
    name: str = "unnamed scene"

    @property
    def nbytes(self) -> int:
        return self.source.nbytes + self.targets.nbytes + self.masks.nbytes


def to_tensor(frames: NDArray[np.uint8]) -> Tensor:
    """[T, H, W, 3] uint8 -> [1, 3, T, H, W] float32 in [0, 1]."""
    return torch.tensor(frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 255.0


def latent_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[T, H, W] -> [ceil(T / 4), H / 8, W / 8], maximum over each latent's pixels."""
    num_frames, height, width = mask.shape
    padded = np.concatenate((mask, np.repeat(mask[-1:], -num_frames % 4, axis=0)))
    blocks = padded.reshape(-1, 4, height // 8, 8, width // 8, 8)
    return np.asarray(blocks.max(axis=(1, 3, 5)), np.uint8)


@torch.inference_mode()
def code_scene(codec: PatchCodec, scene: Scene) -> LatentScene:
    """Run the encoder over the source and every target."""
    clips = [scene.source, *(edit.target for edit in scene.edits)]
    coded = np.stack([codec.encode(to_tensor(clip))[0].half().numpy() for clip in clips])
    return LatentScene(
        source=coded[0],
        targets=coded[1:],
        masks=np.stack([latent_mask(edit.mask) for edit in scene.edits]),
        edits=[
            {
                "instruction": e.instruction,
                "kind": e.kind,
                "colour": e.colour,
                "new_colour": e.new_colour,
                "shape": e.shape,
                "new_shape": e.new_shape,
            }
            for e in scene.edits
        ],
    )


def save_scene(path: Path, scene: LatentScene) -> None:
    """Write one .npz, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            source=scene.source,
            targets=scene.targets,
            masks=scene.masks,
            edits=np.frombuffer(json.dumps(scene.edits).encode(), np.uint8),
        )
    partial.replace(path)


def load_scene(path: Path) -> LatentScene:
    """Read what `save_scene` wrote. Pairs of clips go by the name of their source."""
    with np.load(path, allow_pickle=False) as data:
        edits = json.loads(data["edits"].tobytes())
        return LatentScene(
            source=data["source"],
            targets=data["targets"],
            masks=data["masks"],
            edits=edits,
            name=edits[0].get("source", path.name) if edits else path.name,
        )


def fill_cache(
    folder: Path,
    codec: PatchCodec,
    footage: Footage,
    config: SceneConfig,
    seeds: Sequence[int],
    turns: Mapping[str, Mapping[str, bool]] = AS_DRAWN,
) -> Iterator[int]:
    """Code every seed that the folder lacks; yields the seeds as they are done. Resumable."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        missing = {
            path: turn
            for suffix, turn in turns.items()
            if not (path := folder / f"{seed:07d}{suffix}.npz").exists()
        }
        if missing:
            scene = make_scene(seed, footage, config)
            for path, turn in missing.items():
                save_scene(path, code_scene(codec, scene.turned(**turn)))
        yield seed


def scene_names(folder: Path) -> list[str]:
    """File names of the coded scenes in a folder, sorted.

    Raises:
        UsageError: it holds none.
    """
    names = sorted(path.name for path in folder.glob("*.npz"))
    if not names:
        raise UsageError(
            f"{folder} holds no coded scenes; make some with: python -m liveedit.distill.encode"
        )
    return names


class SceneFolder(Sequence[LatentScene]):
    """The coded scenes of a folder, read when asked for; those used last stay in memory.

    Args:
        names: file names in the folder.
        memory_bytes: how much may stay.
    """

    def __init__(self, folder: Path, names: Sequence[str], memory_bytes: int = 2 << 30) -> None:
        self.folder, self.names, self.memory_bytes = folder, list(names), memory_bytes
        self._held: OrderedDict[str, LatentScene] = OrderedDict()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> LatentScene: ...

    @overload
    def __getitem__(self, index: slice) -> list[LatentScene]: ...

    def __getitem__(self, index: int | slice) -> LatentScene | list[LatentScene]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name = self.names[index]
        scene = self._held.pop(name, None)
        if scene is None:
            scene = load_scene(self.folder / name)
            self._held_bytes += scene.nbytes
        self._held[name] = scene
        while self._held_bytes > self.memory_bytes and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return scene
