"""ONNX Runtime behind the backend protocol: host buffers, bound once through IOBinding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from liveedit.bundle import DType, GraphSpec, TensorSpec
from liveedit.errors import BackendError
from liveedit.runtime.backend import KEEP_DIMENSION, Array, Binding, Frames
from liveedit.runtime.noise import normal

ALIGNMENT_BYTES = 64


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """A zeroed array on a 64-byte boundary, where vector loads never straddle a cache line."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + count].view(dtype).reshape(shape)


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


class OnnxBackend:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, *, threads: int | None = None) -> None:
        """``threads`` per graph; None lets ONNX Runtime take every core."""
        self._buffers: dict[str, Array] = {}
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads or 0
        self._options.inter_op_num_threads = 1
        # Errors come as exceptions; warnings about shapes would only repeat the export's.
        self._options.log_severity_level = 3
        # Graphs take turns: a pool that spins after its run takes the core from the next graph.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def alloc(self, buffer: str, dtype: DType, shape: tuple[int, ...]) -> None:
        assert buffer not in self._buffers, buffer
        if dtype == "bfloat16":
            raise BackendError(
                f"buffer {buffer!r} is bfloat16, which ONNX Runtime's CPU provider cannot run; "
                "use a float32 or float16 bundle"
            )
        self._buffers[buffer] = aligned_zeros(shape, dtype)

    def load(
        self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]
    ) -> OnnxEngine:
        session = self._open(path)
        self._check(path, [t.name for t in session.get_inputs()], spec.inputs)
        self._check(path, [t.name for t in session.get_outputs()], spec.outputs)
        return OnnxEngine(session, spec, self._buffers, bindings)

    def _open(self, path: Path) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                path, sess_options=self._options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a class per status, with no public base
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {error}. Export again."
            ) from error

    def _check(self, path: Path, found: list[str], stated: tuple[TensorSpec, ...]) -> None:
        names = [t.name for t in stated]
        if sorted(found) != sorted(names):
            other = sorted(set(found) ^ set(names))
            raise BackendError(
                f"{path} and its manifest disagree about tensor {other[0]!r}. Export again."
            )

    def write(self, buffer: str, value: npt.ArrayLike) -> None:
        array = self._buffers[buffer]
        if np.ndim(value) == array.ndim:
            array = array[: np.shape(value)[0]]
        array[...] = value

    def read(self, buffer: str) -> Array:
        return self._buffers[buffer]

    def write_frames(self, buffer: str, frames: Frames, pixel_range: tuple[float, float]) -> None:
        low, high = pixel_range
        array = self._buffers[buffer]
        np.multiply(
            frames.transpose(3, 0, 1, 2)[None], (high - low) / 255, out=array, casting="unsafe"
        )
        if low:
            array += array.dtype.type(low)

    def read_frames(self, buffer: str, frames: Frames, pixel_range: tuple[float, float]) -> None:
        low, high = pixel_range
        pixels = self._buffers[buffer][0].transpose(1, 2, 3, 0).astype(np.float32)
        pixels -= low
        pixels *= 255 / (high - low)
        np.rint(pixels, out=pixels)
        # A pixel that is not a number becomes black rather than undefined.
        np.fmax(pixels, 0, out=pixels)
        np.fmin(pixels, 255, out=pixels)
        np.copyto(frames, pixels, casting="unsafe")

    def write_noise(self, buffer: str, *, seed: int, chunk: int, draw: int) -> None:
        array = self._buffers[buffer]
        array.reshape(-1)[:] = normal(array.size, seed=seed, chunk=chunk, draw=draw)

    def copy(self, src: str, dst: str, *, src_row: int, dst_row: int, count: int) -> None:
        rows = self._buffers[src][:, :, src_row : src_row + count]
        self._buffers[dst][:, :, dst_row : dst_row + count] = rows

    def zero(self, buffer: str) -> None:
        self._buffers[buffer].fill(0)

    def close(self) -> None:
        self._buffers.clear()
