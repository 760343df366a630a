"""`StreamEditor`: frames in, edited frames out, chunk by chunk, on any backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from liveedit.bundle import Manifest, read_manifest
from liveedit.errors import BackendError, LiveEditError, StreamError, UsageError
from liveedit.runtime.backend import Backend, Frames
from liveedit.runtime.codec import StreamingCodec
from liveedit.runtime.denoiser import Denoiser
from liveedit.runtime.graphs import BundleGraphs, choose_precision, verify_files
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.null_backend import NullBackend
from liveedit.runtime.onnx_backend import OnnxBackend
from liveedit.runtime.prompt import PromptEncoder
from liveedit.runtime.tracing import NULL_TRACER, Tracer

Numbers = TypeVar("Numbers", int, npt.NDArray[np.int64])
OnNonFinite = Literal["stop", "last-good", "passthrough"]
BACKENDS = ("onnxruntime", "null")


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
        self._manifest = manifest
        self._backend: Backend | None = backend
        self._on_non_finite = on_non_finite
        self._num_frames = manifest.stream.num_frame_per_block
        self._tracer = tracer
        self._range = tracer.range("stream", backend=backend.name)
        self._range.__enter__()
        graphs = BundleGraphs(root, manifest, precision, backend)
        self._codec = StreamingCodec(backend, manifest, graphs.specs, graphs.load, tracer)
        self._prompt = PromptEncoder(root, manifest, graphs, backend)
        self._denoiser = Denoiser(
            manifest, graphs, backend, mask_cache=mask_cache, seed=seed, tracer=tracer
        )
        # The source frames of a chunk and of the codec's delay, also handed out as they are.
        # Slots are shifted so that a group of frames for the encoder never wraps.
        size = manifest.codec.encode_next_frames
        self._shift = -manifest.codec.encode_first_frames % size
        self._source_frames: Frames = np.empty(
            (2 * self._num_frames * size, self.height_px, self.width_px, 3), dtype=np.uint8
        )
        self._has_prompt = False
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
        return self._denoiser.chunk

    def set_prompt(self, text: str) -> int:
        """Encode a prompt. It holds from the next chunk on, until it is replaced.

        The first chunk of a prompt runs without pruning.

        Returns:
            The number of the first chunk that it edits. Its frames may have been pushed already.

        Raises:
            UsageError: the prompt is empty or too long, the bundle holds no text encoder, or
                the editor is closed.
        """
        self._check_open()
        self._prompt.encode(text)
        return self._prompt_changed()

    def set_text_embeds(self, embeds: npt.NDArray[np.float32]) -> int:
        """Like `set_prompt`, for a prompt encoded elsewhere.

        Args:
            embeds: [1, text_len, text_dim], zero rows after the prompt.

        Raises:
            UsageError: wrong shape, a value that is not finite, or the editor is closed.
        """
        self._check_open()
        self._prompt.take(embeds)
        return self._prompt_changed()

    def _prompt_changed(self) -> int:
        # The mask that the preceding chunk left shows where the preceding prompt edited.
        self._denoiser.forget_mask()
        self._has_prompt = True
        return self._denoiser.chunk

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
            if not self._advance(frame, chunks):
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
        self._check_open()
        chunks: list[EditedChunk] = []
        last = self._source_frames[self._slots(self._at.num_in - 1)].copy()
        while self._at.num_out < self._at.num_in:
            if not self._advance(last, chunks):
                return chunks
        self._at.flushed = True
        return chunks

    def reset(self) -> None:
        """Start a new stream: chunk 0, empty caches. The prompt stays."""
        self._check_open(failed_too=True)
        self._codec.reset()
        self._denoiser.reset()
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

    def _advance(self, frame: npt.NDArray[np.uint8], chunks: list[EditedChunk]) -> bool:
        """Add one frame, and to ``chunks`` the chunk that it completes.

        If that fails after others were finished, it returns False, so that those are handed out
        first. The next call then raises, and so does every call until `reset`.
        """
        try:
            if self._feed(frame):
                chunks.append(self._edit())
        except LiveEditError as error:
            self._at.failure = error
            if not chunks:
                raise
            return False
        return True

    # One chunk

    def _edit(self) -> EditedChunk:
        """Denoise, keep, choose the next mask, decode. The source latent is already encoded."""
        index, first_frame = self._denoiser.chunk, self._at.num_out
        with self._tracer.range("chunk", index=index):
            self._denoiser.denoise()
            recovered = self._recover()
            mask = self._denoiser.finish()
            if recovered:
                self._denoiser.forget_mask()
            per_latent = self._codec.decoded_frames(self._num_frames)
            frames = self._decode(passthrough=recovered == "passthrough")
        self._at.num_out += len(frames)
        return EditedChunk(
            index=index,
            first_frame=first_frame,
            frames=frames,
            latent_rows=np.repeat(np.arange(self._num_frames), per_latent)[: len(frames)],
            importance=mask.importance,
            peak_change=mask.peak_change,
            kept=mask.kept,
            num_kept=mask.num_kept,
            recovered=recovered,
        )

    def _recover(self) -> Literal["last-good", "passthrough"] | None:
        """Check the chunk's x0; if it is not finite, replace it as the policy says."""
        if self._denoiser.is_finite():
            return None
        if self._on_non_finite == "stop":
            raise StreamError(
                f"chunk {self._denoiser.chunk} (from frame {self._at.num_out}) came out not "
                "finite; the frames before it are good. Reset the stream, or open it with "
                "on_non_finite 'last-good' or 'passthrough'."
            )
        self._denoiser.replace(repeat=self._on_non_finite == "last-good")
        return self._on_non_finite

    def _decode(self, *, passthrough: bool) -> Frames:
        """The frames that are due. Those that a flush has made up are cut off."""
        frames = self._codec.decode("noisy", self._num_frames)
        frames = frames[: self._at.num_in - self._at.num_out]
        if passthrough:
            numbers = np.arange(self._at.num_out, self._at.num_out + len(frames))
            frames = self._source_frames[self._slots(numbers)]
        return frames

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

    # What a caller can get wrong

    def _ready_to_push(self, frames: Frames) -> None:
        self._check_open()
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

    def _check_open(self, *, failed_too: bool = False) -> None:
        if self._backend is None:
            raise UsageError("the editor is closed; open the bundle again")
        if self._at.failure is not None and not failed_too:
            raise self._at.failure
