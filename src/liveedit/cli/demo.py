"""``liveedit demo``: the shipped clip through the shipped editor."""

from __future__ import annotations

import argparse
import resource
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from liveedit.bundle import write_atomic
from liveedit.cli.edit import add_editor_arguments, edit_file, editor_options
from liveedit.errors import UsageError
from liveedit.runtime.resample import Image, Resampler
from liveedit.runtime.shipped import shipped
from liveedit.runtime.video_reader import VideoReader

PROMPT = "make the yellow box blue"
_CELL = (240, 320)  # height and width of one picture
_PICTURES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("liveedit-demo"),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument(
        "--no-composite",
        dest="composite",
        action="store_false",
        help="show the editor's whole picture, not only the edit laid over the source",
    )
    add_editor_arguments(parser)


def run(options: argparse.Namespace) -> int:
    folder: Path = options.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}; choose another -o") from None
    source, target = shipped("clip.mp4"), folder / "edited.mp4"
    done = edit_file(
        source,
        target,
        prompt=options.prompt,
        editor=editor_options(options),
        fit=options.fit,
        composite=options.composite,
    )
    picture = folder / "side_by_side.png"
    write_atomic(picture, png(side_by_side(source, target, done.num_video_frames)))
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"prompt   {options.prompt}")
    print(f"video    {done}")
    print(f"picture  {picture} (source left, edit right)")
    print(f"memory   {peak_bytes / 2**20:.0f} MiB at most")
    return 0


def side_by_side(source: Path, edited: Path, num_video_frames: int) -> Image:
    """A few moments of both clips, one per row, the source left and the edit right."""
    step = max(1, num_video_frames // _PICTURES)
    small = Resampler(*_CELL, "bilinear")
    columns = []
    for path in (source, edited):
        with VideoReader(path) as reader:
            frames = islice(reader.frames(), step // 2, None, step)
            columns.append(np.concatenate([small(f.image) for f in islice(frames, _PICTURES)]))
    return np.concatenate(columns, axis=1)


def png(image: Image) -> bytes:
    """[H, W, 3] uint8 as a PNG file."""
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = image.shape[1], image.shape[0], "rgb24"
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return b"".join(bytes(p) for p in (*encoder.encode(frame), *encoder.encode(None)))
