"""``liveedit edit``: one clip in, the edited clip out."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import read_manifest, refusal
from liveedit.cli.progress import Progress
from liveedit.cli.stream_options import add_stream_arguments
from liveedit.errors import LiveEditError, UsageError, VideoError
from liveedit.profiling import nvtx_ranges
from liveedit.runtime.backends import BACKENDS
from liveedit.runtime.composite import SoftMask
from liveedit.runtime.edit_clip import ClipEdit
from liveedit.runtime.fit import FIT_POLICIES, Fit, FitPolicy, Size
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.shipped import shipped
from liveedit.runtime.stream import StreamEditor
from liveedit.runtime.video_reader import VideoReader
from liveedit.runtime.video_writer import FORMATS, VideoWriter, check_target


def add_editor_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that edits a clip; `editor_options` reads them."""
    add_stream_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default: %(default)s")
    parser.add_argument(
        "--fit",
        choices=FIT_POLICIES,
        default="stretch",
        help="how a frame meets the bundle's size: scale it whole and ignore its aspect ratio (as "
        "the released model does), edit only the centre, or show it whole with repeated borders; "
        "the output always has the size of the source; default: %(default)s",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="any video that FFmpeg reads")
    parser.add_argument("--prompt", required=True, help="what to change, one sentence")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=", ".join(FORMATS)
    )
    parser.add_argument(
        "--composite",
        action="store_true",
        help="keep the full-resolution source where nothing was edited",
    )
    parser.add_argument(
        "--save-mask", type=Path, metavar="OUT", help="also write a video of the edit mask"
    )
    add_editor_arguments(parser)


def run(options: argparse.Namespace) -> int:
    editor = editor_options(options)
    done = edit_file(
        options.source,
        options.output,
        prompt=options.prompt,
        editor=editor,
        fit=options.fit,
        composite=options.composite,
        save_mask=options.save_mask,
    )
    print(done)
    return 0


@dataclass(frozen=True, kw_only=True)
class EditorOptions:
    """How to open the editor."""

    bundle: Path
    backend: str = BACKENDS[0]
    precision: str | None = None
    threads: int | None = None
    seed: int = 0
    mask_cache: MaskCachePolicy

    def open(self) -> StreamEditor:
        return StreamEditor.open(
            self.bundle,
            backend=self.backend,
            precision=self.precision,
            threads=self.threads,
            seed=self.seed,
            mask_cache=self.mask_cache,
            tracer=nvtx_ranges.tracer(),
        )


def editor_options(options: argparse.Namespace) -> EditorOptions:
    """The parsed form of `add_editor_arguments`."""
    return EditorOptions(
        bundle=options.bundle or shipped("tiny"),
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        seed=options.seed,
        mask_cache=MaskCachePolicy(
            mode=options.mask_cache,
            keep_ratio=options.keep_ratio,
            token_budget=options.token_budget,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was written, and how fast."""

    path: Path
    num_video_frames: int
    elapsed_s: float  # reading, editing and writing; opening the bundle is not in it

    @property
    def frames_per_second(self) -> float:
        return self.num_video_frames / self.elapsed_s

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.num_video_frames} frames in {self.elapsed_s:.1f} s, "
            f"{self.frames_per_second:.1f} FPS"
        )


def edit_file(
    source: Path,
    target: Path,
    *,
    prompt: str,
    editor: EditorOptions,
    fit: FitPolicy = "stretch",
    composite: bool = False,
    save_mask: Path | None = None,
) -> Done:
    """Edit one file into another, with progress on stderr.

    Raises:
        LiveEditError: see the sentences; when it says that frames were kept, ``target`` holds them.
    """
    targets = [target] if save_mask is None else [target, save_mask]
    for path in targets:
        check_target(path)
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path} is the source itself; choose another -o")
    if len({path.resolve() for path in targets}) < len(targets):
        raise UsageError(f"{target} is named twice; give --save-mask its own file")
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress())
        reader = stack.enter_context(VideoReader(source))
        info = reader.info
        progress.phase(f"opening {editor.bundle}")
        stream = stack.enter_context(editor.open())
        why = refusal(read_manifest(editor.bundle), editor.precision) if editor.precision else ""
        if why:
            progress.phase(f"warning: {editor.precision} of this bundle is {why}")
        stream.set_prompt(prompt)
        size = Size(info.height_px, info.width_px)
        output = stack.enter_context(VideoWriter(target, info, reader.audio_streams))
        mask_video = stack.enter_context(VideoWriter(save_mask, info)) if save_mask else None
        progress.total = info.num_video_frames
        progress.phase(
            f"editing {source}: {info.width_px} x {info.height_px} ({fit} to "
            f"{stream.width_px} x {stream.height_px}), {float(info.frame_rate):.5g} per second"
        )
        for note in output.notes:
            progress.phase(f"note: {note}")
        edit = ClipEdit(
            stream,
            Fit(size, Size(stream.height_px, stream.width_px), fit),
            output,
            composite=SoftMask() if composite else None,
            mask_video=mask_video,
            on_progress=progress.frames,
        )
        outcome = edit.run(reader)
        elapsed_s = progress.elapsed_s
    if outcome.ended_by is not None:
        raise _kept(outcome.ended_by, outcome.num_video_frames, target)
    return Done(path=target, num_video_frames=outcome.num_video_frames, elapsed_s=elapsed_s)


def _kept(ended_by: LiveEditError, num_video_frames: int, target: Path) -> VideoError:
    reason = str(ended_by).rstrip(".")
    return VideoError(f"{reason}. The {num_video_frames} frames before that are kept in {target}")
