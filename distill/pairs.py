"""A list of training pairs: clips before and after an edit, and the words for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liveedit.config import from_dict
from liveedit.errors import LiveEditError, UsageError
from liveedit.runtime.fit import Fit, Size
from liveedit.runtime.video_reader import VideoReader

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """One entry of the list. Paths may be relative to the list's folder."""

    source_path: str
    edited_path: str
    instruction: str


@dataclass(frozen=True)
class PairFiles:
    """An entry with its files found.

    Attributes:
        where: list and number of the entry, for messages.
    """

    source: Path
    edited: Path
    instruction: str
    where: str


def read_pairs(path: Path) -> list[PairFiles]:
    """The entries of a JSON list of ``Pair``.

    Raises:
        UsageError: unreadable list, an entry that is none, an empty instruction, or missing files:
            all of them, one to a line.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the list of pairs {path}: {error}") from None
    if not isinstance(data, list) or not data:
        raise UsageError(
            f"{path} must be a JSON list of objects with source_path, edited_path and instruction"
        )
    found = []
    for i, item in enumerate(data):
        where = f"{path}, entry {i}"
        pair = from_dict(Pair, item, where)
        if not pair.instruction.strip():
            raise UsageError(f"{where}: the instruction is empty")
        files = (path.parent / pair.source_path, path.parent / pair.edited_path)
        found.append(PairFiles(*files, pair.instruction, where))
    check_exist([file for pair in found for file in (pair.source, pair.edited)], path)
    return found


def check_exist(files: Sequence[Path], path: Path) -> None:
    """Raises UsageError that names every file that is not there."""
    missing = [str(file) for file in dict.fromkeys(files) if not file.is_file()]
    if missing:
        raise UsageError(
            f"{path} names {len(missing)} files that do not exist:\n  " + "\n  ".join(missing)
        )


def mismatches(pairs: Sequence[PairFiles]) -> list[str]:
    """What is wrong with the clips by what their files say of themselves: nothing is decoded.

    A sentence for each entry whose clips are no videos, or differ in size or stated length.
    """
    problems = []
    for pair in pairs:
        try:
            infos = []
            for file in (pair.source, pair.edited):
                with VideoReader(file) as reader:
                    infos.append(reader.info)
        except LiveEditError as error:
            problems.append(f"{pair.where}: {error}")
            continue
        said = [
            (f"{i.width_px} x {i.height_px}", f"{i.num_video_frames or 'some'} frames")
            for i in infos
        ]
        for source, edited in zip(*said, strict=True):
            if source != edited and "some" not in source + edited:
                problems.append(
                    f"{pair.where}: {pair.source} has {source}, {pair.edited} has {edited}"
                )
    return problems


def read_pair(
    pair: PairFiles, num_video_frames: int, height_px: int, width_px: int
) -> tuple[Frames, Frames]:
    """The first frames of both clips, the middle of each scaled to the stream's size.

    Returns:
        Twice [num_video_frames, height_px, width_px, 3].

    Raises:
        UsageError: the clips differ in size or length, or are too short.
    """
    clips, sizes, longer = [], [], []
    for file in (pair.source, pair.edited):
        with VideoReader(file) as reader:
            info = reader.info
            fit = Fit(
                Size(height_px=info.height_px, width_px=info.width_px),
                Size(height_px=height_px, width_px=width_px),
                "crop",
            )
            frames = reader.frames()
            shown = [fit.to_model(f.image).copy() for f in islice(frames, num_video_frames)]
            longer.append(_count(frames))
        sizes.append(f"{info.width_px} x {info.height_px}")
        clips.append(shown)
    lengths = [len(clip) + more for clip, more in zip(clips, longer, strict=True)]
    if lengths[0] != lengths[1] or sizes[0] != sizes[1]:
        raise UsageError(
            f"{pair.where}: {pair.source} has {lengths[0]} frames of {sizes[0]}, {pair.edited} has "
            f"{lengths[1]} of {sizes[1]}; cut or scale them alike"
        )
    if lengths[0] < num_video_frames:
        raise UsageError(
            f"{pair.where}: {pair.source} has {lengths[0]} frames; this configuration trains on "
            f"clips of {num_video_frames}. Take a longer clip, or fewer num_latent_frames"
        )
    return np.stack(clips[0]), np.stack(clips[1])


def _count(frames: Iterator[object]) -> int:
    return sum(1 for _ in frames)
