"""An engine on a device: a backend places its tensors and queues its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from liveedit.bundle import DType, GraphSpec
from liveedit.runtime.backend import Binding
from liveedit.runtime.device import Device, Stream

ALIGNMENT_BYTES = 256  # what TensorRT asks of a tensor's address


def aligned(nbytes: int) -> int:
    """``nbytes`` and what is left free before the next tensor can start."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True)
class Placed:
    """A buffer in the device's memory."""

    address: int
    dtype: DType
    shape: tuple[int, ...]


class DeviceEngine(Protocol):
    """One loaded graph."""

    activation_bytes: int  # what a run needs besides its tensors; only one run at a time uses it

    def rows(self, num_keep: int) -> int:
        """The smallest size at least ``num_keep`` that the dynamic dimension can have."""

    def bind(self, buffers: Mapping[str, Placed], activation: int) -> None:
        """Where its tensors lie, and its activations. Once; nothing moves afterwards."""

    def enqueue(self, stream: Stream, side: int, num_keep: int | None) -> None:
        """Queue a run with binding ``side``."""

    def close(self) -> None: ...


class EngineLoader(Protocol):
    """Loads graphs for one device."""

    name: str
    capturable: bool  # runs may be part of a captured graph

    def load(
        self,
        device: Device,
        stream: Stream,
        graph: str,
        spec: GraphSpec,
        path: Path,
        bindings: Sequence[Binding],
    ) -> DeviceEngine:
        """Load a graph that will run on ``stream``, its tensors where ``bindings`` say.

        Raises:
            BackendError: it cannot.
        """

    def close(self) -> None: ...


class NullDeviceEngine:
    """Does nothing, at every size."""

    activation_bytes = 0

    def rows(self, num_keep: int) -> int:
        return num_keep

    def bind(self, buffers: Mapping[str, Placed], activation: int) -> None:
        pass

    def enqueue(self, stream: Stream, side: int, num_keep: int | None) -> None:
        stream.call(_nothing)

    def close(self) -> None:
        pass


def _nothing() -> None:
    pass


class NullLoader:
    """Engines that do nothing: what the runtime itself costs."""

    name = "null"
    capturable = True

    def load(
        self,
        device: Device,
        stream: Stream,
        graph: str,
        spec: GraphSpec,
        path: Path,
        bindings: Sequence[Binding],
    ) -> NullDeviceEngine:
        return NullDeviceEngine()

    def close(self) -> None:
        pass
