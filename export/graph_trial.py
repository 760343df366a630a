"""Runs the real stream with another `dit_step`, straight from memory: probed or quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from liveedit.bundle import GraphSpec, Manifest, TensorSpec
from liveedit.errors import BackendError
from liveedit.evaluation.known_edits import KnownEdit
from liveedit.runtime import MaskCachePolicy, StreamEditor
from liveedit.runtime.backend import Binding, Frames
from liveedit.runtime.onnx_backend import OnnxBackend, OnnxEngine

STEP = "dit_step"


@dataclass(frozen=True, eq=False)
class Clip:
    """Source frames [n, H, W, 3] uint8 of the bundle's size, and what to do with them.

    ``text_embeds`` [1, text_len, text_dim] float32: the prompt, if it was encoded elsewhere.
    ``known`` holds the exact result, where there is one.
    """

    name: str
    frames: Frames
    prompt: str
    text_embeds: npt.NDArray[np.float32] | None = None
    known: KnownEdit | None = None

    def give_prompt(self, editor: StreamEditor) -> None:
        if self.text_embeds is None:
            editor.set_prompt(self.prompt)
        else:
            editor.set_text_embeds(self.text_embeds)


def known_clip(edit: KnownEdit) -> Clip:
    """The clip of an edit with a known result."""
    return Clip(edit.name, edit.source, edit.prompt, known=edit)


def load_step(root: Path, manifest: Manifest, precision: str) -> ir.Model:
    """A fresh copy of the step graph; weights stay in their file until they are read."""
    return ir.load(root / manifest.graphs[precision][STEP].file)


class TrialEngine:
    """The step of a stream; what runs can be exchanged between streams."""

    def __init__(self, engine: OnnxEngine) -> None:
        self.engine = engine
        self.before: Callable[[], None] = _nothing
        self.after: Callable[[], None] = _nothing

    def rows(self, num_keep: int) -> int:
        return self.engine.rows(num_keep)

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        self.before()
        self.engine.run(side=side, num_keep=num_keep)
        self.after()


def _nothing() -> None:
    pass


class TrialBackend(OnnxBackend):
    """ONNX Runtime with an exchangeable `dit_step`."""

    def __init__(self, *, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self._folder: Path | None = None
        self._load: tuple[GraphSpec, Path, Sequence[Binding]] | None = None
        self._step: TrialEngine | None = None

    def load(self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]) -> Any:
        engine = super().load(graph, spec, path, bindings)
        if graph != STEP:
            return engine
        self._load, self._step = (spec, path, bindings), TrialEngine(engine)
        return self._step

    def swap(
        self,
        model: ir.Model,
        inputs: tuple[TensorSpec, ...] = (),
        outputs: tuple[TensorSpec, ...] = (),
    ) -> None:
        """Run ``model`` from now on, with further inputs and outputs in buffers of their names.

        Raises:
            BackendError: ONNX Runtime cannot load it.
        """
        assert self._load is not None
        assert self._step is not None
        spec, path, bindings = self._load
        for tensor in (*inputs, *outputs):
            if tensor.name not in self._buffers:
                self.alloc(tensor.name, tensor.dtype, tuple(int(d) for d in tensor.shape))
        extra = {t.name: t.name for t in (*inputs, *outputs)}
        spec = replace(spec, inputs=spec.inputs + inputs, outputs=spec.outputs + outputs)
        if path.parent != self._folder:
            # Weights that were not touched are still read from the bundle's file.
            self._folder = path.parent
            self._options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self._folder.resolve())
            )
        data = ir.to_proto(model).SerializeToString()
        try:
            session = ort.InferenceSession(
                data, sess_options=self._options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a class per status, with no public base
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load the changed graph: {error}"
            ) from error
        both = [{**binding, **extra} for binding in bindings]
        self._step.engine = OnnxEngine(session, spec, self._buffers, both)

    def around_step(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call these around every pass from now on."""
        assert self._step is not None
        self._step.before, self._step.after = before, after


class Trial:
    """One open stream, edited again and again with another step. Use it as a context."""

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        precision: str,
        *,
        mask_cache: Literal["off", "released"] = "off",
        threads: int | None = None,
    ) -> None:
        self.backend = TrialBackend(threads=threads)
        policy = MaskCachePolicy(mode=mask_cache)
        self._editor = StreamEditor(
            root, manifest, self.backend, precision=precision, mask_cache=policy,
            on_non_finite="passthrough",
        )  # fmt: skip

    def edit(self, clip: Clip) -> Frames:
        """Every edited frame of a clip [n, H, W, 3], as a new stream."""
        self._editor.reset()
        clip.give_prompt(self._editor)
        chunks = self._editor.push(clip.frames) + self._editor.flush()
        return np.concatenate([chunk.frames for chunk in chunks])

    def stream(self, prompt: str, source: Iterable[Frames]) -> Iterator[tuple[int, Frames]]:
        """A new stream that is edited as it comes: first frame and frames of each chunk."""
        self._editor.reset()
        self._editor.set_prompt(prompt)
        for frames in source:
            for chunk in self._editor.push(frames):
                yield chunk.first_frame, chunk.frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._editor.close()


__all__ = ["STEP", "Clip", "Trial", "TrialBackend", "known_clip", "load_step"]
