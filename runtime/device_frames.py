"""Frames on a GPU that come from, or go to, other libraries: no copy over the host.

What has ``__cuda_array_interface__`` (CuPy, torch, numba) is taken as it lies; what has
``__dlpack__`` in host memory becomes a numpy array without a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from liveedit.errors import UsageError
from liveedit.runtime.backend import Frames
from liveedit.runtime.dlpack import capsule_of

HOST = 1  # DLPack's number of a processor's memory


@dataclass(frozen=True)
class ForeignFrames:
    """uint8 frames of someone else in a device's memory, C-contiguous."""

    address: int
    shape: tuple[int, ...]
    stream: int | None  # its work on them is queued there; None: it is done
    owner: object

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
    frames: Any, expected: tuple[int, ...], *, on_device: bool
) -> Frames | ForeignFrames:
    """Frames of any library, checked.

    Args:
        expected: the shape of one frame.
        on_device: whether frames on a GPU can be used.

    Raises:
        UsageError: wrong shape, type, layout or device; or no array at all.
    """
    taken: Any = frames
    if not isinstance(frames, np.ndarray):
        if hasattr(frames, "__cuda_array_interface__"):
            if not on_device:
                raise UsageError(
                    "these frames lie on a GPU, and this backend takes frames of the host. Copy "
                    "them there, or choose a backend of the GPU."
                )
            return _foreign(frames, expected)
        if hasattr(frames, "__dlpack__"):
            kind = int(frames.__dlpack_device__()[0])
            if kind != HOST:
                raise UsageError(
                    f"these frames are on a device of DLPack's kind {kind}; give an array with "
                    "__cuda_array_interface__, or one in host memory"
                )
            taken = np.from_dlpack(frames)
    shape = tuple(getattr(taken, "shape", ()))
    dtype = getattr(taken, "dtype", type(taken).__name__)
    _check(shape, dtype, expected)
    return taken


def _check(shape: tuple[int, ...], dtype: Any, expected: tuple[int, ...]) -> None:
    if dtype != np.uint8 or not shape or shape[1:] != expected:
        raise UsageError(
            f"frames are {dtype} {list(shape)}; this bundle takes uint8 "
            f"[n, {', '.join(map(str, expected))}]"
        )


def _foreign(frames: Any, expected: tuple[int, ...]) -> ForeignFrames:
    stated = frames.__cuda_array_interface__
    shape = tuple(stated["shape"])
    _check(shape, np.dtype(stated["typestr"]), expected)
    contiguous = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    if tuple(stated.get("strides") or contiguous) != contiguous:
        raise UsageError(
            f"frames on a GPU must be contiguous; their strides are {stated['strides']} bytes, "
            f"contiguous ones {contiguous}"
        )
    return ForeignFrames(int(stated["data"][0]), shape, stated.get("stream"), frames)
