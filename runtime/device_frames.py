"""Frames on a GPU that come from, or go to, other libraries: no copy over the host.

What has ``__dlpack__`` or ``__cuda_array_interface__`` (torch, CuPy, numba, JAX) is taken as it
lies, ordered after its owner's work on it. In host memory it becomes a numpy array without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from liveedit.errors import UsageError
from liveedit.runtime.backend import Frames
from liveedit.runtime.device import Device, Stream
from liveedit.runtime.dlpack import CPU, CUDA, CUDA_HOST, CUDA_MANAGED, TakenTensor, capsule_of


@dataclass(frozen=True)
class Intake:
    """What takes frames that lie on a device: that device, and the stream that reads them."""

    device: Device
    stream: Stream


@dataclass(frozen=True)
class ForeignFrames:
    """uint8 frames of someone else in a device's memory, C-contiguous."""

    address: int
    shape: tuple[int, ...]
    stream: int | None  # its work on them is queued there; None: ours waits for it already
    owner: object  # holds the memory

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> ForeignFrames:
        """One frame; its first dimension is 1."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = int(np.prod(self.shape[1:]))
        address = self.address + index * size
        return ForeignFrames(address, (1, *self.shape[1:]), self.stream, self.owner)


class LentFrames:
    """Edited frames where they were made, uint8.

    Valid until the editor is closed. Their room is used again once this object is gone: keep it as
    long as what was made of it through ``__cuda_array_interface__``; a DLPack tensor keeps it.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        device: tuple[int, int],
        give_back: Callable[[], None],
    ) -> None:
        """``device``: DLPack's kind and number of where they lie."""
        self.shape = shape
        self._device = device
        self.dtype = np.dtype(np.uint8)
        self._address, self._give_back = address, give_back

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self._address, False),
            "strides": None,
            "stream": None,  # they are finished
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **options: Any) -> Any:
        """They are finished, so any stream may read them; a copy is the consumer's to make."""
        return capsule_of(self._address, self.shape, self._device, self)

    def __del__(self) -> None:
        self._give_back()


def take_frames(
    frames: Any, expected: tuple[int, ...], intake: Intake | None
) -> Frames | ForeignFrames:
    """Frames of any library, checked.

    Args:
        expected: the shape of one frame.
        intake: for frames on a GPU; None takes frames of the host only.

    Raises:
        UsageError: wrong shape, type, layout or device; or no array at all.
    """
    if not isinstance(frames, np.ndarray):
        stated = getattr(frames, "__cuda_array_interface__", None)
        kind, number = frames.__dlpack_device__() if hasattr(frames, "__dlpack__") else (0, 0)
        # Only with its stream can the owner overwrite them right after the push.
        if stated is not None and (stated.get("stream") is not None or not kind):
            return _from_interface(frames, stated, expected, _on_gpu(intake))
        if kind not in (0, CPU, CUDA_HOST):
            return _from_dlpack(frames, (int(kind), int(number)), expected, _on_gpu(intake))
        if kind:
            frames = np.from_dlpack(frames)
    shape = tuple(getattr(frames, "shape", ()))
    _check(shape, getattr(frames, "dtype", type(frames).__name__), expected)
    taken: Frames = frames
    return taken


def _on_gpu(intake: Intake | None) -> Intake:
    if intake is None:
        raise UsageError(
            "these frames lie on a GPU, and this backend takes frames of the host. Copy "
            "them there, or choose a backend of the GPU."
        )
    return intake


def _from_interface(
    frames: Any, stated: dict[str, Any], expected: tuple[int, ...], intake: Intake
) -> ForeignFrames:
    shape, address = tuple(stated["shape"]), int(stated["data"][0])
    _check(shape, np.dtype(stated["typestr"]), expected)
    _check_contiguous(shape, stated.get("strides"))
    if stated.get("mask") is not None:
        raise UsageError("frames on a GPU must have no mask; give the array without it")
    if stated.get("stream") == 0:
        raise UsageError(
            "frames on a GPU state stream 0, which __cuda_array_interface__ leaves undefined; "
            "1 is the default stream, 2 that of the thread"
        )
    if len(shape) and shape[0]:
        _check_place(intake.device.place_of(address), intake)
    return ForeignFrames(address, shape, stated.get("stream"), frames)


def _from_dlpack(
    frames: Any, place: tuple[int, int], expected: tuple[int, ...], intake: Intake
) -> ForeignFrames:
    _check_place(place, intake)
    tensor = TakenTensor(frames.__dlpack__(stream=intake.stream.handle))
    _check(tensor.shape, tensor.dtype, expected)
    _check_contiguous(tensor.shape, tensor.strides)
    return ForeignFrames(tensor.address, tensor.shape, None, tensor)


def _check(shape: tuple[int, ...], dtype: Any, expected: tuple[int, ...]) -> None:
    if str(dtype) != "uint8" or not shape or shape[1:] != expected:
        raise UsageError(
            f"frames are {dtype} {list(shape)}; this bundle takes uint8 "
            f"[n, {', '.join(map(str, expected))}]"
        )


def _check_contiguous(shape: tuple[int, ...], strides: Sequence[int] | None) -> None:
    """``strides``: in elements or bytes, which are the same here; None: contiguous."""
    contiguous = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    found = contiguous if strides is None else tuple(strides)
    # Where there is one of something, or nothing at all, a step is never taken.
    if 0 not in shape and any(
        n > 1 and a != b for n, a, b in zip(shape, found, contiguous, strict=True)
    ):
        raise UsageError(
            f"frames on a GPU must be contiguous; their strides are {found} bytes, "
            f"contiguous ones {contiguous}"
        )


def _check_place(place: tuple[int, int], intake: Intake) -> None:
    """``place``: DLPack's kind and number."""
    device = intake.device
    if place not in (device.dlpack_device, (CUDA_MANAGED, place[1])):
        kinds = {CPU: "host memory", CUDA_HOST: "pinned host memory", CUDA: f"GPU {place[1]}"}
        raise UsageError(
            f"these frames lie in {kinds.get(place[0], f'a device of kind {place[0]} of DLPack')}; "
            f"this stream runs on {device.name}, GPU {device.dlpack_device[1]}. Copy them there, "
            "or give a numpy array."
        )
