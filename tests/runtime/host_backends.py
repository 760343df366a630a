"""Device backends in host memory, and streams to compare them by."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveedit.bundle import read_manifest
from liveedit.runtime import EditedChunk, MaskCachePolicy, StreamEditor
from liveedit.runtime.backend import FIRST_FRAME, SEED, Backend
from liveedit.runtime.device_backend import DeviceBackend
from liveedit.runtime.host_device import HostDevice, Order
from liveedit.runtime.onnx_backend import OnnxBackend
from liveedit.runtime.onnx_device import OnnxHostLoader
from liveedit.runtime.rope import RotaryTable

Frames = npt.NDArray[np.uint8]
PROMPT = "make the car red"


def moving_clip(count: int, height: int = 64, width: int = 96) -> Frames:
    rng = np.random.default_rng(5)
    scene = rng.integers(0, 256, (height // 8, width // 8 + count, 3)).repeat(8, 0).repeat(8, 1)
    return np.stack([scene[:, 2 * i : 2 * i + width] for i in range(count)]).astype(np.uint8)


def host_backend(
    library: ctypes.CDLL, order: Order | None = None, **options: bool
) -> DeviceBackend:
    return DeviceBackend(HostDevice(library, order=order), OnnxHostLoader(threads=1), **options)


class TwinBackend(OnnxBackend):
    """The CPU backend with the host twins' noise and angles.

    numpy's logarithm and cosine may differ from the C library's in the last bit.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(threads=1)
        self._library = library

    def write_noise(self, buffer: str, *, control: str, draw: int) -> None:
        array, numbers = self._buffers[buffer], self._buffers[control]
        key = numbers[SEED:].ctypes.data
        assert not self._library.liveedit_host_noise(key, array.ctypes.data, array.size, draw, 0)

    def rotary(self, control: str, table: RotaryTable, frequency: str, cos: str, sin: str) -> None:
        a = [self._buffers[n] for n in (frequency, cos, sin)]
        first = self._buffers[control][FIRST_FRAME:].ctypes.data
        frames, (_, tokens, columns) = table.num_frames, a[1].shape
        sizes = (frames, tokens // frames, len(a[0]), columns)
        assert not self._library.liveedit_host_rope_time(first, *(x.ctypes.data for x in a), *sizes)


def device_of(backend: DeviceBackend) -> HostDevice:
    assert isinstance(backend._device, HostDevice)
    return backend._device


def open_editor(root: Path, backend: Backend, **options: object) -> StreamEditor:
    options = {"mask_cache": MaskCachePolicy(keep_ratio=0.6), **options}
    return StreamEditor(root, read_manifest(root), backend, precision="fp32", **options)  # type: ignore[arg-type]


def edit(
    root: Path, backend: Backend, frames: Frames, size: int = 7, **options: object
) -> list[EditedChunk]:
    with open_editor(root, backend, **options) as editor:
        editor.set_prompt(PROMPT)
        chunks = [c for i in range(0, len(frames), size) for c in editor.push(frames[i : i + size])]
        return chunks + editor.flush()


def assert_same(got: list[EditedChunk], want: list[EditedChunk]) -> None:
    """Equal in every bit of every field."""
    assert [c.index for c in got] == [c.index for c in want]
    for a, b in zip(got, want, strict=True):
        for name in ("first_frame", "num_kept", "recovered", "peak_change"):
            assert getattr(a, name) == getattr(b, name), (a.index, name)
        for name in ("frames", "latent_rows", "importance", "kept"):
            mine, other = getattr(a, name), getattr(b, name)
            assert mine.dtype == other.dtype, name
            assert mine.tobytes() == other.tobytes(), (a.index, name)
