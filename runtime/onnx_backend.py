"""ONNX Runtime behind the backend protocol: host buffers, bound once through IOBinding."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from liveedit.bundle import DType, GraphSpec
from liveedit.errors import BackendError
from liveedit.runtime.backend import (
    CHUNK,
    COPY_COUNT,
    COPY_SOURCE,
    COPY_TARGET,
    FIRST_FRAME,
    KEEP_DIMENSION,
    NEXT_CHUNK,
    OUTCOMES,
    SEED,
    WRITE_INDEX,
    Array,
    Binding,
    ChunkOutput,
    Frames,
    OnNonFinite,
    Region,
)
from liveedit.runtime.host_order import HostOrder, HostOutput
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import TokenChoice
from liveedit.runtime.noise import normal
from liveedit.runtime.rope import RotaryTable

ALIGNMENT_BYTES = 64


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """A zeroed array on a 64-byte boundary, where vector loads never straddle a cache line."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + count].view(dtype).reshape(shape)


def session_options(threads: int | None) -> ort.SessionOptions:
    """For graphs that take turns; ``threads`` per graph, None for every core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Errors come as exceptions; warnings about shapes would only repeat the export's.
    options.log_severity_level = 3
    # A pool that spins after its run takes the core from the next graph.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    path: Path, options: ort.SessionOptions, providers: list[Any]
) -> ort.InferenceSession:
    """Load a graph.

    Raises:
        BackendError: ONNX Runtime cannot.
    """
    try:
        return ort.InferenceSession(path, sess_options=options, providers=providers)
    except Exception as error:  # onnxruntime raises a class per status, with no public base
        raise BackendError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {error}. Export again."
        ) from error


def check_tensors(path: Path, session: ort.InferenceSession, spec: GraphSpec) -> None:
    """Raise BackendError where a graph's tensors are not those that its manifest names."""
    for found, stated in (
        (session.get_inputs(), spec.inputs),
        (session.get_outputs(), spec.outputs),
    ):
        other = sorted({t.name for t in found} ^ {t.name for t in stated})
        if other:
            raise BackendError(
                f"{path} and its manifest disagree about tensor {other[0]!r}. Export again."
            )


def frames_from_planes(planes: Array, pixel_range: tuple[float, float], out: Frames) -> None:
    """real [3, n, H, W] to uint8 [n, H, W, 3], rounded to nearest and clamped, into ``out``."""
    low, high = pixel_range
    pixels = planes.transpose(1, 2, 3, 0).astype(np.float32)
    pixels -= low
    pixels *= 255 / (high - low)
    np.rint(pixels, out=pixels)
    # A pixel that is not a number becomes black rather than undefined.
    np.fmax(pixels, 0, out=pixels)
    np.fmin(pixels, 255, out=pixels)
    np.copyto(out, pixels, casting="unsafe")


