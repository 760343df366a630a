"""Frames into an H.264 file that appears under its final name only when it is whole."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import av

from liveedit.errors import UsageError, VideoError
from liveedit.runtime.resample import Image
from liveedit.runtime.video_reader import VideoInfo, reason

if TYPE_CHECKING:
    from liveedit.runtime.video_reader import AudioPacket

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_ENCODER = {"preset": "faster", "crf": "18"}


class VideoWriter:
    """Encodes frames with libx264 and copies sound packets beside them.

    The size, the timestamps and the time base are the source's. Frames with an odd side are stored
    as yuv444p, since yuv420p cannot hold them; all others as yuv420p, which plays everywhere. A
    context manager: leaving it normally finishes the file and renames it to its final name; leaving
    it with an exception removes what was written.

    Args:
        path: final name; its suffix chooses the container.
        info: the source's geometry, timing and colour.
        audio: the source's audio streams, to be copied with `copy`.

    Attributes:
        notes: sentences for the user: what could not be kept, and what to do about it.

    Raises:
        UsageError: a container that cannot hold H.264.
        VideoError: the file cannot be created or written, now or later.
    """

    def __init__(self, path: Path, info: VideoInfo, audio: Sequence[av.AudioStream] = ()) -> None:
        check_target(path)
        self.path = path
        self.notes: list[str] = []
        self._info = info
        try:
            handle, name = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix
            )
        except OSError as error:
            raise VideoError(f"cannot write {path}: {reason(error)}. Choose another -o") from None
        os.close(handle)
        self._temporary = Path(name)
        try:
            self._container = av.open(name, "w", format=FORMATS[path.suffix.lower()])
            self._video = self._video_stream(info)
            self._audio = self._audio_streams(audio)
        except (av.error.FFmpegError, OSError) as error:
            self._temporary.unlink(missing_ok=True)
            raise self._failed(error) from None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._finish()
        else:
            self._discard()

    def write(self, image: Image, pts: int, duration: int) -> None:
        """Append [H, W, 3] uint8 RGB. ``pts`` and ``duration`` count ``VideoInfo.time_base``."""
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
            format=self._video.pix_fmt,
            dst_colorspace=self._info.colorspace,
            dst_color_range=self._info.color_range,
        )
        frame.pts = pts
        frame.duration = duration
        frame.time_base = self._info.time_base
        try:
            self._container.mux(self._video.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def copy(self, packet: AudioPacket) -> None:
        """Append one sound packet unchanged; packets of a stream that was refused are dropped."""
        stream = self._audio.get(packet.stream.index)
        if stream is None:
            return
        packet.stream = stream
        try:
            self._container.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def _video_stream(self, info: VideoInfo) -> av.VideoStream:
        stream = self._container.add_stream("libx264", rate=info.frame_rate, options=dict(_ENCODER))
        stream.width, stream.height = info.width_px, info.height_px
        odd = info.width_px % 2 or info.height_px % 2
        stream.pix_fmt = "yuv444p" if odd else "yuv420p"
        context = stream.codec_context
        context.time_base = info.time_base
        if info.sample_aspect_ratio is not None:
            context.sample_aspect_ratio = info.sample_aspect_ratio
        context.colorspace = info.colorspace
        context.color_range = info.color_range
        context.color_primaries = info.color_primaries
        context.color_trc = info.color_trc
        return stream

    def _audio_streams(self, audio: Sequence[av.AudioStream]) -> dict[int, av.AudioStream]:
        """Input stream index -> output stream."""
        copies: dict[int, av.AudioStream] = {}
        for stream in audio:
            try:
                copies[stream.index] = self._container.add_stream_from_template(stream)
            except ValueError:
                codec = stream.codec_context.name if stream.codec_context else "unknown"
                other = ".mov" if self.path.suffix.lower() == ".mkv" else ".mkv"
                self.notes.append(
                    f"the sound was left out: {self.path.suffix} cannot hold {codec}; "
                    f"try -o {self.path.stem}{other}"
                )
        return copies

    def _finish(self) -> None:
        try:
            self._container.mux(self._video.encode())
            self._container.close()
            with self._temporary.open("rb+") as file:
                os.fsync(file.fileno())
            self._temporary.chmod(0o666 & ~_umask())
            self._temporary.replace(self.path)
        except (av.error.FFmpegError, OSError) as error:
            self._discard()
            raise self._failed(error) from None
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        self._temporary.unlink(missing_ok=True)
        try:
            self._container.close()
        except (av.error.FFmpegError, OSError, ValueError):
            pass  # the trailer of a file that is already gone

    def _failed(self, error: Exception) -> VideoError:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            return VideoError(
                f"the disk that holds {self.path} is full; nothing was left there. Free some space "
                "or choose another -o"
            )
        if code == errno.EFBIG:
            return VideoError(
                f"{self.path} grew past the file size limit of this process; nothing was left "
                "there. Raise the limit (ulimit -f) or edit a shorter clip"
            )
        return VideoError(f"cannot write {self.path}: {reason(error)}. Choose another -o")


def check_target(path: Path) -> None:
    """Raise unless ``path`` can name an output: known container, directory there and writable.

    Raises:
        UsageError: see above.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"cannot write {path}: the suffix is {path.suffix or 'missing'!r}; allowed are "
            f"{', '.join(FORMATS)}"
        )
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory; give a file name in it")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: {path.parent} is not a directory; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: {path.parent} is not writable; choose another -o")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
