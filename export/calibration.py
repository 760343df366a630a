"""Ranges of the tensors that linears read, taken while the real stream edits real clips.

Two further outputs per tensor are computed inside the graph, so memory does not grow with the
number of tokens: the largest magnitude of each channel, and a few rows drawn anew in every pass.
Both are summed up on the host over all passes, chunks, clips and prompts. What is drawn depends on
the stream and the pass alone, so streams may run in any order, or side by side.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from liveedit.bundle import Manifest, TensorSpec, write_atomic
from liveedit.config import StreamConfig, from_dict, to_dict
from liveedit.errors import BundleError, UsageError
from liveedit.export.graph_trial import STEP, Clip, Trial, load_step
from liveedit.export.linears import linears
from liveedit.export.quantize import sites
from liveedit.schedule import denoising_steps

Array = np.ndarray[Any, np.dtype[np.float32]]
DRAW = "calibration_draw"
ROWS_PER_PASS = 8
MAX_ROWS, MAX_ROW_VALUES = 1024, 2**20  # kept per tensor: rows, and rows times channels
MODES = ("off", "released")  # of the mask cache; every clip is edited with each
VERSION = 1


@dataclass(frozen=True)
class TensorRange:
    """``amax`` [C]: largest magnitude per channel. ``rows`` [n, C]: a sample of tokens."""

    amax: Array
    rows: Array


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What statistics were taken from. They are good for this graph alone."""

    version: int = VERSION
    precision: str
    stream: StreamConfig
    graph: dict[str, str]  # file -> sha256 of the step graph and its weights
    clips: dict[str, str]  # name -> sha256 of frames and prompt
    mask_cache: tuple[str, ...]
    passes: int


@dataclass(frozen=True)
class Statistics:
    origin: Origin
    tensors: dict[str, TensorRange] = field(repr=False)


def step_files(manifest: Manifest, precision: str) -> dict[str, str]:
    """The files that decide what `dit_step` computes, with their hashes."""
    file = manifest.graphs[precision][STEP].file
    weights = str(Path(file).parent / "dit.weights")
    return {f: manifest.files[f].sha256 for f in (file, weights) if f in manifest.files}


def window_frames(manifest: Manifest) -> int:
    """Frames that fill the attention window and one chunk more."""
    latents = manifest.stream.local_attn_size + manifest.stream.num_frame_per_block
    return latents * manifest.codec.encode_next_frames


def check_clips(clips: Sequence[Clip], manifest: Manifest) -> None:
    """
    Raises:
        UsageError: none, none that passes the attention window, or another size.
    """
    if not clips:
        raise UsageError("the calibration set is empty; give at least one clip with a prompt")
    size = (manifest.stream.height_px, manifest.stream.width_px, 3)
    for clip in clips:
        if clip.frames.shape[1:] != size:
            raise UsageError(
                f"calibration clip {clip.name} has frames {list(clip.frames.shape[1:])}; this "
                f"bundle edits {list(size)}. Give clips of its size."
            )
    longest, needed = max(len(c.frames) for c in clips), window_frames(manifest)
    if longest < needed:
        raise UsageError(
            f"the calibration set is too small: its longest clip has {longest} frames, and the "
            f"attention window is full only after {needed}. Give a longer clip."
        )


