"""The graphs of one precision: checked, loaded, and bound to buffers called like their tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from liveedit.bundle import DType, Manifest, verify_file
from liveedit.errors import BundleError
from liveedit.runtime.backend import KEEP_DIMENSION, Backend, Binding, Engine, Region

REQUIRED_GRAPHS = ("prompt", "dit_step", "encode_next", "decode_next")


class BundleGraphs:
    """Loads graphs into a backend. Tensors of one name in several graphs share one buffer."""

    def __init__(self, root: Path, manifest: Manifest, precision: str, backend: Backend) -> None:
        self.specs = manifest.graphs[precision]
        self.buffers: dict[str, tuple[DType, tuple[int, ...]]] = {}
        self._root = root
        self._backend = backend
        self._tokens = manifest.stream.block_seq_length

    def load(self, graph: str, sides: Sequence[Mapping[str, str]] = ({},)) -> Engine:
        """Load a graph and allocate its buffers, called like its tensors.

        Args:
            sides: one binding each; names the buffers that are called otherwise there. An aliased
                output takes its input's.
        """
        spec = self.specs[graph]
        bindings: list[Binding] = []
        for side in sides:
            binding = {t.name: side.get(t.name, t.name) for t in (*spec.inputs, *spec.outputs)}
            binding |= {output: binding[source] for output, source in spec.aliases.items()}
            for tensor in (*spec.inputs, *spec.outputs):
                shape = (self._tokens if d == KEEP_DIMENSION else int(d) for d in tensor.shape)
                self.alloc(binding[tensor.name], tensor.dtype, tuple(shape))
            bindings.append(binding)
        return self.bind(graph, bindings)

    def bind(self, graph: str, bindings: Sequence[Binding]) -> Engine:
        """Load a graph into buffers that were allocated elsewhere."""
        spec = self.specs[graph]
        return self._backend.load(graph, spec, self._root / spec.file, bindings)

    def alloc(
        self, buffer: str, dtype: DType, shape: tuple[int, ...], region: Region = "state"
    ) -> None:
        """Allocate a buffer, or check that an earlier graph's is the same.

        Raises:
            BundleError: it is not.
        """
        if buffer not in self.buffers:
            self._backend.alloc(buffer, dtype, shape, region)
            self.buffers[buffer] = (dtype, shape)
        elif self.buffers[buffer] != (dtype, shape):
            raise BundleError(
                f"two graphs disagree about {buffer!r}: {self.buffers[buffer]} and "
                f"{(dtype, shape)}. Export the bundle again."
            )


def choose_precision(root: Path, manifest: Manifest, precision: str | None) -> str:
    """The precision to run: None takes fp32 if the bundle holds it, else its only one.

    Raises:
        BundleError: the bundle lacks it, or one of its graphs.
    """
    held = ", ".join(sorted(manifest.graphs)) or "none"
    if precision is None:
        default = "fp32" in manifest.graphs or len(manifest.graphs) != 1
        precision = "fp32" if default else next(iter(manifest.graphs))
    if precision not in manifest.graphs:
        raise BundleError(
            f"{root} holds no {precision} graphs; it holds {held}. "
            f"Choose one of those or export with --precision {precision}."
        )
    missing = [g for g in REQUIRED_GRAPHS if g not in manifest.graphs[precision]]
    if missing:
        raise BundleError(
            f"{root} lacks the {precision} graph {missing[0]!r}. Export the bundle again."
        )
    return precision


def verify_files(root: Path, manifest: Manifest, precision: str) -> None:
    """Hash the tokenizer and every file beside the graphs of one precision.

    Raises:
        BundleError: a file is missing, changed or not listed.
    """
    files = [g.file for g in manifest.graphs[precision].values()]
    folders = {os.path.dirname(f) for f in files}
    beside = [name for name in manifest.files if os.path.dirname(name) in folders]
    for name in sorted({manifest.tokenizer, *files, *beside}):
        verify_file(root, manifest, name)
