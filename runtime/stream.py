"""`StreamEditor`: frames in, edited frames out, chunk by chunk, on any backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from liveedit.bundle import DType, GraphSpec, Manifest, read_manifest, verify_file
from liveedit.errors import BackendError, BundleError, LiveEditError, StreamError, UsageError
from liveedit.runtime.backend import KEEP_DIMENSION, Backend, Binding, Engine, Frames
from liveedit.runtime.codec import StreamingCodec
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import KeepSet, MaskCache, MaskCachePolicy
from liveedit.runtime.null_backend import NullBackend
from liveedit.runtime.onnx_backend import OnnxBackend
from liveedit.runtime.rope import RotaryTable
from liveedit.runtime.tokenizer import PromptTokenizer
from liveedit.runtime.tracing import NULL_TRACER, Tracer
from liveedit.schedule import CLEAN_STEP, DenoisingStep, denoising_steps

Numbers = TypeVar("Numbers", int, npt.NDArray[np.int64])
OnNonFinite = Literal["stop", "last-good", "passthrough"]
BACKENDS = ("onnxruntime", "null")
REQUIRED_GRAPHS = ("prompt", "dit_step", "encode_next", "decode_next")


@dataclass(frozen=True, kw_only=True)
class EditedChunk:
    """One chunk of the stream. All arrays are new memory, the caller's to keep.

    ``frames`` may cover other source frames than the chunk's latents read: a codec with delay
    returns a frame only when it has seen what follows it. ``frames[0]`` is the edit of source frame
    ``first_frame``.
    """

    index: int
    first_frame: int
    frames: Frames  # [n, H, W, 3] uint8
    latent_rows: npt.NDArray[np.int64]  # [n]: the latent frame in [0, F) that shows each frame
    importance: npt.NDArray[np.float32]  # [F, h, w] in [0, 1]: how much each latent pixel changed
    peak_change: float  # mean squared latent difference where importance is 1
    kept: npt.NDArray[np.bool_]  # [F, h/2, w/2]: tokens that the pruned passes computed
    num_kept: int
    recovered: Literal["last-good", "passthrough"] | None  # a latent that was not finite


@dataclass
class Position:
    """How far a stream has come."""

    num_in: int = 0  # source frames pushed
    num_out: int = 0  # edited frames returned
    num_fed: int = 0  # source frames and those that a flush repeated
    num_grouped: int = 0  # frames waiting for their group
    num_encoded: int = 0  # latent frames of the next chunk
    has_good: bool = False  # a chunk came out finite
    flushed: bool = False
    failure: LiveEditError | None = None


class StreamEditor:
    """Edits one video stream. Not for use from several threads at once.

    Open a bundle, set a prompt, push frames, flush; `reset` starts the next stream.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        backend: Backend,
        *,
        precision: str,
        mask_cache: MaskCachePolicy,
        seed: int = 0,
        on_non_finite: OnNonFinite = "stop",
        tracer: Tracer = NULL_TRACER,
    ) -> None:
        """Load every graph of one precision and allocate every buffer. See `open`."""
        self._root = root
        self._manifest = manifest
        self._backend: Backend | None = backend
        self._graphs = manifest.graphs[precision]
        self._seed = seed
        self._on_non_finite = on_non_finite
        stream, dit = manifest.stream, manifest.model.dit
        self._num_frames = stream.num_frame_per_block
        self._steps = denoising_steps(stream)
        self._kv = KVCache.for_stream(stream)
        self._mask = MaskCache(stream, mask_cache, len(self._steps))
        self._rope = RotaryTable(
            head_dim=dit.head_dim,
            num_frames=stream.num_frame_per_block,
            height=stream.latent_height // 2,
            width=stream.latent_width // 2,
        )
        self._tokenizer = PromptTokenizer(
            root / manifest.tokenizer,
            text_len=dit.text_len,
            vocab_size=manifest.model.text.vocab_size,
        )
        self._sizes: dict[str, tuple[DType, tuple[int, ...]]] = {}
        self._tracer = tracer
        self._range = tracer.range("stream", backend=backend.name)
        self._range.__enter__()
        self._codec = StreamingCodec(backend, manifest, self._graphs, self._load, tracer)
        self._text_encoder = None
        if "text_encoder" in self._graphs:
            self._text_encoder = self._load("text_encoder", [self._bind("text_encoder")])
        self._prompt = self._load("prompt", [self._bind("prompt")])
        self._dit_step = self._load("dit_step", [self._bind("dit_step")])
        latent = next(t for t in self._graphs["dit_step"].inputs if t.name == "noisy")
        self._alloc("last_good", latent.dtype, tuple(int(d) for d in latent.shape))
        self._kv_buffers = [b for b in self._sizes if b.startswith(("k_cache_", "v_cache_"))]
        # The source frames of a chunk and of the codec's delay, also handed out as they are.
        # Slots are shifted so that a group of frames for the encoder never wraps.
        size = manifest.codec.encode_next_frames
        self._shift = -manifest.codec.encode_first_frames % size
        self._source_frames: Frames = np.empty(
            (2 * self._num_frames * size, stream.height_px, stream.width_px, 3), dtype=np.uint8
        )
        self._has_prompt = False
        self._bound_keep: KeepSet | None = None
        self._at = Position()

    @classmethod
    def open(
        cls,
        bundle: Path | str,
        *,
        backend: str = "onnxruntime",
        precision: str | None = None,
        mask_cache: MaskCachePolicy | None = None,
        seed: int = 0,
        threads: int | None = None,
        verify: bool = True,
        on_non_finite: OnNonFinite = "stop",
        tracer: Tracer = NULL_TRACER,
    ) -> Self:
        """Open a bundle.

        Args:
            bundle: its directory.
            backend: `onnxruntime` or `null`. Never replaced by another one.
            precision: of the graphs; None takes fp32 if the bundle holds it, else its only one.
            mask_cache: None takes the released policy with keep ratio 0.3.
            seed: of the noise. Same seed, frames and prompts: same output.
            threads: per graph; None takes every core.
            verify: hash every file before it is loaded.
            on_non_finite: what to do with a chunk whose latent is not finite: `stop` raises,
                `last-good` repeats the preceding chunk's latent, `passthrough` hands out the
                source frames.
            tracer: sees every stage; see docs/architecture.md, "Ranges".

        Raises:
            BundleError: the bundle is missing, changed or incomplete.
            BackendError: the backend is not here or cannot run it.
            UsageError: an option is not possible.
        """
        root = Path(bundle)
        manifest = read_manifest(root)
        if backend not in BACKENDS:
            raise BackendError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
        if on_non_finite not in ("stop", "last-good", "passthrough"):
            raise UsageError(
                f"on_non_finite {on_non_finite!r}; there are stop, last-good, passthrough"
            )
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        precision = choose_precision(root, manifest, precision)
        if verify:
            verify_files(root, manifest, precision)
        return cls(
            root,
            manifest,
            NullBackend() if backend == "null" else OnnxBackend(threads=threads),
            precision=precision,
            mask_cache=mask_cache or MaskCachePolicy(),
            seed=seed,
            on_non_finite=on_non_finite,
            tracer=tracer,
        )

    # What embedders ask

    @property
    def height_px(self) -> int:
        """Height of the frames that go in and come out."""
        return self._manifest.stream.height_px

    @property
    def width_px(self) -> int:
        """Width of the frames that go in and come out."""
        return self._manifest.stream.width_px

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def chunk(self) -> int:
        """Number of the chunk that is edited next."""
        return self._kv.chunk

    def set_prompt(self, text: str) -> int:
        """Encode a prompt. It holds from the next chunk on, until it is replaced.

        The first chunk of a prompt runs without pruning: the mask that the preceding chunk
        left shows where the preceding prompt edited.

        Returns:
            The number of the first chunk that it edits. Its frames may have been pushed already.

        Raises:
            UsageError: the prompt is empty or too long, the bundle holds no text encoder, or
                the editor is closed.
        """
        backend = self._open_backend()
        input_ids, attention_mask = self._tokenizer.encode(text)
        if self._text_encoder is None:
            raise UsageError(
                "this bundle holds no text encoder; give set_text_embeds an encoded prompt, or "
                "export the bundle with its text encoder"
            )
        backend.write("input_ids", input_ids)
        backend.write("attention_mask", attention_mask)
        self._text_encoder.run()
        return self._take_text()

    def set_text_embeds(self, embeds: npt.NDArray[np.float32]) -> int:
        """Like `set_prompt`, for a prompt encoded elsewhere.

        Args:
            embeds: [1, text_len, text_dim], zero rows after the prompt.

        Raises:
            UsageError: wrong shape, a value that is not finite, or the editor is closed.
        """
        backend = self._open_backend()
        shape = self._sizes["text_embeds"][1]
        if np.shape(embeds) != shape or not np.isfinite(embeds).all():
            raise UsageError(
                f"text embeddings are {list(np.shape(embeds))}; this bundle takes finite values "
                f"of shape {list(shape)}"
            )
        backend.write("text_embeds", embeds)
        return self._take_text()

    def _take_text(self) -> int:
        self._prompt.run()
        self._mask.reset()
        self._has_prompt = True
        return self._kv.chunk

    def push(self, frames: Frames) -> list[EditedChunk]:
        """Add source frames. Returns the chunks that they complete, often none.

        Args:
            frames: uint8 [n, H, W, 3] RGB, any n.

        Raises:
            UsageError: wrong shape or type, no prompt yet, flushed or closed.
            StreamError: a latent is not finite and the policy is `stop`.
            BackendError: the backend stopped.
        """
        self._ready_to_push(frames)
        chunks: list[EditedChunk] = []
        for frame in frames:
            self._at.num_in += 1
            if self._feed(frame) and not self._finish_chunk(chunks):
                break
        return chunks

    def flush(self) -> list[EditedChunk]:
        """End the stream. Returns the rest: as many frames have come out as went in.

        The last frame is repeated until its chunk is complete; what that adds is cut off.

        Raises:
            UsageError: closed.
            StreamError: a latent is not finite and the policy is `stop`.
            BackendError: the backend stopped.
        """
        self._open_backend()
        self._raise_failure()
        chunks: list[EditedChunk] = []
        last = self._source_frames[self._slots(self._at.num_in - 1)].copy()
        while self._at.num_out < self._at.num_in:
            if self._feed(last) and not self._finish_chunk(chunks):
                return chunks
        self._at.flushed = True
        return chunks

    def reset(self) -> None:
        """Start a new stream: chunk 0, empty caches. The prompt stays."""
        backend = self._open_backend()
        for buffer in self._sizes:
            if buffer.startswith(("k_cache_", "v_cache_", "attn_store_")):
                backend.zero(buffer)
        self._codec.reset()
        self._kv.reset()
        self._mask.reset()
        self._bound_keep = None
        self._at = Position()

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None
            self._range.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _finish_chunk(self, chunks: list[EditedChunk]) -> bool:
        """Edit one chunk. If it fails after others were finished, those are returned first.

        The next call then raises, and so does every call until `reset`.
        """
        try:
            chunks.append(self._edit())
        except LiveEditError as error:
            self._at.failure = error
            if not chunks:
                raise
            return False
        return True

    def _raise_failure(self) -> None:
        if self._at.failure is not None:
            raise self._at.failure

    # One chunk

    def _edit(self) -> EditedChunk:
        """Denoise, keep, choose the next mask, decode. The source latent is already encoded."""
        chunk, pruned = self._kv.chunk, self._mask.pruned
        with self._tracer.range("chunk", index=chunk):
            self._denoise(chunk)
            recovered = self._recover()
            self._pass(CLEAN_STEP, self._mask.full, number=len(self._steps))
            self._commit()
            kept, num_kept = pruned.kept.copy(), pruned.num_kept
            importance = self._choose_mask(usable=recovered is None)
            rows = np.repeat(
                np.arange(self._num_frames), self._codec.decoded_frames(self._num_frames)
            )
            frames = self._decode(passthrough=recovered == "passthrough")
        first_frame = self._at.num_out
        self._at.num_out += len(frames)
        return EditedChunk(
            index=chunk,
            first_frame=first_frame,
            frames=frames,
            latent_rows=rows[: len(frames)],
            importance=importance,
            peak_change=self._mask.peak,
            kept=kept,
            num_kept=num_kept,
            recovered=recovered,
        )

    def _denoise(self, chunk: int) -> None:
        """Every denoising pass. Leaves x0 in `noisy`."""
        backend = self._open_backend()
        self._rope.move_to(chunk * self._num_frames)
        backend.write("rope_cos", self._rope.cos)
        backend.write("rope_sin", self._rope.sin)
        backend.write("write_index", self._kv.write_index)
        self._noise("noisy", chunk, draw=0)
        for number, step in enumerate(self._steps):
            if step.sigma_next:
                self._noise("noise", chunk, draw=number + 1)
            self._pass(step, self._mask.for_pass(number), number)
            # After the last pass this is x0 itself, since its sigma_next is 0.
            backend.copy("next_latent", "noisy", src_row=0, dst_row=0, count=self._num_frames)

    def _noise(self, buffer: str, chunk: int, draw: int) -> None:
        with self._tracer.range("noise"):
            self._open_backend().write_noise(buffer, seed=self._seed, chunk=chunk, draw=draw)

    def _pass(self, step: DenoisingStep, keep: KeepSet, number: int) -> None:
        """One run of the DiT over the current chunk."""
        backend = self._open_backend()
        kv_length = self._kv.kv_length(keep.num_kept)
        kind = "pruned" if keep is not self._mask.full else "full"
        if step is CLEAN_STEP:
            kind = "clean"
        with self._tracer.range("pass", kind=kind, step=number, kept=keep.num_kept, kv=kv_length):
            backend.write("timestep", step.timestep)
            backend.write("sigma", step.sigma)
            backend.write("sigma_next", step.sigma_next)
            if keep is not self._bound_keep:
                backend.write("keep_index", keep.keep_index)
                backend.write("token_row", keep.token_row)
                self._bound_keep = keep
            backend.write("kv_length", kv_length)
            self._dit_step.run(num_keep=keep.num_kept)

    def _commit(self) -> None:
        """End the chunk: its keys and values move to where later chunks see them."""
        backend = self._open_backend()
        with self._tracer.range("commit"):
            if copy := self._kv.commit():
                for kv in self._kv_buffers:
                    backend.copy(kv, kv, src_row=copy.src, dst_row=copy.dst, count=copy.count)

    def _choose_mask(self, *, usable: bool) -> npt.NDArray[np.float32]:
        """The next chunk's tokens from this chunk's latents; all of them if it was replaced."""
        backend = self._open_backend()
        with self._tracer.range("mask"):
            importance = self._mask.update(backend.read("noisy"), backend.read("source"))
            if not usable:
                self._mask.reset()
        return importance

    def _decode(self, *, passthrough: bool) -> Frames:
        """The frames that are due. Those that a flush has made up are cut off."""
        frames = self._codec.decode("noisy", self._num_frames)
        frames = frames[: self._at.num_in - self._at.num_out]
        if passthrough:
            numbers = np.arange(self._at.num_out, self._at.num_out + len(frames))
            frames = self._source_frames[self._slots(numbers)]
        return frames

    def _recover(self) -> Literal["last-good", "passthrough"] | None:
        """Check the chunk's x0 in `noisy`; if it is not finite, replace it as the policy says."""
        backend, rows = self._open_backend(), self._num_frames
        if np.isfinite(backend.read("noisy")).all():
            backend.copy("noisy", "last_good", src_row=0, dst_row=0, count=rows)
            self._at.has_good = True
            return None
        if self._on_non_finite == "stop":
            raise StreamError(
                f"chunk {self._kv.chunk} (from frame {self._at.num_out}) came out not finite; "
                "the frames before it are good. Reset the stream, or open it with on_non_finite "
                "'last-good' or 'passthrough'."
            )
        repeat = self._on_non_finite == "last-good" and self._at.has_good
        source = "last_good" if repeat else "source"
        backend.copy(source, "noisy", src_row=0, dst_row=0, count=rows)
        return self._on_non_finite

    def _feed(self, frame: npt.NDArray[np.uint8]) -> bool:
        """Add one frame; encode a full group. True when the chunk's source latent is complete."""
        slot = self._slots(self._at.num_fed)
        self._source_frames[slot] = frame
        self._at.num_fed += 1
        self._at.num_grouped += 1
        if self._at.num_grouped < self._codec.group_frames:
            return False
        group = self._source_frames[slot + 1 - self._at.num_grouped : slot + 1]
        self._at.num_grouped = 0
        self._codec.encode(group, "source", self._at.num_encoded)
        self._at.num_encoded = (self._at.num_encoded + 1) % self._num_frames
        return self._at.num_encoded == 0

    def _slots(self, numbers: Numbers) -> Numbers:
        """Where source frames lie in `_source_frames`."""
        return (numbers + self._shift) % len(self._source_frames)

    # Setting up

    def _ready_to_push(self, frames: Frames) -> None:
        self._open_backend()
        self._raise_failure()
        expected = (self.height_px, self.width_px, 3)
        shape = getattr(frames, "shape", ())
        dtype = getattr(frames, "dtype", type(frames).__name__)
        if dtype != np.uint8 or len(shape) != 4 or shape[1:] != expected:
            raise UsageError(
                f"frames are {dtype} {list(shape)}; this bundle takes uint8 "
                f"[n, {expected[0]}, {expected[1]}, 3]"
            )
        if not self._has_prompt:
            raise UsageError("no prompt yet; call set_prompt before push")
        if self._at.flushed:
            raise UsageError("the stream was flushed; call reset to start another")

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise UsageError("the editor is closed; open the bundle again")
        return self._backend

    def _load(self, graph: str, bindings: list[Binding]) -> Engine:
        spec = self._graphs[graph]
        return self._open_backend().load(graph, spec, self._root / spec.file, bindings)

    def _bind(self, graph: str) -> Binding:
        """Buffers called like the tensors; an aliased output takes its input's."""
        spec = self._graphs[graph]
        binding = {t.name: t.name for t in (*spec.inputs, *spec.outputs)} | spec.aliases
        tokens = self._manifest.stream.block_seq_length
        for tensor in (*spec.inputs, *spec.outputs):
            shape = tuple(tokens if d == KEEP_DIMENSION else int(d) for d in tensor.shape)
            self._alloc(binding[tensor.name], tensor.dtype, shape)
        return binding

    def _alloc(self, buffer: str, dtype: DType, shape: tuple[int, ...]) -> None:
        """Allocate a buffer, or check that an earlier graph's is the same."""
        if buffer not in self._sizes:
            self._open_backend().alloc(buffer, dtype, shape)
            self._sizes[buffer] = (dtype, shape)
        elif self._sizes[buffer] != (dtype, shape):
            raise BundleError(
                f"two graphs disagree about {buffer!r}: {self._sizes[buffer]} and "
                f"{(dtype, shape)}. Export the bundle again."
            )


def choose_precision(root: Path, manifest: Manifest, precision: str | None) -> str:
    """The precision to run.

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
    graphs: Mapping[str, GraphSpec] = manifest.graphs[precision]
    wanted = {manifest.tokenizer, *(g.file for g in graphs.values())}
    folders = {os.path.dirname(g.file) for g in graphs.values()}
    wanted |= {name for name in manifest.files if os.path.dirname(name) in folders}
    for name in sorted(wanted):
        verify_file(root, manifest, name)


__all__ = ["BACKENDS", "EditedChunk", "OnNonFinite", "StreamEditor"]
