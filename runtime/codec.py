"""Frames to latents and back, one graph call per latent, with the causal caches in the backend.

The caches swap between two buffer sets, since a step may write a cache before its last reader has
run: only a graph whose sole reader of a buffer is its writer may update it in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from liveedit.bundle import GraphSpec, Manifest, TensorSpec
from liveedit.runtime.backend import WARM_UP_RUNS, Backend, Binding, ChunkOutput, Engine
from liveedit.runtime.source_frames import Group
from liveedit.runtime.tracing import NULL_TRACER, Tracer

LoadGraph = Callable[[str, list[Binding]], Engine]
CACHE = "cache_"


class StepGraphs:
    """The first (if there is one) and next graph of one direction, and their caches."""

    def __init__(
        self, backend: Backend, graphs: dict[str, GraphSpec], load: LoadGraph, direction: str
    ) -> None:
        self._backend = backend
        self._direction = direction
        self._caches: set[str] = set()
        self._allocated: set[str] = set()
        self._side = 0
        self.calls = 0
        names = [f"{direction}_first", f"{direction}_next"]
        self._names = names if names[0] in graphs else names[1:]
        self._engines = {
            name: load(name, [self._bind(name, graphs[name], side) for side in (0, 1)])
            for name in self._names
        }

    def _bind(self, graph: str, spec: GraphSpec, side: int) -> Binding:
        binding = {t.name: self._buffer(graph, t, side) for t in spec.inputs}
        return binding | {t.name: self._buffer(graph, t, side ^ 1) for t in spec.outputs}

    def _buffer(self, graph: str, tensor: TensorSpec, side: int) -> str:
        """The buffer of a tensor, allocated at its first mention. Both graphs share the caches."""
        buffer = f"{graph}.{tensor.name}"
        if tensor.name.startswith(CACHE):
            buffer = f"{self._direction}.{tensor.name.removesuffix('_out')}.{side}"
            self._caches.add(buffer)
        if buffer not in self._allocated:
            self._allocated.add(buffer)
            shape = tuple(d for d in tensor.shape if isinstance(d, int))
            assert len(shape) == len(tensor.shape), tensor
            self._backend.alloc(buffer, tensor.dtype, shape)
        return buffer

    def reset(self) -> None:
        """Back to the first call, with caches of zeros."""
        self._side = self.calls = 0
        for buffer in self._caches:
            self._backend.zero(buffer)

    def warm_up(self) -> None:
        """Run every graph until a backend that captures has captured it. Leaves no state."""
        for name in self._names:
            first = name != self._names[-1]
            for side in (0,) if first else (0, 1):
                for _ in range(WARM_UP_RUNS):
                    self._backend.replay((name, side), partial(self._engines[name].run, side=side))
        self.reset()

    @property
    def graph(self) -> str:
        """The graph that the next call runs; its buffers are called ``graph.tensor``."""
        return self._names[0 if self.calls == 0 else -1]

    def run(self) -> None:
        graph, side = self.graph, self._side
        self._backend.replay((graph, side), partial(self._engines[graph].run, side=side))
        self._side ^= 1
        self.calls += 1


class StreamingCodec:
    """Encodes groups of frames and decodes latents of one stream, in order."""

    def __init__(
        self,
        backend: Backend,
        manifest: Manifest,
        graphs: dict[str, GraphSpec],
        load: LoadGraph,
        tracer: Tracer = NULL_TRACER,
    ) -> None:
        self._tracer = tracer
        self._backend = backend
        self._spec = manifest.codec
        self._encoder = StepGraphs(backend, graphs, load, "encode")
        self._decoder = StepGraphs(backend, graphs, load, "decode")
        outputs = {n: g.outputs for n, g in graphs.items() if n.startswith("decode_")}
        self._decoded = {
            name: next(int(t.shape[2]) for t in tensors if t.name == "frames")
            for name, tensors in outputs.items()
        }

    def reset(self) -> None:
        with self._backend.stage("encode"):
            self._encoder.reset()
        with self._backend.stage("decode"):
            self._decoder.reset()

    def warm_up(self) -> None:
        """Before the first frame: every graph captured, where the backend captures."""
        with self._backend.stage("encode"):
            self._encoder.warm_up()
        with self._backend.stage("decode"):
            self._decoder.warm_up()

    @property
    def group_frames(self) -> int:
        """Pixel frames that make the next latent."""
        first = self._encoder.calls == 0
        return self._spec.encode_first_frames if first else self._spec.encode_next_frames

    def encode(self, group: Group, row: int, *, last: bool) -> None:
        """Encode ``group_frames`` frames into frame ``row`` of `encoded`.

        ``last``: the chunk's latents are complete with it.
        """
        assert len(group.frames) == self.group_frames, (len(group.frames), self.group_frames)
        graph, backend = self._encoder.graph, self._backend
        with backend.stage("encode"):
            with self._tracer.range("upload"):
                backend.write_frames(f"{graph}.frames", group.frames, group.staged)
            with self._tracer.range("encode"):
                self._encoder.run()
                if row == 0:
                    backend.wait("source taken")
                backend.copy(f"{graph}.latent", "encoded", src_row=0, dst_row=row, count=1)
            if last:
                backend.record("encoded")

    def decoded_frames(self, count: int) -> list[int]:
        """How many pixel frames each of the next ``count`` latents will give."""
        sizes = [self._decoded[self._decoder.graph]] + [self._decoded["decode_next"]] * (count - 1)
        if self._decoder.calls == 0:
            sizes[0] -= self._spec.decode_first_trim
        return sizes

    def decode(self, latent: str, count: int, out: ChunkOutput) -> None:
        """Decode latent frames 0..count of a buffer; their frames will be in ``out``."""
        backend, start = self._backend, 0
        with backend.stage("decode"):
            backend.wait(latent)
            for row, size in enumerate(self.decoded_frames(count)):
                graph = self._decoder.graph
                with self._tracer.range("decode"):
                    backend.copy(latent, f"{graph}.latent", src_row=row, dst_row=0, count=1)
                    self._decoder.run()
                with self._tracer.range("download"):
                    skip = self._decoded[graph] - size
                    backend.fetch_frames(f"{graph}.frames", skip, out, start)
                start += size
