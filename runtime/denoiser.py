"""One chunk of latents: noise to x0, then its keys, values and mask for the chunks after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liveedit.bundle import Manifest
from liveedit.runtime.backend import Backend
from liveedit.runtime.graphs import BundleGraphs
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import KeepSet, MaskCache, MaskCachePolicy
from liveedit.runtime.rope import RotaryTable
from liveedit.runtime.tracing import Tracer
from liveedit.schedule import CLEAN_STEP, DenoisingStep, denoising_steps


@dataclass(frozen=True, kw_only=True)
class ChunkMask:
    """What a finished chunk computed and changed. New memory."""

    kept: npt.NDArray[np.bool_]  # [F, h/2, w/2]: tokens that its pruned passes computed
    num_kept: int
    importance: npt.NDArray[np.float32]  # [F, h, w] in [0, 1]
    peak_change: float


class Denoiser:
    """The DiT over one stream of latents. Reads `source`, leaves x0 in `noisy`."""

    def __init__(
        self,
        manifest: Manifest,
        graphs: BundleGraphs,
        backend: Backend,
        *,
        mask_cache: MaskCachePolicy,
        seed: int,
        tracer: Tracer,
    ) -> None:
        stream = manifest.stream
        self._backend = backend
        self._seed = seed
        self._tracer = tracer
        self._num_frames = stream.num_frame_per_block
        self._steps = denoising_steps(stream)
        self._kv = KVCache.for_stream(stream)
        self._mask = MaskCache(stream, mask_cache, len(self._steps))
        self._rope = RotaryTable(
            head_dim=manifest.model.dit.head_dim,
            num_frames=stream.num_frame_per_block,
            height=stream.latent_height // 2,
            width=stream.latent_width // 2,
        )
        self._dit_step = graphs.load("dit_step")
        graphs.alloc("last_good", *graphs.buffers["noisy"])
        self._kv_buffers = [b for b in graphs.buffers if b.startswith(("k_cache_", "v_cache_"))]
        self._state = [*self._kv_buffers, *(b for b in graphs.buffers if b.startswith("attn_"))]
        self._bound_keep: KeepSet | None = None
        self._has_good = False

    @property
    def chunk(self) -> int:
        """Number of the chunk that is denoised next."""
        return self._kv.chunk

    def reset(self) -> None:
        """Chunk 0, nothing remembered."""
        for buffer in self._state:
            self._backend.zero(buffer)
        self._kv.reset()
        self._mask.reset()
        self._bound_keep = None
        self._has_good = False

    def forget_mask(self) -> None:
        """Compute every token of the next chunk."""
        self._mask.reset()

    def denoise(self) -> None:
        """Every denoising pass of the current chunk."""
        chunk, backend = self._kv.chunk, self._backend
        self._rope.move_to(chunk * self._num_frames)
        backend.write("rope_cos", self._rope.cos)
        backend.write("rope_sin", self._rope.sin)
        backend.write("write_index", self._kv.write_index)
        self._noise("noisy", draw=0)
        for number, step in enumerate(self._steps):
            if step.sigma_next:
                self._noise("noise", draw=number + 1)
            self._pass(step, self._mask.for_pass(number), number)
            # After the last pass this is x0 itself, since its sigma_next is 0.
            self._copy("next_latent", "noisy")

    def is_finite(self) -> bool:
        """Whether x0 is; if so it becomes the last good one."""
        if not np.isfinite(self._backend.read("noisy")).all():
            return False
        self._copy("noisy", "last_good")
        self._has_good = True
        return True

    def replace(self, *, repeat: bool) -> None:
        """Put the last good x0 in place of this one, or, without ``repeat``, the source."""
        self._copy("last_good" if repeat and self._has_good else "source", "noisy")

    def finish(self) -> ChunkMask:
        """The clean pass on x0, the commit of its keys and values, the next chunk's mask."""
        kept, num_kept = self._mask.pruned.kept.copy(), self._mask.pruned.num_kept
        self._pass(CLEAN_STEP, self._mask.full, number=len(self._steps))
        with self._tracer.range("commit"):
            if copy := self._kv.commit():
                for kv in self._kv_buffers:
                    self._backend.copy(kv, kv, src_row=copy.src, dst_row=copy.dst, count=copy.count)
        with self._tracer.range("mask"):
            importance = self._mask.update(
                self._backend.read("noisy"), self._backend.read("source")
            )
        return ChunkMask(
            kept=kept, num_kept=num_kept, importance=importance, peak_change=self._mask.peak
        )

    def _pass(self, step: DenoisingStep, keep: KeepSet, number: int) -> None:
        """One run of the DiT over the current chunk."""
        backend, kv_length = self._backend, self._kv.kv_length(keep.num_kept)
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

    def _noise(self, buffer: str, *, draw: int) -> None:
        with self._tracer.range("noise"):
            self._backend.write_noise(buffer, seed=self._seed, chunk=self._kv.chunk, draw=draw)

    def _copy(self, src: str, dst: str) -> None:
        self._backend.copy(src, dst, src_row=0, dst_row=0, count=self._num_frames)
