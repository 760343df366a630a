"""A folder of clips and prompts: what calibration edits, and what the gate holds out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveedit.bundle import Manifest
from liveedit.errors import UsageError
from liveedit.export.graph_trial import Clip
from liveedit.runtime.fit import Fit, Size
from liveedit.runtime.video_reader import VideoReader

PROMPTS = "prompts.txt"
VIDEOS = frozenset({".mp4", ".mkv", ".avi", ".webm", ".mov"})
HELD_OUT = 3  # every third clip is for the gate alone


def read_folder(folder: Path, manifest: Manifest, num_frames: int) -> list[Clip]:
    """Every video of a folder, cropped and scaled to the bundle's size, with a prompt each.

    ``prompts.txt`` has one prompt a line; clips take them in turn, in the order of their names. A
    clip with an array of its name beside it, ``<name>.npy``, has its prompt encoded already.

    Raises:
        UsageError: no folder, no video, no prompt, or a video smaller than the bundle's frames.
        VideoError: a video cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(
            f"no calibration folder {folder}; give one that holds videos and {PROMPTS}, one "
            "prompt a line"
        )
    videos = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEOS)
    if not videos:
        raise UsageError(f"{folder} holds no video ({', '.join(sorted(VIDEOS))})")
    try:
        lines = (folder / PROMPTS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / PROMPTS} cannot be read: {error}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{folder / PROMPTS} holds no prompt; write one a line")
    return [
        read_clip(video, prompts[i % len(prompts)], manifest, num_frames)
        for i, video in enumerate(videos)
    ]


def read_clip(path: Path, prompt: str, manifest: Manifest, num_frames: int) -> Clip:
    """The first frames of a video at the bundle's size."""
    stream = manifest.stream
    with VideoReader(path) as reader:
        info = reader.info
        if info.height_px < stream.height_px or info.width_px < stream.width_px:
            raise UsageError(
                f"{path} is {info.height_px} x {info.width_px}, smaller than the "
                f"{stream.height_px} x {stream.width_px} that this bundle edits: enlarged "
                "pictures would calibrate for something else. Give a larger video."
            )
        fit = Fit(
            Size(info.height_px, info.width_px), Size(stream.height_px, stream.width_px), "crop"
        )
        frames = []
        for frame in reader.frames():
            frames.append(fit.to_model(frame.image))
            if len(frames) == num_frames:
                break
    return Clip(path.name, np.stack(frames), prompt, _embeds(path.with_suffix(".npy"), manifest))


def _embeds(path: Path, manifest: Manifest) -> npt.NDArray[np.float32] | None:
    """An encoded prompt [1, text_len, text_dim], or None if there is no such file."""
    if not path.is_file():
        return None
    dit = manifest.model.dit
    try:
        array = np.load(path, allow_pickle=False)
        if array.shape != (1, dit.text_len, dit.text_dim):
            raise ValueError(f"it is {list(array.shape)}, not {[1, dit.text_len, dit.text_dim]}")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no text embeddings of this bundle: {error}") from None
    return np.asarray(array, np.float32)


def split(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Clips to calibrate with, and clips held out for the gate.

    Raises:
        UsageError: fewer than two clips, so that none can be held out.
    """
    if len(clips) < 2:
        raise UsageError(
            f"the calibration set is too small: {len(clips)} clip, and one must be held out for "
            "the verdict. Give at least 2."
        )
    held = clips[HELD_OUT - 1 :: HELD_OUT] or clips[-1:]
    return [c for c in clips if c not in held], held
