"""Per-node times of a graph in ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import Manifest
from liveedit.profiling.pass_runner import PassRunner
from liveedit.runtime.onnx_backend import OnnxBackend, OnnxEngine


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """One executed node: its time in each run, and the bytes of its tensors."""

    node: str
    operator: str
    ms: tuple[float, ...]
    bytes: float = 0.0

    @property
    def typical_ms(self) -> float:
        """The fastest run: one that lost its core meanwhile took a hundred times longer."""
        return min(self.ms)


class ProfilingBackend(OnnxBackend):
    """ONNX Runtime that writes down what every node took."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self._options.enable_profiling = True
        self._options.profile_file_prefix = str(folder / "ort")


def profile_pass(
    root: Path,
    manifest: Manifest,
    precision: str,
    *,
    kept: int | None = None,
    threads: int | None = None,
    runs: int = 5,
) -> list[NodeTime]:
    """Node times of a steady-state `dit_step`; two warm-up runs are left out."""
    with tempfile.TemporaryDirectory() as folder:
        backend = ProfilingBackend(Path(folder), threads=threads)
        try:
            runner = PassRunner(root, manifest, precision, backend)
            if kept is not None:
                runner.keep(kept)
            for _ in range(runs + 2):
                runner.run()
            engine = runner.engine
            assert isinstance(engine, OnnxEngine), engine
            file = Path(engine._session.end_profiling())
            return read_profile(json.loads(file.read_text()), skip=2)
        finally:
            backend.close()


def read_profile(events: Iterable[dict[str, object]], *, skip: int = 0) -> list[NodeTime]:
    """Nodes of ONNX Runtime's profile, in execution order, without its first ``skip`` runs."""
    times: dict[tuple[str, str], list[float]] = {}
    sizes: dict[tuple[str, str], float] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        args = event.get("args")
        args = args if isinstance(args, dict) else {}
        operator = str(args.get("op_name", ""))
        key = (name.removesuffix("_kernel_time"), operator)
        sizes[key] = sum(
            float(args.get(f"{kind}_size", 0)) for kind in ("activation", "parameter", "output")
        )
        times.setdefault(key, []).append(float(str(event["dur"])) / 1e3)
    return [
        NodeTime(node=n, operator=o, ms=tuple(ms[skip:]), bytes=sizes[n, o])
        for (n, o), ms in times.items()
        if len(ms) > skip
    ]
