"""Engines of copies alone, for any device: what happens around engines shows in the bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from liveedit.bundle import GraphSpec
from liveedit.runtime.backend import Binding
from liveedit.runtime.device import Device, Stream
from liveedit.runtime.device_engine import Placed
from liveedit.runtime.memory_budget import ITEM_BYTES

REAL = ("float32", "float16")


class CopyEngine:
    """Every output of real numbers gets the bytes of an input of its type, repeated or cut."""

    activation_bytes = 256

    def __init__(self, spec: GraphSpec, bindings: Sequence[Binding]) -> None:
        self._spec, self._bindings = spec, bindings
        self._copies: list[list[tuple[int, int, int]]] = []

    def rows(self, num_keep: int) -> int:
        return num_keep

    def bind(self, buffers: Mapping[str, Placed], activation: int) -> None:
        for binding in self._bindings:
            inputs = [
                buffers[binding[t.name]]
                for t in self._spec.inputs
                if t.dtype in REAL and math.prod(n for n in t.shape if isinstance(n, int)) > 1
            ]
            copies = []
            outputs = self._spec.outputs if inputs else ()
            for number, tensor in enumerate(outputs, 1):
                target, source = buffers[binding[tensor.name]], inputs[number % len(inputs)]
                left, place = _bytes(target), target.address
                while left and target.address != source.address:
                    count = min(left, _bytes(source))
                    copies.append((place, source.address, count))
                    left, place = left - count, place + count
            self._copies.append(copies)

    def enqueue(self, stream: Stream, side: int, num_keep: int | None) -> None:
        for target, source, count in self._copies[side]:
            stream.copy(target, source, count)

    def close(self) -> None:
        pass


def _bytes(place: Placed) -> int:
    return ITEM_BYTES[place.dtype] * math.prod(place.shape)


class CopyLoader:
    name = "copy"
    capturable = True

    def load(
        self,
        device: Device,
        stream: Stream,
        graph: str,
        spec: GraphSpec,
        path: Path,
        bindings: Sequence[Binding],
    ) -> CopyEngine:
        return CopyEngine(spec, bindings)

    def close(self) -> None:
        pass