def probe(model: ir.Model, tensors: Iterable[str]) -> tuple[TensorSpec, ...]:
    """Add the outputs ``amax:<tensor>`` and ``rows:<tensor>`` to a graph, in place.

    The graph gets one input, ``calibration_draw`` float32 [rows] in [0, 1).

    Returns:
        The new outputs.
    """
    graph = model.graph
    draw = ir.Value(
        name=DRAW, shape=ir.Shape([ROWS_PER_PASS]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    graph.inputs.append(draw)
    axes = ir.tensor(np.array([0, 1]), name=f"{DRAW}.axes")
    axes_value = ir.Value(
        name=axes.name, shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.INT64), const_value=axes
    )
    graph.initializers[axes_value.name or ""] = axes_value
    values = {v.name: v for n in graph for v in n.inputs if v is not None}
    out = []
    for tensor in tensors:
        x = values[tensor]
        assert x.shape is not None
        channels = int(x.shape[-1])  # type: ignore[arg-type]  # static in every exported graph

        def node(op: str, *inputs: ir.Value, tensor: str = tensor, **attributes: Any) -> ir.Value:
            name = f"{tensor}/probe_{op}_{len(graph)}"
            made = ir.node(op, list(inputs), attributes, name=name)
            made.outputs[0].name = f"{name}.out"
            graph.append(made)
            return made.outputs[0]

        wide = node("Cast", x, to=ir.DataType.FLOAT)
        amax = node("ReduceMax", node("Abs", wide), axes_value, keepdims=0)
        count = node("Cast", node("Shape", x, start=1, end=2), to=ir.DataType.FLOAT)
        index = node("Cast", node("Mul", draw, count), to=ir.DataType.INT64)
        rows = node("Gather", wide, index, axis=1)
        for kind, value, shape in (
            ("amax", amax, (channels,)),
            ("rows", rows, (1, ROWS_PER_PASS, channels)),
        ):
            value.name = f"{kind}:{tensor}"
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
            graph.outputs.append(value)
            out.append(TensorSpec(name=value.name, dtype="float32", shape=shape))
    return tuple(out)


class Collector:
    """Sums up the probes of every pass of the streams that it is told of.

    A stream is one clip in one mask-cache mode; it has a number. Rows come from passes that are
    chosen by lot, as many as fit.
    """

    def __init__(self, tensors: Sequence[str], seed: int = 0) -> None:
        self._tensors = tensors
        self._seed = seed
        self._amax: dict[str, Array] = {}
        self._rows: dict[str, list[tuple[float, tuple[int, int], Array]]] = {t: [] for t in tensors}
        self._lock = threading.Lock()
        self.passes = 0

    def watch(self, trial: Trial, model: ir.Model) -> Callable[[int], None]:
        """Run a probed copy of the step in ``trial`` and look after every pass.

        Returns:
            What to call with a stream's number before it starts.
        """
        outputs = probe(model, self._tensors)
        draw = TensorSpec(name=DRAW, dtype="float32", shape=(ROWS_PER_PASS,))
        at = [0, 0]
        trial.backend.swap(model, (draw,), outputs)

        def start(stream: int) -> None:
            at[:] = stream, 0

        def after() -> None:
            self.take(at[0], at[1], trial.backend.read)
            at[1] += 1

        trial.backend.around_step(
            before=lambda: trial.backend.write(DRAW, self.draw(at[0], at[1])), after=after
        )
        return start

    def draw(self, stream: int, number: int) -> Array:
        """Where pass ``number`` of a stream takes its rows: float32 [ROWS_PER_PASS] in [0, 1)."""
        random = np.random.default_rng((self._seed, stream, number))
        return random.uniform(0, 0.999, ROWS_PER_PASS).astype(np.float32)

    def take(self, stream: int, number: int, read: Callable[[str], Array]) -> None:
        """Add one pass; ``read`` gives a probe's output by its name."""
        lot = float(np.random.default_rng((self._seed, stream, number, 1)).random())
        with self._lock:
            self.passes += 1
            for tensor in self._tensors:
                amax = read(f"amax:{tensor}")
                known = self._amax.setdefault(tensor, np.zeros_like(amax))
                np.maximum(known, amax, out=known)
                rows = self._rows[tensor]
                rows.append((lot, (stream, number), read(f"rows:{tensor}")[0].copy()))
                most = min(MAX_ROWS, max(MAX_ROW_VALUES // len(amax), 64)) // ROWS_PER_PASS
                if len(rows) > most:
                    rows.remove(max(rows, key=lambda row: row[0]))

    def ranges(self) -> dict[str, TensorRange]:
        """
        Raises:
            UsageError: a value is not finite.
        """
        out = {}
        for tensor in self._tensors:
            amax = self._amax[tensor]
            if not np.isfinite(amax).all():
                raise UsageError(
                    f"tensor {tensor!r} is not finite during calibration. Check the bundle with "
                    "the same clips in fp32."
                )
            ordered = sorted(self._rows[tensor], key=lambda row: row[1])
            out[tensor] = TensorRange(amax, np.concatenate([rows for _, _, rows in ordered]))
        return out


def calibrate(
    root: Path,
    manifest: Manifest,
    precision: str,
    clips: Sequence[Clip],
    *,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Statistics:
    """Edit every clip twice, with the mask cache off and on, and sum up what the linears read.

    Raises:
        UsageError: the clips do not fit, see `check_clips`.
    """
    check_clips(clips, manifest)
    collector = Collector(step_tensors(root, manifest, precision))
    for mode in MODES:
        with Trial(root, manifest, precision, mask_cache=mode, threads=threads) as trial:  # type: ignore[arg-type]
            start = collector.watch(trial, load_step(root, manifest, precision))
            for number, clip in enumerate(clips):
                progress(f"calibrating: {clip.name}, mask cache {mode}")
                start(MODES.index(mode) * len(clips) + number)
                trial.edit(clip)
    return collected(manifest, precision, clips, collector)


def step_tensors(root: Path, manifest: Manifest, precision: str) -> list[str]:
    """The tensors that the linears of `dit_step` read."""
    return list(sites(linears(load_step(root, manifest, precision))))


def collected(
    manifest: Manifest, precision: str, clips: Sequence[Clip], collector: Collector
) -> Statistics:
    """Statistics of all streams of the clips, with what they were taken from."""
    passes_a_chunk = len(denoising_steps(manifest.stream)) + 1
    assert collector.passes >= len(MODES) * len(clips) * passes_a_chunk, collector.passes
    origin = Origin(
        precision=precision,
        stream=manifest.stream,
        graph=step_files(manifest, precision),
        clips={c.name: clip_hash(c) for c in clips},
        mask_cache=MODES,
        passes=collector.passes,
    )
    return Statistics(origin, collector.ranges())


def clip_hash(clip: Clip) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(clip.frames).tobytes())
    digest.update(f"{clip.frames.shape} {clip.prompt}".encode())
    if clip.text_embeds is not None:
        digest.update(np.ascontiguousarray(clip.text_embeds).tobytes())
    return digest.hexdigest()


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write one .npz file."""
    arrays: dict[str, Any] = {"origin": np.array(json.dumps(to_dict(statistics.origin)))}
    for tensor, known in statistics.tensors.items():
        arrays |= {f"amax:{tensor}": known.amax, f"rows:{tensor}": known.rows}
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(path, data.getvalue())


def load_statistics(
    path: Path, manifest: Manifest, precision: str, *, any_size: bool = False
) -> Statistics:
    """Read statistics and check that they are of this bundle's graph.

    Args:
        any_size: allow those of a bundle of the same weights, byte for byte, for another picture
            size or window. A large model can be calibrated on small pictures.

    Raises:
        UsageError: missing, unreadable, or taken from another model or resolution.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            origin = from_dict(Origin, json.loads(str(arrays["origin"])))
            tensors = {
                name.removeprefix("amax:"): TensorRange(
                    arrays[name], arrays["rows:" + name.removeprefix("amax:")]
                )
                for name in arrays
                if name.startswith("amax:")
            }
    except FileNotFoundError:
        raise UsageError(f"no statistics at {path}; leave the option out to calibrate") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, BundleError) as error:
        raise UsageError(f"{path} holds no statistics: {error}. Calibrate again.") from None
    if origin.version != VERSION:
        raise UsageError(
            f"{path} is of version {origin.version}; this one reads {VERSION}. Calibrate again."
        )
    if origin.precision != precision:
        raise UsageError(
            f"{path} was taken in {origin.precision}, and {precision} is to be quantised. "
            f"Calibrate again, or add --base {origin.precision}."
        )
    theirs, ours = origin.stream, manifest.stream
    if (theirs.height_px, theirs.width_px) != (ours.height_px, ours.width_px) and not any_size:
        raise UsageError(
            f"{path} was taken at {theirs.height_px} x {theirs.width_px}, this bundle edits "
            f"{ours.height_px} x {ours.width_px}. Calibrate again."
        )
    stated = step_files(manifest, precision)
    if any_size:
        stated = {f: sha for f, sha in stated.items() if not f.endswith(".onnx")}
        origin = replace(origin, graph={f: origin.graph.get(f, "none") for f in stated})
    if origin.graph != stated:
        file = next((f for f in stated if origin.graph.get(f) != stated[f]), "dit_step")
        raise UsageError(
            f"{path} was taken from another model: {file} there has sha256 "
            f"{origin.graph.get(file, 'none')[:12]}, here {stated.get(file, 'none')[:12]}. "
            "Calibrate again."
        )
    return Statistics(origin, tensors)