class OnnxEngine:
    """One session with a set of bindings."""

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        buffers: dict[str, Array],
        bindings: Sequence[Binding],
    ) -> None:
        self._session = session
        self._name = Path(spec.file).name
        self._dynamic = {t.name for t in spec.inputs if KEEP_DIMENSION in t.shape}
        self._num_keep: list[int | None] = [None] * len(bindings)
        self._bindings = []
        self._keep_buffers = []
        for binding in bindings:
            io = session.io_binding()
            for tensor in spec.inputs:
                array = buffers[binding[tensor.name]]
                if tensor.name not in self._dynamic:
                    io.bind_input(
                        tensor.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data
                    )
            for tensor in spec.outputs:
                array = buffers[binding[tensor.name]]
                io.bind_output(tensor.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._bindings.append(io)
            self._keep_buffers.append([(n, buffers[binding[n]]) for n in sorted(self._dynamic)])

    def rows(self, num_keep: int) -> int:
        return num_keep

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        io = self._bindings[side]
        if num_keep != self._num_keep[side]:
            assert num_keep is not None, "this graph has a dynamic input"
            for name, array in self._keep_buffers[side]:
                assert 0 < num_keep <= len(array), (num_keep, len(array))
                io.bind_input(name, "cpu", 0, array.dtype, (num_keep,), array.ctypes.data)
            self._num_keep[side] = num_keep
        try:
            self._session.run_with_iobinding(io)
        except Exception as error:  # onnxruntime raises a class per status, with no public base
            raise BackendError(f"ONNX Runtime stopped in {self._name}: {error}") from error


class OnnxBackend(HostOrder):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, *, threads: int | None = None) -> None:
        """``threads`` per graph; None lets ONNX Runtime take every core."""
        self._buffers: dict[str, Array] = {}
        self._results: list[str] = []
        self._options = session_options(threads)

    def alloc(
        self, buffer: str, dtype: DType, shape: tuple[int, ...], region: Region = "state"
    ) -> None:
        assert buffer not in self._buffers, buffer
        if dtype == "bfloat16":
            raise BackendError(
                f"buffer {buffer!r} is bfloat16, which ONNX Runtime's CPU provider cannot run; "
                "use a float32 or float16 bundle"
            )
        self._buffers[buffer] = aligned_zeros(shape, dtype)
        if region == "result":
            self._results.append(buffer)

    def load(
        self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]
    ) -> OnnxEngine:
        session = self._open(path)
        check_tensors(path, session, spec)
        return OnnxEngine(session, spec, self._buffers, bindings)

    def _open(self, path: Path) -> ort.InferenceSession:
        return open_session(path, self._options, ["CPUExecutionProvider"])

    def write(self, buffer: str, value: npt.ArrayLike) -> None:
        array = self._buffers[buffer]
        if np.ndim(value) == array.ndim:
            array = array[: np.shape(value)[0]]
        array[...] = value

    def read(self, buffer: str) -> Array:
        return self._buffers[buffer]

    def write_frames(
        self, buffer: str, frames: Frames, staged: Collection[int] = frozenset()
    ) -> None:
        low, high = self._layout.pixel_range
        array, frames = self._buffers[buffer], self._layout.to_rgb(frames)
        np.multiply(
            frames.transpose(3, 0, 1, 2)[None], (high - low) / 255, out=array, casting="unsafe"
        )
        if low:
            array += array.dtype.type(low)

    def fetch_frames(self, buffer: str, skip: int, out: ChunkOutput, start: int) -> None:
        assert isinstance(out, HostOutput)
        planes = self._buffers[buffer][0][:, skip:]
        target = out.pixels[start : start + planes.shape[1]]
        if self._layout.format.name == "rgb":
            frames_from_planes(planes, self._layout.pixel_range, target)
        else:
            rgb = np.empty((*planes.shape[1:], 3), dtype=np.uint8)
            frames_from_planes(planes, self._layout.pixel_range, rgb)
            target[...] = self._layout.from_rgb(rgb)

    def fetch_results(self, out: ChunkOutput) -> None:
        assert isinstance(out, HostOutput)
        out.kept.update((name, self._buffers[name].copy()) for name in self._results)

    def begin_chunk(self, kv: KVCache, buffers: Mapping[str, str]) -> None:
        a = self._named(buffers)
        control = a["control"]
        chunk = int(control[NEXT_CHUNK])
        write, copy = kv.first_row(chunk), kv.row_copy(chunk)
        control[NEXT_CHUNK] += 1
        control[CHUNK], control[WRITE_INDEX] = chunk, write
        control[FIRST_FRAME] = chunk * kv.num_frames
        control[COPY_SOURCE] = write
        control[COPY_TARGET], control[COPY_COUNT] = (copy.dst, copy.count) if copy else (0, 0)
        a["write_index"][0] = write
        a["kv_full"][0] = write + kv.rows_per_slot
        a["kv_pruned"][0] = write + a["counts"][1]
        a["flag"][0] = 0

    def write_noise(self, buffer: str, *, control: str, draw: int) -> None:
        array, numbers = self._buffers[buffer], self._buffers[control]
        array.reshape(-1)[:] = normal(
            array.size, seed=int(numbers[SEED]), chunk=int(numbers[CHUNK]), draw=draw
        )

    def rotary(self, control: str, table: RotaryTable, frequency: str, cos: str, sin: str) -> None:
        table.move_to(int(self._buffers[control][FIRST_FRAME]))
        self._buffers[cos][...] = table.cos
        self._buffers[sin][...] = table.sin

    def copy(self, src: str, dst: str, *, src_row: int, dst_row: int, count: int) -> None:
        rows = self._buffers[src][:, :, src_row : src_row + count]
        self._buffers[dst][:, :, dst_row : dst_row + count] = rows

    def copy_all(self, src: str, dst: str) -> None:
        self._buffers[dst][...] = self._buffers[src]

    def commit(self, buffers: Sequence[str], table: str, control: str, most_rows: int) -> None:
        src, dst, count = self._buffers[control][COPY_SOURCE : COPY_COUNT + 1].tolist()
        assert count <= most_rows, (count, most_rows)
        for buffer in buffers if count else ():
            self.copy(buffer, buffer, src_row=src, dst_row=dst, count=count)

    def guard(self, policy: OnNonFinite, buffers: Mapping[str, str]) -> None:
        a = self._named(buffers)
        finite = bool(np.isfinite(a["latent"]).all())
        a["flag"][0] |= not finite
        a["outcome"][0] = 0 if finite else 1 + OUTCOMES.index(policy)
        if finite:
            a["last_good"][...] = a["latent"]
            a["has_good"][0] = 1
        elif policy != "stop":
            repeats = policy == "last-good" and a["has_good"][0]
            a["latent"][...] = a["last_good" if repeats else "source"]

    def choose_tokens(self, choice: TokenChoice, buffers: Mapping[str, str]) -> None:
        a = self._named(buffers)
        everything = bool(a["outcome"][0]) and choice.policy.token_budget is None
        for name, value in choice.results(a["edited"], a["source"], everything=everything).items():
            a[name][...] = value

    def _named(self, buffers: Mapping[str, str]) -> dict[str, Array]:
        return {name: self._buffers[buffer] for name, buffer in buffers.items()}

    def zero(self, buffer: str) -> None:
        self._buffers[buffer].fill(0)

    def close(self) -> None:
        self._buffers.clear()
