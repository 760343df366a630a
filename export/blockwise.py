"""Calibration of a model that does not fit in memory: the real streams, one block at a time.

Several streams advance side by side. When all of them have come to a pass of a network of blocks,
each part of that network is loaded, run for every stream, and let go of: weights are mapped from
the bundle's file, and only one block of them is in use. Between parts a stream carries its
activations; KV caches and stores stay in its buffers, as always.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from liveedit.bundle import GraphSpec, Manifest
from liveedit.errors import BackendError
from liveedit.export.calibration import (
    DRAW,
    MODES,
    Collector,
    Statistics,
    check_clips,
    collected,
    probe,
    step_tensors,
)
from liveedit.export.graph_trial import STEP, Clip, load_step
from liveedit.export.stages import Stage, cut
from liveedit.runtime import MaskCachePolicy, StreamEditor
from liveedit.runtime.backend import Array, Binding
from liveedit.runtime.onnx_backend import OnnxBackend

IN_BLOCKS = (STEP, "prompt", "text_encoder")
Probes = Mapping[str, Array]


@dataclass
class _Pass:
    """One stream's run of a graph. ``values``: what it carries between parts."""

    graph: str
    stream: int
    buffers: Mapping[str, Array]  # tensor -> where it lies
    values: dict[str, ort.OrtValue] = field(default_factory=dict)
    probes: dict[str, Array] = field(default_factory=dict)
    done: bool = False


