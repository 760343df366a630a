"""One chunk of latents: noise to x0, then its keys, values and mask for the chunks after it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from liveedit.bundle import Manifest
from liveedit.runtime.backend import (
    NEXT_CHUNK,
    SEED,
    WARM_UP_RUNS,
    Backend,
    ChunkOutput,
    OnNonFinite,
)
from liveedit.runtime.graphs import BundleGraphs
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import MaskCachePolicy, TokenChoice
from liveedit.runtime.rope import RotaryTable
from liveedit.runtime.tracing import Tracer
from liveedit.schedule import CLEAN_STEP, denoising_steps

# What a pass reads of its own: (in a pass over all tokens, in a pass over the kept ones).
_TOKENS = {
    "keep_index": ("keep_all", "keep_index"),
    "token_row": ("row_all", "token_row"),
    "kv_length": ("kv_full", "kv_pruned"),
}
_SCALARS = ("timestep", "sigma", "sigma_next")


class Denoiser:
    """The DiT over one stream of latents. Takes `encoded`, leaves x0 in `edited.0` or `edited.1`.

    A chunk is two bodies of calls, which a backend may capture: `_denoise` up to x0 and the next
    chunk's tokens, and `_finish`, which only later chunks need. What changes from chunk to chunk
    is in buffers; the number of tokens that a pruned pass computes is the one thing the host must
    know, and it chooses between captured bodies by it.
    """

    def __init__(
        self,
        manifest: Manifest,
        graphs: BundleGraphs,
        backend: Backend,
        *,
        mask_cache: MaskCachePolicy,
        seed: int,
        on_non_finite: OnNonFinite,
        tracer: Tracer,
    ) -> None:
        """Allocates and loads; `start` comes after the backend's."""
        stream = manifest.stream
        self._backend = backend
        self._seed = seed
        self._policy: OnNonFinite = on_non_finite
        self._tracer = tracer
        self._tokens = stream.block_seq_length
        self._steps = (*denoising_steps(stream), CLEAN_STEP)
        self._kv = KVCache.for_stream(stream)
        self._choice = TokenChoice(stream, mask_cache, len(self._steps) - 1)
        self._rope = RotaryTable(
            head_dim=manifest.model.dit.head_dim,
            num_frames=stream.num_frame_per_block,
            height=stream.latent_height // 2,
            width=stream.latent_width // 2,
        )
        self._alloc(graphs, (stream.num_frame_per_block, stream.latent_height, stream.latent_width))
        self._dit_step = graphs.load(
            "dit_step", [self._binding(i) for i in range(len(self._steps))]
        )
        for name in ("encoded", "edited.0", "edited.1", "last_good"):
            graphs.alloc(name, *graphs.buffers["noisy"])
        self._kv_buffers = [b for b in graphs.buffers if b.startswith(("k_cache_", "v_cache_"))]
        graphs.alloc("kv_table", "int64", (len(self._kv_buffers),))
        self._state = [*self._kv_buffers, *(b for b in graphs.buffers if b.startswith("attn_"))]
        self._keep_everything = True
        self._previous: ChunkOutput | None = None
        self._num_next = 0

    def _alloc(self, graphs: BundleGraphs, latent: tuple[int, int, int]) -> None:
        for name in ("keep_all", "row_all", "keep_index", "token_row"):
            graphs.alloc(name, "int32", (self._tokens,))
        graphs.alloc("control", "int64", (8,))
        graphs.alloc("rope_frequency", "int64", self._rope.frequency.shape)
        graphs.alloc("count_all", "int32", (2,))
        for name in ("kv_full", "kv_pruned", "flag", "has_good"):
            graphs.alloc(name, "int32", (1,))
        graphs.alloc("importance", "float32", latent, "result")
        graphs.alloc("peak", "float32", (1,), "result")
        graphs.alloc("kept", "uint8", (self._tokens,), "result")
        graphs.alloc("counts", "int32", (2,), "result")
        graphs.alloc("outcome", "int32", (1,), "result")

    def _binding(self, number: int) -> dict[str, str]:
        """Where pass ``number`` finds what is not the same in every pass."""
        pruned = number in self._choice.pruned_passes
        return {n: f"{n}.{number}" for n in _SCALARS} | {n: b[pruned] for n, b in _TOKENS.items()}

    @property
    def chunk(self) -> int:
        """Number of the chunk that is submitted next."""
        return self._kv.chunk

    @property
    def choice(self) -> TokenChoice:
        return self._choice

    def start(self) -> None:
        """Fill the buffers that never change."""
        backend = self._backend
        for number, step in enumerate(self._steps):
            for name in _SCALARS:
                backend.write(f"{name}.{number}", getattr(step, name))
        backend.write("keep_all", self._choice.full.keep_index)
        backend.write("row_all", self._choice.full.token_row)
        backend.write("count_all", self._tokens)
        backend.write("rope_frequency", self._rope.frequency.view(np.int64))
        backend.write_addresses("kv_table", self._kv_buffers)
        backend.write("rope_cos", self._rope.cos)
        backend.write("rope_sin", self._rope.sin)
        self._start_stream()

    def warm_up(self) -> None:
        """Before the first chunk: captured for every number of tokens that the policy can choose.

        Only where the backend captures: elsewhere it runs passes for nothing. Waits.
        """
        backend, counts = self._backend, self._choice.sizes()
        if not self._choice.pruned_passes:
            counts = counts[-1:]
        with backend.stage("dit"):
            for rows in sorted({self._dit_step.rows(count) for count in counts}):
                # No row past those that are there, whatever the run before it has chosen.
                row = np.arange(self._tokens, dtype=np.int32)
                for _ in range(WARM_UP_RUNS):
                    backend.write("keep_index", row)
                    backend.write("token_row", np.where(row < rows, row, -1))
                    backend.write("counts", np.array([rows, rows], dtype=np.int32))
                    backend.replay(("denoise", rows), partial(self._denoise, rows))
            for _ in range(WARM_UP_RUNS):
                backend.replay("finish", self._finish)
        self.reset()
        backend.synchronize()

    def reset(self) -> None:
        """Chunk 0, nothing remembered. Every chunk submitted was collected."""
        with self._backend.stage("dit"):
            for buffer in self._state:
                self._backend.zero(buffer)
        self._kv.reset()
        self._start_stream()

    def _start_stream(self) -> None:
        control = np.zeros(8, dtype=np.uint64)
        control[NEXT_CHUNK], control[SEED] = 0, self._seed & (2**64 - 1)
        with self._backend.stage("dit"):
            self._backend.write("control", control.view(np.int64))
            self._backend.write("has_good", 0)
        self._keep_everything = True
        self._previous = None

    def forget_mask(self) -> None:
        """Compute every token of the next chunk."""
        self._keep_everything = True

    def submit(self, out: ChunkOutput, decode: Callable[[str], None]) -> bool:
        """Queue the chunk in `encoded`; its results will be in ``out``.

        Args:
            decode: called with the name of the buffer of x0, as soon as that is queued.

        Returns:
            Whether every token is computed, whatever the preceding chunk has chosen.
        """
        backend, index = self._backend, self._kv.chunk
        everything, self._keep_everything = self._keep_everything, False
        edited = f"edited.{index % 2}"
        rows = self._dit_step.rows(self._num_keep(everything))
        with backend.stage("dit"):
            if everything:
                # Also what the captured bodies find when no pass is pruned.
                backend.copy_all("keep_all", "keep_index")
                backend.copy_all("row_all", "token_row")
                backend.copy_all("count_all", "counts")
            backend.wait("encoded")
            backend.copy_all("encoded", "source")
            backend.record("source taken")
            backend.replay(("denoise", rows), partial(self._denoise, rows))
            # The chunk that had this buffer before was collected: a backend's depth is at most 2.
            backend.copy_all("noisy", edited)
            backend.record(edited)
            backend.fetch_results(out)
        decode(edited)
        with backend.stage("dit"):
            backend.replay("finish", self._finish)
        self._previous = out
        self._kv.commit()
        return everything

    def collected(self, out: ChunkOutput, num_next: int) -> None:
        """A chunk was collected; it chose ``num_next`` tokens for the one after it."""
        if out is self._previous:
            self._previous, self._num_next = None, num_next

    def _num_keep(self, everything: bool) -> int:
        """Tokens that the next chunk's pruned passes compute.

        Where that follows from the content, it waits for the preceding chunk to have chosen: its
        clean pass still runs meanwhile.
        """
        if everything or not self._choice.pruned_passes:
            return self._tokens
        if self._choice.policy.token_budget is not None:
            return self._choice.policy.token_budget
        if self._previous is not None:
            return int(self._previous.results()["counts"][1])
        return self._num_next

    # What a backend may capture

    def _denoise(self, rows: int) -> None:
        """Every denoising pass, the guard over x0, and the next chunk's tokens."""
        backend = self._backend
        written = _same("write_index", "kv_full", "kv_pruned", "flag")
        backend.begin_chunk(self._kv, written | _same("control", "counts"))
        backend.rotary("control", self._rope, "rope_frequency", "rope_cos", "rope_sin")
        self._noise("noisy", draw=0)
        for number, step in enumerate(self._steps[:-1]):
            if step.sigma_next:
                self._noise("noise", draw=number + 1)
            self._pass(number, rows)
            # After the last pass this is x0 itself, since its sigma_next is 0.
            backend.copy_all("next_latent", "noisy")
        with self._tracer.range("mask"):
            latents = {"latent": "noisy", "edited": "noisy"}
            backend.guard(
                self._policy,
                latents | _same("last_good", "source", "flag", "has_good", "outcome"),
            )
            chosen = _same("keep_index", "token_row", "kept", "counts", "importance", "peak")
            backend.choose_tokens(self._choice, latents | chosen | _same("source", "outcome"))

    def _finish(self) -> None:
        """The clean pass on x0 and the commit of its keys and values."""
        self._pass(len(self._steps) - 1, self._tokens)
        with self._tracer.range("commit"):
            self._backend.commit(self._kv_buffers, "kv_table", "control", self._tokens)

    def _pass(self, number: int, rows: int) -> None:
        """One run of the DiT over the current chunk."""
        kind = "pruned" if number in self._choice.pruned_passes and rows < self._tokens else "full"
        kept = rows if kind == "pruned" else self._tokens
        if number == len(self._steps) - 1:
            kind = "clean"
        kv = self._kv.kv_length(kept)
        with self._tracer.range("pass", kind=kind, step=number, kept=kept, kv=kv):
            self._dit_step.run(side=number, num_keep=kept)

    def _noise(self, buffer: str, *, draw: int) -> None:
        with self._tracer.range("noise"):
            self._backend.write_noise(buffer, control="control", draw=draw)


def _same(*names: str) -> dict[str, str]:
    return {n: n for n in names}
