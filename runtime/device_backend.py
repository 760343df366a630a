"""A device behind the backend protocol: one arena, three streams, captured chunks.

Everything is allocated in `start` and nothing moves afterwards. With ``overlap`` the stages run on
streams of their own, and the next chunk is submitted before the one before it is collected; without
it all is one stream, in the order of the calls. The output is the same bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveedit.bundle import DType, GraphSpec
from liveedit.errors import BackendError, DeviceError
from liveedit.runtime.backend import (
    COPY_SOURCE,
    FIRST_FRAME,
    OUTCOMES,
    SEED,
    Array,
    Binding,
    ChunkOutput,
    Frames,
    OnNonFinite,
    Region,
    Stage,
)
from liveedit.runtime.device import Device, Event, Graph, Memory, Pinned, Stream
from liveedit.runtime.device_engine import DeviceEngine, EngineLoader, Placed, aligned
from liveedit.runtime.device_frames import ForeignFrames, Intake
from liveedit.runtime.frame_slots import MOST_LENT, FrameSlot, FrameSlots, ResultField
from liveedit.runtime.kernels import DTYPE_CODES
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import TokenChoice, round_bfloat16
from liveedit.runtime.memory_budget import ITEM_BYTES
from liveedit.runtime.pixel_format import FrameLayout
from liveedit.runtime.rope import RotaryTable

STAGING_BYTES = 1 << 20  # for what is written and read off the hot path
STAGES: tuple[Stage, ...] = ("encode", "dit", "decode")


def stage_of(graph: str) -> Stage:
    """Where a graph runs; graphs of one stage never run at the same time."""
    return "encode" if graph.startswith("encode_") else (
        "decode" if graph.startswith("decode_") else "dit"
    )  # fmt: skip


def to_bits(values: npt.ArrayLike, dtype: DType) -> Array:
    """As the device holds them; bfloat16 as its bits."""
    if dtype == "bfloat16":
        bits = round_bfloat16(np.asarray(values, dtype=np.float32)).view(np.uint32)
        return (bits >> np.uint32(16)).astype(np.uint16)
    return np.ascontiguousarray(values, dtype=dtype)


class BoundEngine:
    """A loaded graph on its backend's current stream."""

    def __init__(self, backend: DeviceBackend, graph: str, engine: DeviceEngine) -> None:
        self._backend, self.engine = backend, engine
        self._key = f"run {graph}"
        self.stage = stage_of(graph)

    def rows(self, num_keep: int) -> int:
        return self.engine.rows(num_keep)

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        self._backend.counts[self._key] += 1
        self.engine.enqueue(self._backend.stream, side, num_keep)


class _InStage:
    def __init__(self, backend: DeviceBackend, stream: Stream) -> None:
        self._backend, self._stream = backend, stream
        self._outer: list[Stream] = []

    def __enter__(self) -> None:
        self._outer.append(self._backend.stream)
        self._backend.stream = self._stream

    def __exit__(self, *_: object) -> None:
        self._backend.stream = self._outer.pop()