class Parts:
    """The parts of some graphs, loaded one at a time, for streams that wait for each other."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        self._stages: dict[str, list[Stage]] = {}
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads or 0
        self._options.log_severity_level = 3
        # A part runs a few times and is let go of: packing its weights anew would cost more.
        self._options.add_session_config_entry("session.disable_prepacking", "1")
        self._options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
        self._changed = threading.Condition()
        self._waiting: list[_Pass] = []
        self._active = 0
        self._failure: BaseException | None = None
        self.loads = 0

    def add(self, graph: str, model: ir.Model) -> None:
        self._stages[graph] = cut(model)

    def together(self, streams: Sequence[Callable[[], Any]]) -> None:
        """Run streams side by side, each in a thread, until all have ended.

        Raises:
            BaseException: what the first one that failed raised.
        """
        self._active, self._failure = len(streams), None

        def guarded(stream: Callable[[], Any]) -> None:
            failure: BaseException | None = None
            try:
                stream()
            except BaseException as error:
                failure = error
            with self._changed:
                self._failure = self._failure or failure
                self._active -= 1
                self._run_if_complete()

        workers = [threading.Thread(target=guarded, args=(s,), daemon=True) for s in streams]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self._failure is not None:
            raise self._failure

    def run_alone(self, graph: str, buffers: Mapping[str, Array]) -> None:
        """Run a graph whose inputs and outputs lie in ``buffers``, with nobody to wait for."""
        self._run(graph, [_Pass(graph, 0, buffers)])

    def run(self, one: _Pass) -> None:
        """Run a graph for one stream; returns when every other stream has come to a run too."""
        with self._changed:
            self._waiting.append(one)
            self._run_if_complete()
            while not one.done and self._failure is None:
                self._changed.wait()
        if not one.done:
            raise BackendError("another stream of this calibration failed")

    def _run_if_complete(self) -> None:
        if self._failure is not None:
            self._changed.notify_all()
        if self._failure is not None or not self._waiting or len(self._waiting) < self._active:
            return
        ready = sorted(self._waiting, key=lambda p: p.stream)
        self._waiting = []
        try:
            for graph in dict.fromkeys(p.graph for p in ready):
                self._run(graph, [p for p in ready if p.graph == graph])
        except BaseException as error:
            self._failure = error
        for one in ready:
            one.done = self._failure is None
        self._changed.notify_all()

    def _run(self, graph: str, passes: Sequence[_Pass]) -> None:
        for stage in self._stages[graph]:
            try:
                session = ort.InferenceSession(
                    stage.model, sess_options=self._options, providers=["CPUExecutionProvider"]
                )
                self.loads += 1
                for one in passes:
                    _run_part(session, stage, one)
            except Exception as error:  # onnxruntime raises a class per status, without a base
                raise BackendError(
                    f"ONNX Runtime {ort.__version__} cannot run {stage.name} of {graph}: {error}"
                ) from error
            del session


def _run_part(session: ort.InferenceSession, stage: Stage, one: _Pass) -> None:
    io = session.io_binding()
    for name in stage.inputs:
        if name in one.buffers:
            array = one.buffers[name]
            io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        else:
            io.bind_ortvalue_input(name, one.values[name])
    for name in stage.outputs:
        if name in one.buffers:
            array = one.buffers[name]
            io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        else:
            io.bind_output(name, "cpu")
    session.run_with_iobinding(io)
    made = dict(zip(stage.outputs, io.get_outputs(), strict=True))
    for name, value in made.items():
        if name.startswith(("amax:", "rows:")):
            one.probes[name] = value.numpy().copy()
        elif name in stage.keep and name not in one.buffers:
            one.values[name] = value
    for name in [n for n in one.values if n not in stage.keep]:
        del one.values[name]


class PartsEngine:
    """A graph of one stream that runs in parts."""

    def __init__(
        self, parts: Parts, graph: str, stream: int, sides: Sequence[Mapping[str, Array]]
    ) -> None:
        self._parts, self._graph, self._stream, self._sides = parts, graph, stream, sides
        self.extra: Callable[[], Mapping[str, Array]] = dict
        self.after: Callable[[Probes], None] = lambda probes: None

    def rows(self, num_keep: int) -> int:
        return num_keep

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        buffers = {**self._sides[side], **self.extra()}
        if num_keep is not None:
            buffers["keep_index"] = buffers["keep_index"][:num_keep]
        one = _Pass(self._graph, self._stream, buffers)
        self._parts.run(one)
        self.after(one.probes)


class PartsBackend(OnnxBackend):
    """ONNX Runtime, with the networks of blocks run in parts and all other sessions shared."""

    def __init__(
        self,
        parts: Parts,
        stream: int,
        sessions: dict[Path, ort.InferenceSession],
        threads: int | None,
    ) -> None:
        super().__init__(threads=threads)
        self._parts, self._stream, self._sessions = parts, stream, sessions
        self.step: PartsEngine | None = None

    def load(self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]) -> Any:
        if graph not in IN_BLOCKS:
            return super().load(graph, spec, path, bindings)
        tensors = (*spec.inputs, *spec.outputs)
        sides = [{t.name: self._buffers[b[t.name]] for t in tensors} for b in bindings]
        engine = PartsEngine(self._parts, graph, self._stream, sides)
        if graph == STEP:
            self.step = engine
        return engine

    def _open(self, path: Path) -> ort.InferenceSession:
        if path not in self._sessions:
            self._sessions[path] = super()._open(path)
        return self._sessions[path]


def calibrate_blocks(
    root: Path,
    manifest: Manifest,
    precision: str,
    clips: Sequence[Clip],
    *,
    side_by_side: int = 2,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Statistics:
    """The same as `calibration.calibrate`, with one block's weights in use at a time.

    Args:
        side_by_side: streams that share a load of each block; each holds its own caches.

    Raises:
        UsageError: the clips do not fit, see `check_clips`.
    """
    check_clips(clips, manifest)
    tensors = step_tensors(root, manifest, precision)
    collector = Collector(tensors)
    specs = manifest.graphs[precision]
    parts = Parts((root / specs[STEP].file).parent, threads)
    for graph in IN_BLOCKS:
        if graph == STEP:
            model = load_step(root, manifest, precision)
            probe(model, tensors)
            parts.add(STEP, model)
        elif graph in specs:
            parts.add(graph, ir.load(root / specs[graph].file))
    sessions: dict[Path, ort.InferenceSession] = {}
    todo = list(enumerate((mode, clip) for mode in MODES for clip in clips))
    for first in range(0, len(todo), side_by_side):
        group = todo[first : first + side_by_side]
        progress(
            "calibrating one block at a time: "
            + ", ".join(f"{clip.name} with mask cache {mode}" for _, (mode, clip) in group)
        )
        streams = [
            _Stream(parts, root, manifest, precision, number, mode, clip, sessions, threads)
            for number, (mode, clip) in group
        ]
        try:
            parts.together([s.editing(collector, progress) for s in streams])
        finally:
            for stream in streams:
                stream.editor.close()
    progress(f"{parts.loads} loads of a part, {collector.passes} passes")
    return collected(manifest, precision, clips, collector)


class _Stream:
    """One clip in one mask-cache mode."""

    def __init__(
        self,
        parts: Parts,
        root: Path,
        manifest: Manifest,
        precision: str,
        number: int,
        mode: str,
        clip: Clip,
        sessions: dict[Path, ort.InferenceSession],
        threads: int | None,
    ) -> None:
        self._number, self._clip = number, clip
        self._backend = PartsBackend(parts, number, sessions, threads)
        self.editor = StreamEditor(
            root, manifest, self._backend, precision=precision,
            mask_cache=MaskCachePolicy(mode=mode), on_non_finite="passthrough",  # type: ignore[arg-type]
        )  # fmt: skip

    def editing(self, collector: Collector, progress: Callable[[str], None]) -> Callable[[], None]:
        """The whole edit, to be called in a thread."""
        step, at = self._backend.step, [0]
        assert step is not None

        def after(probes: Probes) -> None:
            collector.take(self._number, at[0], lambda name: probes[name])
            at[0] += 1

        def run() -> None:
            self._clip.give_prompt(self.editor)
            self.editor.push(self._clip.frames)
            self.editor.flush()

        step.extra = lambda: {DRAW: np.ascontiguousarray(collector.draw(self._number, at[0]))}
        step.after = after
        return run
