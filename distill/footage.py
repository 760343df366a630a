"""The real clips and photographs of one split, ready for scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from liveedit.distill.edits import Split
from liveedit.distill.scenes import Bytes
from liveedit.distill.sources import CLIPS, load_clip, load_photos, names


@dataclass(frozen=True)
class RealFootage:
    """Photographs [H, W, 3] and clips [T, H, W, 3] in memory."""

    photos: Sequence[Bytes]
    clips: Sequence[Bytes]


def real_footage(
    cache_dir: Path, split: Split, height_px: int, width_px: int, max_frames: int = 240
) -> RealFootage:
    """Load a split; clips keep half as many pixels again per side, as room for crops."""
    wanted: Literal["train", "test"] = "train" if split == "train" else "test"
    size = (height_px * 3 // 2, width_px * 3 // 2)
    return RealFootage(
        photos=[photo for _, photo in load_photos(cache_dir, wanted)],
        clips=[
            load_clip(name, cache_dir, *size, max_frames) for name in names(CLIPS.values(), wanted)
        ],
    )