class DeviceBackend:
    """`Backend` on a `Device` with the engines of an `EngineLoader`. Owns both."""

    immediate = False

    def __init__(
        self,
        device: Device,
        loader: EngineLoader,
        *,
        overlap: bool = True,
        graphs: bool = True,
        leave_frames: bool = False,
    ) -> None:
        """``graphs``: capture what repeats, where the engines allow it.

        ``leave_frames``: edited frames stay on the device, as `LentFrames`.
        """
        self.name = loader.name
        self._leave_frames = leave_frames
        self.depth = 2 if overlap else 1
        self.counts: Counter[str] = Counter()
        self._device, self._loader = device, loader
        self._overlap = overlap
        self._captures = graphs and loader.capturable
        self._specs: dict[str, tuple[DType, tuple[int, ...], Region]] = {}
        self._engines: list[BoundEngine] = []
        self._placed: dict[str, Placed] = {}
        self._at: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._graphs: dict[Hashable, Graph | None] = {}
        self._events: dict[str, Event] = {}
        self._streams = [device.stream() for _ in (STAGES if overlap else STAGES[:1])]
        self.stream = self._streams[1 if overlap else 0]
        self.intake: Intake | None = Intake(device, self._streams[STAGES.index("encode")])
        self._pinned: list[Pinned] = []
        self._arena: Memory | None = None
        self._slots: FrameSlots | None = None
        self._ring: tuple[Pinned, Frames] | None = None
        self._layout = FrameLayout(0, 0)
        self._closed = False

    # Before the start

    def alloc(
        self, buffer: str, dtype: DType, shape: tuple[int, ...], region: Region = "state"
    ) -> None:
        assert self._arena is None, "nothing is allocated after the start"
        assert buffer not in self._specs, buffer
        self._specs[buffer] = (dtype, shape, region)

    def load(
        self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]
    ) -> BoundEngine:
        stream = self._streams[STAGES.index(stage_of(graph)) % len(self._streams)]
        engine = self._loader.load(self._device, stream, graph, spec, path, bindings)
        self._engines.append(BoundEngine(self, graph, engine))
        return self._engines[-1]

    def frame_ring(self, count: int, layout: FrameLayout) -> Frames:
        pinned = self._device.alloc_pinned(count * layout.frame_bytes)
        self._pinned.append(pinned)
        frames = pinned.array(0, pinned.nbytes, write=True).reshape(count, *layout.shape)
        self._ring = (pinned, frames)
        self._layout = layout
        return frames

    def start(self) -> None:
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._alloc_own()
        place, offset = {}, 0
        for name in sorted(self._specs, key=lambda n: self._specs[n][2] != "result"):
            dtype, shape, region = self._specs[name]
            self._bytes[name] = ITEM_BYTES[dtype] * math.prod(shape)
            place[name] = offset
            offset += aligned(self._bytes[name])
            if region == "result":
                results_bytes = offset
        activations = {}
        for stage in STAGES:
            activations[stage] = offset
            sizes = (e.engine.activation_bytes for e in self._engines if e.stage == stage)
            offset += aligned(max(sizes, default=0))
        self.arena_bytes = offset
        free = self._device.free_bytes()
        if offset > free:
            raise BackendError(
                f"this stream needs {offset} bytes on {self._device.name}, of which {free} are "
                f"free: {offset - free} too few. Close other streams, or take a bundle with fewer "
                "pixels or a shorter window."
            )
        self._arena = self._device.alloc(offset)
        base = self._arena.address
        for name, (dtype, shape, _) in self._specs.items():
            self._at[name] = base + place[name]
            self._placed[name] = Placed(base + place[name], dtype, shape)
        streams = self._streams
        self._in = {s: _InStage(self, streams[i % len(streams)]) for i, s in enumerate(STAGES)}
        self._results = base
        self._open_slots(results_bytes, place)
        self._staging = self._device.alloc_pinned(STAGING_BYTES)
        self._pinned.append(self._staging)
        self.stream.zero(base, offset)
        for engine in self._engines:
            engine.engine.bind(self._placed, base + activations[engine.stage])
        self._write_own()
        self.stream.synchronize()

    def _alloc_own(self) -> None:
        """Buffers of the backend itself: staging of frames, tables, scratch."""
        shapes = [(n, d, s) for n, (d, s, _) in self._specs.items() if n.endswith(".frames")]
        self._frames = {n: s[2] for n, _, s in shapes}
        if shapes:
            dtype, frame = shapes[0][1], self._layout.shape
            most = max(self._frames.values())
            for name in ("own.frames_in", "own.frames_out"):
                self.alloc(name, "uint8", (most, *frame))
            self.alloc("own.pixels", dtype, (256,))
            if self._leave_frames:
                decoded = [n for g, n in self._frames.items() if g.startswith("decode_")]
                count = self._specs["importance"][1][0] * max(decoded)
                self.alloc("own.edited", "uint8", (self.depth + MOST_LENT, count, *frame))
        if "importance" in self._specs:
            F, h, w = self._specs["importance"][1]
            scratch = self._device.scratch_bytes
            self.alloc("own.importance", "uint8", (scratch("importance", F * h * w),))
            self.alloc("own.select", "uint8", (scratch("select", F, h, w),))

    def _write_own(self) -> None:
        if "own.pixels" in self._at:
            low, high = self._layout.pixel_range
            dtype = self._specs["own.pixels"][0]
            # The order of operations of the CPU backend, in the same types.
            real = np.dtype(np.float32 if dtype == "bfloat16" else dtype)
            table = np.empty(256, dtype=real)
            np.multiply(np.arange(256, dtype=np.uint8), (high - low) / 255, out=table,
                        casting="unsafe")  # fmt: skip
            if low:
                table += real.type(low)
            self.write("own.pixels", table)

    def _open_slots(self, results_bytes: int, place: dict[str, int]) -> None:
        fields = {
            name: ResultField(place[name], self._bytes[name], np.dtype(dtype), shape)
            for name, (dtype, shape, region) in self._specs.items()
            if region == "result"
        }
        latents = self._specs["importance"][1][0] if "importance" in self._specs else 1
        decoded = [n for g, n in self._frames.items() if g.startswith("decode_")]
        self._slots = FrameSlots(
            self._device,
            depth=self.depth,
            fields=fields,
            results_bytes=results_bytes,
            num_frames=latents * max(decoded, default=0),
            num_parts=latents,
            frame_shape=self._layout.shape,
            device_frames=self._at.get("own.edited"),
        )

    def address(self, buffer: str) -> int:
        """Where a buffer lies, for as long as the backend is open."""
        return self._at[buffer]

    # Order

    def output(self, num_frames: int) -> FrameSlot:
        assert self._slots is not None
        return self._slots.open()

    def stage(self, stage: Stage) -> AbstractContextManager[None]:
        return self._in[stage]

    def record(self, event: str) -> None:
        if self._overlap:
            if event not in self._events:
                self._events[event] = self._device.event()
            self.stream.record(self._events[event])

    def wait(self, event: str) -> None:
        if event in self._events:
            self.stream.wait(self._events[event])

    def replay(self, key: Hashable, body: Callable[[], None]) -> None:
        if not self._captures:
            body()
        elif key not in self._graphs:
            # The first run is not captured: libraries set themselves up in it.
            self._graphs[key] = None
            body()
        else:
            graph = self._graphs[key] or self._capture(key, body)
            self.counts["graph launch"] += 1
            graph.launch(self.stream)

    def _capture(self, key: Hashable, body: Callable[[], None]) -> Graph:
        self.stream.begin_capture()
        try:
            body()
        except BaseException:
            with suppress(DeviceError):  # which says that the capture is not whole
                self.stream.end_capture().close()
            raise
        graph = self.stream.end_capture()
        self._graphs[key] = graph
        return graph

    # Host and device

    def write(self, buffer: str, value: npt.ArrayLike) -> None:
        dtype, shape, _ = self._specs[buffer]
        if np.ndim(value) != len(shape):
            value = np.broadcast_to(np.asarray(value), shape)
        raw = to_bits(value, dtype).reshape(-1).view(np.uint8)
        assert len(raw) <= self._bytes[buffer], buffer
        self.counts["write"] += 1
        for start in range(0, len(raw), STAGING_BYTES):
            piece = raw[start : start + STAGING_BYTES]
            self._staging.array(0, len(piece), write=True)[:] = piece
            self.stream.upload(self._at[buffer] + start, self._staging, 0, len(piece))
            self.stream.synchronize()

    def read(self, buffer: str) -> Array:
        dtype, shape, _ = self._specs[buffer]
        raw = np.empty(self._bytes[buffer], dtype=np.uint8)
        self.counts["read"] += 1
        self.synchronize()
        for start in range(0, len(raw), STAGING_BYTES):
            count = min(STAGING_BYTES, len(raw) - start)
            self.stream.download(self._staging, 0, self._at[buffer] + start, count)
            self.stream.synchronize()
            raw[start : start + count] = self._staging.array(0, count)
        if dtype == "bfloat16":
            bits = raw.view(np.uint16).astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32).reshape(shape)
        return raw.view(dtype).reshape(shape)

    def stage_frame(self, index: int, frame: ForeignFrames, keep: Frames | None) -> ForeignFrames:
        assert self._ring is not None
        size = math.prod(frame.shape)
        to = self._at["own.frames_in"] + index * size
        with self._in["encode"]:
            if frame.stream is not None:
                theirs = self._device.foreign_stream(frame.stream)
                self._order(theirs, self.stream)
            if frame.address != to:  # a frame that is staged again may lie there
                self.stream.copy(to, frame.address, size)
            if keep is not None:
                pinned, _ = self._ring
                offset = keep.ctypes.data - pinned.address
                self.stream.download(pinned, offset, frame.address, size)
            if frame.stream is not None:
                self._order(self.stream, theirs)
        return ForeignFrames(to, frame.shape, None, None)

    def _order(self, first: Stream, then: Stream) -> None:
        """What ``then`` does next comes after all that ``first`` was given."""
        if "foreign" not in self._events:
            self._events["foreign"] = self._device.event()
        event = self._events["foreign"]
        first.record(event)
        then.wait(event)

    def write_frames(
        self, buffer: str, frames: Frames, staged: Collection[int] = frozenset()
    ) -> None:
        assert self._ring is not None
        pinned, _ = self._ring
        offset = frames.ctypes.data - pinned.address
        assert 0 <= offset <= pinned.nbytes - frames.nbytes, "frames must lie in the ring"
        to, size = self._at["own.frames_in"], frames[0].nbytes
        if not staged:
            self.stream.upload(to, pinned, offset, frames.nbytes)
        else:
            for i in set(range(len(frames))).difference(staged):
                self.stream.upload(to + i * size, pinned, offset + i * size, size)
        dtype, (_, _, count, height, width), _ = self._specs[buffer]
        code, table = DTYPE_CODES[dtype], self._at["own.pixels"]
        if self._layout.format.name == "rgb":
            pixels = count * height * width
            self.stream.launch("frames_in", to, table, self._at[buffer], pixels, code)
        else:
            chroma = to + height * width
            sizes = (*self._nv12_sizes(buffer), *self._nv12_color(), code)
            self.stream.launch("nv12_in", to, chroma, table, self._at[buffer], *sizes)

    def fetch_frames(self, buffer: str, skip: int, out: ChunkOutput, start: int) -> None:
        assert isinstance(out, FrameSlot)
        dtype, (_, _, count, height, width), _ = self._specs[buffer]
        low, high = self._layout.pixel_range
        scale, code = 255 / (high - low), DTYPE_CODES[dtype]
        planes, to = self._at[buffer], self._at["own.frames_out"]
        if self._layout.format.name == "rgb":
            pixels = count * height * width
            self.stream.launch("frames_out", planes, to, pixels, low, scale, code)
        else:
            sizes = (*self._nv12_sizes(buffer), low, scale, *self._nv12_color(), code)
            self.stream.launch("nv12_out", planes, to, to + height * width, *sizes)
        out.take_frames(self.stream, to + skip * self._layout.frame_bytes, start, count - skip)

    def _nv12_sizes(self, buffer: str) -> tuple[int, ...]:
        """frames, height, width, pitch, frame_stride, plane_stride."""
        _, _, count, height, width = self._specs[buffer][1]
        return (count, height, width, width, self._layout.frame_bytes, count * height * width)

    def _nv12_color(self) -> tuple[int, int]:
        pixels = self._layout.format
        return int(pixels.matrix == "bt709"), int(pixels.full_range)

    def fetch_results(self, out: ChunkOutput) -> None:
        assert isinstance(out, FrameSlot)
        out.take_results(self.stream, self._results)

    # Work between engines

    def begin_chunk(self, kv: KVCache, buffers: Mapping[str, str]) -> None:
        names = ("control", "counts", "write_index", "kv_full", "kv_pruned", "flag")
        sizes = (kv.num_slots, kv.num_sink_slots, kv.rows_per_slot, kv.num_frames)
        self.stream.launch("begin_chunk", *(self._at[buffers[n]] for n in names), *sizes)

    def write_noise(self, buffer: str, *, control: str, draw: int) -> None:
        dtype, shape, _ = self._specs[buffer]
        key = self._at[control] + 8 * SEED
        self.stream.launch(
            "noise", key, self._at[buffer], math.prod(shape), draw, DTYPE_CODES[dtype]
        )

    def rotary(self, control: str, table: RotaryTable, frequency: str, cos: str, sin: str) -> None:
        _, (_, tokens, columns), _ = self._specs[cos]
        pairs = self._specs[frequency][1][0]
        self.stream.launch(
            "rope_time",
            self._at[control] + 8 * FIRST_FRAME,
            *(self._at[b] for b in (frequency, cos, sin)),
            table.num_frames,
            tokens // table.num_frames,
            pairs,
            columns,
        )

    def copy(self, src: str, dst: str, *, src_row: int, dst_row: int, count: int) -> None:
        dtype, (_, groups, src_rows, *rest), _ = self._specs[src]
        dst_rows = self._specs[dst][1][2]
        row = ITEM_BYTES[dtype] * math.prod(rest)
        self.stream.copy_rows(
            self._at[dst] + dst_row * row,
            dst_rows * row,
            self._at[src] + src_row * row,
            src_rows * row,
            count * row,
            groups,
        )

    def copy_all(self, src: str, dst: str) -> None:
        assert self._bytes[src] == self._bytes[dst], (src, dst)
        self.stream.copy(self._at[dst], self._at[src], self._bytes[src])

    def write_addresses(self, table: str, buffers: Sequence[str]) -> None:
        self.write(table, np.array([self._at[b] for b in buffers], dtype=np.int64))

    def commit(self, buffers: Sequence[str], table: str, control: str, most_rows: int) -> None:
        dtype, (_, groups, rows, width), _ = self._specs[buffers[0]]
        self.stream.launch(
            "copy_rows",
            self._at[table],
            self._at[control] + 8 * COPY_SOURCE,
            len(buffers),
            groups,
            rows,
            ITEM_BYTES[dtype] * width,
            most_rows,
            1,
        )

    def guard(self, policy: OnNonFinite, buffers: Mapping[str, str]) -> None:
        at = {name: self._at[buffer] for name, buffer in buffers.items()}
        dtype, shape, _ = self._specs[buffers["latent"]]
        self.stream.launch(
            "non_finite", at["latent"], math.prod(shape), at["flag"], DTYPE_CODES[dtype]
        )
        self.stream.launch(
            "replace",
            *(at[n] for n in ("latent", "last_good", "source")),
            self._bytes[buffers["latent"]],
            *(at[n] for n in ("flag", "has_good", "outcome")),
            0,
            OUTCOMES.index(policy),
        )

    def choose_tokens(self, choice: TokenChoice, buffers: Mapping[str, str]) -> None:
        at = {name: self._at[buffer] for name, buffer in buffers.items()}
        dtype, (_, channels, F, h, w), _ = self._specs[buffers["edited"]]
        self.stream.launch(
            "importance",
            *(at[n] for n in ("edited", "source")),
            self._at["own.importance"],
            *(at[n] for n in ("importance", "peak")),
            0,
            channels,
            F * h * w,
            int(choice.bfloat16),
            DTYPE_CODES[dtype],
        )
        if not choice.pruned_passes:
            return
        policy = choice.policy
        share = h * w if policy.mode == "released" else h * w // 4
        self.stream.launch(
            "select_tokens",
            at["importance"],
            0 if policy.token_budget else at["outcome"],
            self._at["own.select"],
            *(at[n] for n in ("keep_index", "token_row", "kept", "counts")),
            0,
            *(F, h, w),
            ("released", "paper").index(policy.mode),
            max(1, int(share * policy.keep_ratio)),
            choice.bucket,
            policy.token_budget or 0,
        )

    def synchronize(self) -> None:
        for stream in self._streams:
            stream.synchronize()

    def zero(self, buffer: str) -> None:
        self.stream.zero(self._at[buffer], self._bytes[buffer])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Last in, first out; each is tried, also where one before it fails.
        with ExitStack() as stack:
            stack.callback(self._device.close)
            if self._arena is not None:
                stack.callback(self._arena.free)
            for pinned in self._pinned:
                stack.callback(pinned.free)
            for stream in self._streams:
                stack.callback(stream.close)
            for event in self._events.values():
                stack.callback(event.close)
            if self._slots is not None:
                stack.callback(self._slots.close)
            stack.callback(self._loader.close)
            for engine in self._engines:
                stack.callback(engine.engine.close)
            for graph in self._graphs.values():
                if graph is not None:
                    stack.callback(graph.close)
            for stream in self._streams:
                stack.callback(stream.synchronize)
