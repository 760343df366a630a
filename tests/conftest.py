"""Clips made on the spot, and small bundles with random weights, exported once per session."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_once import made_once
from micro import MICRO, make_bundle
from native_libraries import cmake_build, given
from released_files import ReleasedFiles

from liveedit.runtime.kernels import HOST_LIBRARY, load_kernels

if TYPE_CHECKING:  # a GPU machine runs its tests without PyAV
    import av

# A shell's background job ignores Ctrl-C, and so would the commands that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: a worker a core, but the largest tests take 3 GiB."""
    return min(4, len(os.sched_getaffinity(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """One thread for each worker and for what its tests start: they inherit this."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files, since a module's fixtures are dear, in the order that follows."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def picture(number: int, height_px: int, width_px: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth background, dark at the top left, and a square that moves right."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    image = np.stack(
        [60 + 120 * x / width_px, 60 + 120 * y / height_px, np.full(x.shape, 90.0)], axis=-1
    ).astype(np.uint8)
    side = max(1, height_px // 4)
    left = (3 * number) % max(1, width_px - side)
    image[side : 2 * side, left : left + side] = (230, 200, 40)
    return image


def _tone(number: int, samples: int, sample_format: str) -> av.AudioFrame:
    """Frame ``number`` of a 440 Hz tone at 16 kHz, mono."""
    import av

    wave = np.sin(2 * np.pi * 440 * (np.arange(samples) + number * samples) / 16000)[None]
    if sample_format == "s16":
        tone = av.AudioFrame.from_ndarray((8000 * wave).astype(np.int16), "s16", "mono")
    else:
        tone = av.AudioFrame.from_ndarray((0.25 * wave).astype(np.float32), "fltp", "mono")
    tone.sample_rate = 16000
    tone.pts = number * samples
    tone.time_base = Fraction(1, 16000)
    return tone


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes a clip and gives its path."""
    import av

    def make(
        name: str = "clip.mp4",
        *,
        frames: int = 14,
        size: tuple[int, int] = (48, 64),
        rate: int = 30,
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        times: list[int] | None = None,
        audio: str | None = None,
        options: dict[str, str] | None = None,
    ) -> Path:
        """``times`` are timestamps in milliseconds; ``size`` is (height, width)."""
        path = tmp_path / name
        height, width = size
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            sound = container.add_stream(audio, rate=16000, layout="mono") if audio else None
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
                frame.pts = number if times is None else times[number]
                frame.time_base = Fraction(1, rate if times is None else 1000)
                container.mux(stream.encode(frame))
                if sound is not None:
                    container.mux(sound.encode(_tone(number, 16000 // rate, sound.format.name)))
            container.mux(stream.encode())
            if sound is not None:
                container.mux(sound.encode())
        return path

    return make


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels' host twins."""
    if path := given(HOST_LIBRARY):
        return load_kernels(path)
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler")

    def make(folder: Path) -> None:
        cmake_build(folder, "-DLIVEEDIT_PLUGINS=OFF")

    return load_kernels(made_once(tmp_path_factory, "host", make) / HOST_LIBRARY)


@pytest.fixture(scope="session")
def micro_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TAEHV editor of 48 x 64 px, fp32 and fp16, window 9 with sink 3."""

    def make(root: Path) -> None:
        make_bundle(root, MICRO, ("fp32", "fp16"))

    return made_once(tmp_path_factory, "micro", make)


@pytest.fixture(scope="session")
def micro_wan_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same editor with a Wan VAE, fp32: what ``liveedit export`` makes of files."""

    def make(root: Path) -> None:
        files = ReleasedFiles(tmp_path_factory.mktemp("released"))
        files.write()
        assert files.run("-o", str(root), "--precision", "fp32") == 0

    return made_once(tmp_path_factory, "micro_wan", make)
