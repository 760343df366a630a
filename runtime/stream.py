"""`StreamEditor`: frames in, edited frames out, chunk by chunk, on any backend."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from liveedit.bundle import Manifest, read_manifest
from liveedit.errors import DeviceError, LiveEditError, StreamError, UsageError
from liveedit.runtime.backend import OUTCOMES, Backend, ChunkOutput, Frames, OnNonFinite
from liveedit.runtime.backends import Opening, open_backend, resolve
from liveedit.runtime.codec import StreamingCodec
from liveedit.runtime.denoiser import Denoiser
from liveedit.runtime.device_frames import ForeignFrames, take_frames
from liveedit.runtime.graphs import BundleGraphs, verify_files
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.pixel_format import FrameLayout, PixelFormat
from liveedit.runtime.prompt import PromptEncoder
from liveedit.runtime.source_frames import Frame, SourceFrames
from liveedit.runtime.tracing import NULL_TRACER, Tracer

RGB = PixelFormat()
OnFrames = Callable[[int, Any], None]  # frames as in `EditedChunk`


@dataclass(frozen=True, kw_only=True)
class EditedChunk:
    """One chunk of the stream. All arrays are new memory, the caller's to keep.

    ``frames`` may cover other source frames than the chunk's latents read: a codec with delay
    returns a frame only when it has seen what follows it. ``frames[0]`` is the edit of source frame
    ``first_frame``.
    """

    index: int
    first_frame: int
    # [n, H, W, 3] uint8, or as the pixel format says; `LentFrames` where they stay on the device.
    frames: Frames
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
    num_due: int = 0  # edited frames of the chunks submitted
    num_encoded: int = 0  # latent frames of the next chunk
    flushed: bool = False
    failure: LiveEditError | None = None


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A chunk on its way."""

    index: int
    first_frame: int
    sizes: tuple[int, ...]  # frames that show each of its latents; what a flush made up is cut off
    everything: bool  # no token was left out, whatever the preceding chunk chose
    out: ChunkOutput
    owners: tuple[object, ...]  # hold frames on the device, which it may read until it is finished


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
        on_frames: OnFrames | None = None,
        pixel_format: PixelFormat = RGB,
        prewarm: bool = False,
        tracer: Tracer = NULL_TRACER,
    ) -> None:
        """Load every graph of one precision and allocate every buffer. See `open`.

        The backend is the editor's own: it is closed with it, also if this fails.
        """
        self._manifest = manifest
        self._backend: Backend | None = backend
        self._num_frames = manifest.stream.num_frame_per_block
        self._layout = FrameLayout(
            manifest.stream.height_px,
            manifest.stream.width_px,
            pixel_format,
            (manifest.pixel_range[0], manifest.pixel_range[1]),
        )
        self._on_frames = on_frames
        self._tracer = tracer
        self._range = tracer.range("stream", backend=backend.name)
        self._range.__enter__()
        self._lost: DeviceError | None = None
        self._submitted: deque[Submitted] = deque()
        self._owners: list[object] = []  # of frames that no chunk was submitted for yet
        try:
            self._load(root, precision, backend, mask_cache, seed, on_non_finite)
            if prewarm and not backend.immediate:
                self._codec.warm_up()
                self._denoiser.warm_up()
        except BaseException:
            self.close()
            raise

    def _load(
        self,
        root: Path,
        precision: str,
        backend: Backend,
        mask_cache: MaskCachePolicy,
        seed: int,
        on_non_finite: OnNonFinite,
    ) -> None:
        manifest, tracer = self._manifest, self._tracer
        graphs = BundleGraphs(root, manifest, precision, backend)
        self._codec = StreamingCodec(backend, manifest, graphs.specs, graphs.bind, tracer)
        self._prompt = PromptEncoder(root, manifest, graphs, backend)
        self._denoiser = Denoiser(
            manifest,
            graphs,
            backend,
            mask_cache=mask_cache,
            seed=seed,
            on_non_finite=on_non_finite,
            tracer=tracer,
        )
        self._source = SourceFrames(
            backend,
            self._layout,
            manifest.codec,
            self._num_frames,
            keep=on_non_finite == "passthrough",
        )
        backend.start()
        self._denoiser.start()
        self._has_prompt = False
        self._at = Position()
        self._kept = self._denoiser.choice.full.kept

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
        overlap: bool = True,
        cuda_graphs: bool = True,
        device_frames: bool = False,
        on_non_finite: OnNonFinite = "stop",
        on_frames: OnFrames | None = None,
        pixel_format: PixelFormat = RGB,
        prewarm: bool = False,
        tracer: Tracer = NULL_TRACER,
    ) -> Self:
        """Open a bundle.

        Args:
            bundle: its directory.
            backend: one of `liveedit.runtime.backends.BACKENDS`, never replaced by another one;
                `auto` takes the bundle's plans if it holds any, else `onnxruntime`.
            precision: of the graphs; None takes that of the plans where plans run, else fp32 if
                the bundle holds it, else its only one.
            mask_cache: None takes the released policy with keep ratio 0.3.
            seed: of the noise. Same seed, frames and prompts: same output.
            threads: per graph, on the CPU; None takes every core.
            verify: hash every file before it is loaded.
            overlap: on a GPU, work on three chunks at a time. A chunk is then returned when the
                next one has been pushed, or by `flush`.
            cuda_graphs: on a GPU, capture each half of a chunk and replay it.
            device_frames: leave edited frames on the GPU: `LentFrames`, which other libraries read
                through ``__cuda_array_interface__``.
            on_non_finite: what to do with a chunk whose latent is not finite: `stop` raises,
                `last-good` repeats the preceding chunk's latent, `passthrough` hands out the
                source frames.
            on_frames: low latency: called with the number of a source frame and the edited frames
                from there on, as each latent frame is decoded, before its chunk is returned. The
                frames are those of the chunk.
            pixel_format: of the frames that go in and come out.
            prewarm: on a GPU, capture here all that a chunk can need, for every number of tokens
                that the mask cache can keep, so that no chunk pays for it.
            tracer: sees every stage; see docs/architecture.md, "Ranges".

        Raises:
            BundleError: the bundle is missing, changed or incomplete.
            BackendError: the backend is not here or cannot run it.
            UsageError: an option is not possible.
        """
        root = Path(bundle)
        manifest = read_manifest(root)
        backend, precision = resolve(root, manifest, backend, precision)
        if on_non_finite not in OUTCOMES:
            raise UsageError(f"on_non_finite {on_non_finite!r}; there are {', '.join(OUTCOMES)}")
        if device_frames and on_non_finite == "passthrough":
            raise UsageError("passthrough hands out host frames; device_frames cannot be with it")
        opening = Opening(
            root=root,
            manifest=manifest,
            precision=precision,
            threads=threads,
            overlap=overlap and on_frames is None,
            graphs=cuda_graphs,
            leave_frames=device_frames,
        )
        if verify:
            verify_files(root, manifest, precision)
        return cls(
            root,
            manifest,
            open_backend(backend, opening),
            precision=precision,
            mask_cache=mask_cache or MaskCachePolicy(),
            seed=seed,
            on_non_finite=on_non_finite,
            on_frames=on_frames,
            pixel_format=pixel_format,
            prewarm=prewarm,
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
        with self._device_calls():
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
        with self._device_calls():
            self._prompt.take(embeds)
        return self._prompt_changed()

    def _prompt_changed(self) -> int:
        # The mask that the preceding chunk left shows where the preceding prompt edited.
        self._denoiser.forget_mask()
        self._has_prompt = True
        return self._denoiser.chunk

    def frame_room(self, count: int) -> Frames:
        """Where the next frames to push will lie: what is filled and pushed there is not copied.

        Args:
            count: how many are wanted.

        Returns:
            uint8 [n, H, W, 3], 1 <= n <= ``count``: no more than a chunk and what lies in one
            piece. Valid until the next push.

        Raises:
            UsageError: ``count`` is not positive, or the editor is closed.
        """
        self._check_open()
        if count < 1:
            raise UsageError(f"frame_room needs a count of at least 1, got {count}")
        return self._source.room(count)

    def push(self, frames: Frames) -> list[EditedChunk]:
        """Add source frames. Returns the chunks that they complete, often none.

        Args:
            frames: uint8 [n, H, W, 3] RGB, or what the pixel format says, any n: an array,
                anything with ``__dlpack__``, or anything with ``__cuda_array_interface__``; on
                the GPU only for a backend of that GPU. There they must stay as they are until
                their chunk was returned, unless the interface names a stream.

        Raises:
            UsageError: wrong shape, type, layout or device, no prompt yet, flushed or closed.
            StreamError: a latent is not finite and the policy is `stop`.
            BackendError: the backend stopped.
        """
        taken = self._ready_to_push(frames)
        chunks: list[EditedChunk] = []
        for number in range(len(taken)):
            self._at.num_in += 1
            if not self._advance(taken[number], chunks):
                break
        return chunks

    def poll(self) -> list[EditedChunk]:
        """The chunks that are finished by now, without waiting for any.

        On a GPU a chunk would else be returned when the next one has been pushed.

        Raises:
            What `push` raises for a chunk.
        """
        self._check_open()
        chunks: list[EditedChunk] = []
        while self._submitted and self._submitted[0].out.ready():
            if not self._finish(chunks):
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
        last = self._source.last()
        while self._at.num_due < self._at.num_in:
            if not self._advance(last, chunks):
                return chunks
        while self._submitted:
            if not self._finish(chunks):
                return chunks
        self._at.flushed = True
        return chunks

    def reset(self) -> None:
        """Start a new stream: chunk 0, empty caches. The prompt stays."""
        self._check_open(failed_too=True)
        with self._device_calls():
            while self._submitted:
                self._submitted[0].out.release()
                self._submitted.popleft()
            if self._owners and self._backend is not None:
                self._backend.synchronize()  # their frames may still be read
            self._owners.clear()
            self._source.reset()
            self._codec.reset()
            self._denoiser.reset()
        self._at = Position()

    def synchronize(self) -> None:
        """Wait for the device to finish what was submitted: for measurements."""
        if self._backend is not None:
            with self._device_calls():
                self._backend.synchronize()

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        backend, self._backend = self._backend, None
        if backend is not None:
            self._range.__exit__(None, None, None)
            backend.close()
            self._submitted.clear()
            self._owners.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _advance(self, frame: Frame, chunks: list[EditedChunk]) -> bool:
        """Add one frame, and to ``chunks`` the chunk that is due with it.

        If that fails after others were finished, it returns False, so that those are handed out
        first. The next call then raises, and so does every call until `reset`.
        """
        with self._failure(chunks):
            if self._feed(frame):
                self._submitted.append(self._submit())
                if len(self._submitted) >= self._depth:
                    chunks.append(self._collect())
        return self._at.failure is None

    def _finish(self, chunks: list[EditedChunk]) -> bool:
        """Like `_advance`, for the oldest chunk on its way."""
        with self._failure(chunks):
            chunks.append(self._collect())
        return self._at.failure is None

    @contextmanager
    def _failure(self, chunks: list[EditedChunk]) -> Iterator[None]:
        try:
            with self._device_calls():
                yield
        except LiveEditError as error:
            self._at.failure = error
            if not chunks:
                raise

    @contextmanager
    def _device_calls(self) -> Iterator[None]:
        """A device error ends the editor: everything is freed, and every later call repeats it."""
        try:
            yield
        except DeviceError as error:
            self._lost = error
            with suppress(LiveEditError):  # what else fails follows from the first error
                self.close()
            raise

    @property
    def _depth(self) -> int:
        """Chunks on their way at a time."""
        assert self._backend is not None
        return 1 if self._on_frames else self._backend.depth

    # One chunk

    def _submit(self) -> Submitted:
        """Denoise, decode, run the clean pass. The source latent is already encoded."""
        assert self._backend is not None
        index, first_frame = self._denoiser.chunk, self._at.num_due
        sizes = self._codec.decoded_frames(self._num_frames)
        out = self._backend.output(sum(sizes))
        due = np.diff(np.minimum(np.cumsum([0, *sizes]), self._at.num_in - first_frame)).tolist()
        chunk = Submitted(
            index=index,
            first_frame=first_frame,
            sizes=tuple(due),
            everything=False,
            out=out,
            owners=tuple(self._owners),
        )

        def decode(latent: str) -> None:
            self._codec.decode(latent, self._num_frames, out)
            if self._on_frames and self._backend is not None and self._backend.immediate:
                self._hand_out(chunk)

        try:
            with self._tracer.range("chunk", index=index):
                everything = self._denoiser.submit(out, decode)
            if self._on_frames and not self._backend.immediate:
                self._hand_out(chunk)
        except BaseException:
            with suppress(LiveEditError):  # which would only follow from the first error
                out.release()
            raise
        self._at.num_due += sum(due)
        self._owners.clear()
        return replace(chunk, everything=everything)

    def _hand_out(self, chunk: Submitted) -> None:
        """Give `on_frames` what shows each latent, as soon as it is there."""
        assert self._on_frames is not None
        recovered, start = self._recovered(chunk), 0
        for size in chunk.sizes:
            if size:
                self._on_frames(
                    chunk.first_frame + start, self._frames(chunk, recovered, start, start + size)
                )
            start += size

    def _collect(self) -> EditedChunk:
        """The oldest chunk on its way. It stays the oldest if this fails."""
        chunk = self._submitted[0]
        recovered = self._recovered(chunk)
        results = chunk.out.results()
        kept = self._denoiser.choice.full.kept if chunk.everything else self._kept
        self._denoiser.collected(chunk.out, int(results["counts"][1]))
        if self._denoiser.choice.pruned_passes:
            self._kept = results["kept"].astype(np.bool_).reshape(kept.shape)
        importance, peak = results["importance"].copy(), float(results["peak"][0])
        with self._tracer.range("collect", index=chunk.index):
            frames = self._frames(chunk, recovered, 0, sum(chunk.sizes))
        self._submitted.popleft().out.release()
        self._at.num_out += len(frames)
        return EditedChunk(
            index=chunk.index,
            first_frame=chunk.first_frame,
            frames=frames,
            latent_rows=np.repeat(np.arange(self._num_frames), chunk.sizes),
            importance=importance,
            peak_change=peak,
            kept=kept.copy(),
            num_kept=int(kept.sum()),
            recovered=recovered,
        )

    def _recovered(self, chunk: Submitted) -> Literal["last-good", "passthrough"] | None:
        """How the chunk's x0 was replaced, if it was not finite.

        Raises:
            StreamError: it was not, and was not replaced.
        """
        outcome = int(chunk.out.results()["outcome"][0])
        if outcome == 0:
            return None
        policy = OUTCOMES[outcome - 1]
        if policy == "stop":
            raise StreamError(
                f"chunk {chunk.index} (from frame {chunk.first_frame}) came out not "
                "finite; the frames before it are good. Reset the stream, or open it with "
                "on_non_finite 'last-good' or 'passthrough'."
            )
        return policy

    def _frames(self, chunk: Submitted, recovered: str | None, start: int, stop: int) -> Frames:
        if recovered == "passthrough":
            numbers = np.arange(chunk.first_frame + start, chunk.first_frame + stop)
            return self._source.show(numbers)
        return cast(Frames, chunk.out.frames(start, stop))

    def _feed(self, frame: Frame) -> bool:
        """Add one frame; encode a full group. True when the chunk's source latent is complete."""
        if isinstance(frame, ForeignFrames):
            self._owners.append(frame.owner)
        self._source.add(frame)
        if self._source.num_grouped < self._codec.group_frames:
            return False
        row = self._at.num_encoded
        self._at.num_encoded = (row + 1) % self._num_frames
        self._codec.encode(self._source.take_group(), row, last=self._at.num_encoded == 0)
        return self._at.num_encoded == 0

    # What a caller can get wrong

    def _ready_to_push(self, frames: Frames) -> Frames | ForeignFrames:
        self._check_open()
        assert self._backend is not None
        taken = take_frames(frames, self._layout.shape, self._backend.intake)
        if not self._has_prompt:
            raise UsageError("no prompt yet; call set_prompt before push")
        if self._at.flushed:
            raise UsageError("the stream was flushed; call reset to start another")
        return taken

    def _check_open(self, *, failed_too: bool = False) -> None:
        if self._lost is not None:
            raise self._lost
        if self._backend is None:
            raise UsageError("the editor is closed; open the bundle again")
        if self._at.failure is not None and not failed_too:
            raise self._at.failure
