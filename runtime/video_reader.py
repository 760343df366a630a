"""A video file as a stream of upright RGB frames with their timestamps."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np

from liveedit.errors import VideoError
from liveedit.runtime.resample import Image

if TYPE_CHECKING:
    AudioPacket = av.Packet[av.AudioStream]
_EARLY_END_S = 0.5  # a Matroska file that ends this much before its stated duration was cut

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED: both directions then use the same default


class BrokenVideo(VideoError):
    """A video breaks off after frames were already read."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a writer must know to make a file that plays like the source."""

    width_px: int  # after rotation
    height_px: int
    time_base: Fraction  # seconds per timestamp unit
    frame_rate: Fraction  # average
    num_video_frames: int | None  # what the container states, for progress only
    sample_aspect_ratio: Fraction | None  # width / height of one pixel, after rotation
    colorspace: int  # FFmpeg's numbers
    color_range: int
    color_primaries: int
    color_trc: int


@dataclass(frozen=True)
class SourceFrame:
    """One decoded frame.

    Attributes:
        image: [H, W, 3] uint8 RGB, upright, owned by the receiver.
        pts, duration: in units of ``VideoInfo.time_base``; pts always grows.
    """

    image: Image
    pts: int
    duration: int


class VideoReader:
    """Decodes the first real video stream of a file, frame by frame.

    Memory does not grow with the length of the clip. Sound is not decoded: its packets go to the
    ``on_audio`` callback in file order, with the same time origin as the frames.

    Raises:
        VideoError: missing, not a video, without a video stream, or without one decodable frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container = _open(path)
        try:
            self._stream = self._video_stream()
            self.audio_streams = list(self._container.streams.audio)
            self._start_s = Fraction(max(self._container.start_time or 0, 0), av.time_base)
            self._early_audio: deque[AudioPacket] = deque()
            self._frames = self._decode(self._early_audio.append)
            try:
                first = next(self._frames)
            except StopIteration:
                raise VideoError(
                    f"{path} has a video stream but no frame in it. Send a clip with a frame."
                ) from None
            except BrokenVideo:
                raise VideoError(
                    f"{path} is corrupt: not one frame can be decoded. Get the file again."
                ) from None
            self._first: av.VideoFrame | None = first
            self._turn = _turn(first)
            self._size = (first.width, first.height)
            self.info = self._describe(first)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def frames(
        self, on_audio: Callable[[AudioPacket], None] | None = None
    ) -> Iterator[SourceFrame]:
        """Every frame, once.

        Raises:
            BrokenVideo: the file breaks here. All frames before the break were handed out.
        """
        assert self._first is not None, "frames() was called twice"
        first, self._first = self._first, None
        if on_audio is None:
            on_audio = _ignore
        for packet in self._early_audio:
            on_audio(packet)
        self._early_audio.clear()
        self._on_audio = on_audio
        last_pts: int | None = None
        usual = max(1, round(1 / (self.info.frame_rate * self.info.time_base)))
        shift = round(self._start_s / self.info.time_base)
        frame: av.VideoFrame | None = first
        while frame is not None:
            pts = frame.pts - shift if frame.pts is not None else None
            if pts is None:
                pts = 0 if last_pts is None else last_pts + usual
            if last_pts is not None and pts <= last_pts:
                pts = last_pts + 1  # no container holds two frames at one time
            last_pts = pts
            yield SourceFrame(self._upright(frame), pts, frame.duration or usual)
            frame = next(self._frames, None)

    def _video_stream(self) -> av.VideoStream:
        covers = av.stream.Disposition.attached_pic
        for stream in self._container.streams.video:
            if not stream.disposition & covers:  # a cover picture is not a video
                return stream
        held = ", ".join(s.type for s in self._container.streams)
        if not held:
            raise VideoError(
                f"{self.path} holds no stream: it is empty or truncated. Get it again."
            )
        raise VideoError(f"{self.path} has no video stream (it holds: {held}). Send a video.")

    def _describe(self, frame: av.VideoFrame) -> VideoInfo:
        stream = self._stream
        swapped = self._turn[0]
        width, height = (frame.height, frame.width) if swapped else (frame.width, frame.height)
        pixel = stream.sample_aspect_ratio
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        assert stream.time_base is not None
        stated = stream.frames or None
        if stated is None and self._container.duration:
            stated = max(1, round(self._container.duration * rate / av.time_base))
        rgb = frame.format.is_rgb  # its tags describe RGB, and the writer writes YUV
        return VideoInfo(
            width_px=width,
            height_px=height,
            time_base=stream.time_base,
            frame_rate=Fraction(rate),
            num_video_frames=stated,
            sample_aspect_ratio=(1 / pixel if swapped else pixel) if pixel else None,
            colorspace=_UNSPECIFIED if rgb else int(frame.colorspace),
            color_range=0 if rgb else int(frame.color_range),
            color_primaries=int(frame.color_primaries),
            color_trc=int(frame.color_trc),
        )

    def _decode(self, on_audio: Callable[[AudioPacket], None]) -> Iterator[av.VideoFrame]:
        """Frames as the decoder gives them; audio packets go to ``on_audio`` on the way."""
        self._on_audio = on_audio
        streams = [self._stream, *self._container.streams.audio]
        end_s = Fraction(0)
        clean = torn = any_packet = False
        try:
            for packet in self._container.demux(streams):
                torn = packet.is_corrupt if packet.size else torn
                if packet.stream is not self._stream:
                    if packet.size and packet.dts is not None:
                        self._on_audio(self._shifted(cast("AudioPacket", packet)))
                    continue
                any_packet = any_packet or packet.size > 0
                try:
                    decoded = self._stream.decode(packet)
                except av.error.InvalidDataError:
                    if clean:
                        raise
                    continue  # a stream cut out of a longer one may start before its first keyframe
                for frame in decoded:
                    if frame.is_corrupt and clean:
                        raise self._broken("a frame is damaged")
                    clean = clean or not frame.is_corrupt
                    if frame.pts is not None and frame.time_base is not None:
                        end_s = max(end_s, (frame.pts + frame.duration) * frame.time_base)
                    yield frame
                if packet.is_corrupt and clean:
                    raise self._broken("a packet is damaged")
        except (av.error.FFmpegError, OSError) as error:
            raise self._broken(reason(error)) from None
        if any_packet and not clean:
            raise self._broken("no frame can be decoded")
        if torn or self._promised_more(end_s):
            raise self._broken("the file was cut short")

    def _promised_more(self, end_s: Fraction) -> bool:
        """Whether the container states more than it delivered: demuxers end quietly there."""
        stream, name = self._stream, self._container.format.name
        if "mp4" in name and self.path.is_file():
            promised = max((e.pos + e.size for e in stream.index_entries), default=0)
            return promised > self.path.stat().st_size
        stated = _seconds(stream.metadata.get("DURATION", ""))  # Matroska's tag
        return stated is not None and stated - float(end_s) > _EARLY_END_S

    def _broken(self, why: str) -> BrokenVideo:
        return BrokenVideo(f"{self.path} breaks off: {why}")

    def _shifted(self, packet: AudioPacket) -> AudioPacket:
        shift = round(self._start_s / packet.time_base)
        if shift:
            if packet.pts is not None:
                packet.pts -= shift
            packet.dts = (packet.dts or 0) - shift
        return packet

    def _upright(self, frame: av.VideoFrame) -> Image:
        width, height = self._size  # a stream may change its size; the output cannot
        image = cast(Image, frame.to_ndarray(format="rgb24", width=width, height=height))
        transpose, flip_x, flip_y = self._turn
        if transpose:
            image = image.transpose(1, 0, 2)
        if flip_x:
            image = image[:, ::-1]
        if flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image)


def _ignore(packet: AudioPacket) -> None:
    """For a reader that nobody asked for sound."""


def _open(path: Path) -> av.container.InputContainer:
    if path.is_dir():
        raise VideoError(f"{path} is a directory; give one video file")
    try:
        return av.open(str(path), metadata_errors="replace")
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist; give the path of a video file") from None
    except PermissionError:
        raise VideoError(f"{path} cannot be read: permission denied") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path} cannot be opened as a video: {reason(error)}. It may be truncated or of an "
            "unknown format; send a file that FFmpeg can play."
        ) from None


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror x, then mirror y) that the frame's display matrix asks for."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return False, False, False
    # x' = a x + c y, y' = b x + d y, stored as [a b u; c d v; x y w] in 16.16 fixed point
    a, b, _, c, d = np.frombuffer(cast(bytes, side), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _seconds(text: str) -> float | None:
    """``"00:00:01.333000000"`` -> 1.333."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def reason(error: Exception) -> str:
    """FFmpeg's words without its numbers."""
    if isinstance(error, av.error.InvalidDataError):
        return "invalid data"
    if isinstance(error, EOFError):
        return "it ends before the first picture"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or error)
