"""Times of a plan's layers through TensorRT's own profiler.

`liveedit.profiling.plan_run` hooks it into the contexts of a stream's plan.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from liveedit.bundle import write_atomic
from liveedit.errors import UsageError


class LayerTimes:
    """Mean time of every layer, over as many runs as were reported."""

    def __init__(self) -> None:
        self._reported: dict[str, tuple[int, float]] = {}

    def add(self, name: str, ms: float) -> None:
        count, total = self._reported.get(name, (0, 0.0))
        self._reported[name] = (count + 1, total + ms)

    def reset(self) -> None:
        """Forget what the warm-up reported."""
        self._reported.clear()

    @property
    def average_ms(self) -> dict[str, float]:
        """Layer name -> mean milliseconds, in order of execution."""
        return {name: total / count for name, (count, total) in self._reported.items()}

    @property
    def runs(self) -> int:
        return max((count for count, _ in self._reported.values()), default=0)

    def write(self, path: Path) -> Path:
        """The file that ``--times`` reads, in the form of TensorRT's own tools.

        Raises:
            UsageError: no layer was reported.
        """
        if not self._reported:
            raise UsageError("no layer time was reported; run the plan outside of CUDA graphs")
        rows = [{"name": name, "averageMs": ms} for name, ms in self.average_ms.items()]
        text = json.dumps([{"count": self.runs}, *rows], indent=1)
        write_atomic(path, text.encode() + b"\n")
        return path


def layer_profiler(trt: Any, times: LayerTimes) -> Any:
    """An ``IProfiler`` for ``context.profiler``, which adds to ``times``.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``, as `liveedit.engines.flavour` loads it.
    """

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, ms)

    return Profiler()
