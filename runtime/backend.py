"""The thin line that every engine lies behind: named persistent buffers, and graphs bound to them.

A backend allocates and loads before `start`. Afterwards a stream only writes small host arrays,
runs engines and copies rows between buffers; no address changes and nothing is allocated.

Work is queued on three stages, `encode`, `dit` and `decode`. Within a stage it runs in the order of
the calls; between stages only `record` and `wait` order it. A backend without queues does
everything at once, which is one of the orders allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from liveedit.bundle import DType, GraphSpec
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import TokenChoice
from liveedit.runtime.pixel_format import FrameLayout
from liveedit.runtime.rope import RotaryTable

if TYPE_CHECKING:
    from liveedit.runtime.device_frames import ForeignFrames, Intake, LentFrames

Array = npt.NDArray[Any]
Frames = npt.NDArray[np.uint8]
Binding = Mapping[str, str]  # tensor name of a graph -> buffer name
Stage = Literal["encode", "dit", "decode"]
Region = Literal["state", "result"]  # `result`: small values that every chunk hands back together
OnNonFinite = Literal["stop", "last-good", "passthrough"]
OUTCOMES: tuple[OnNonFinite, ...] = ("stop", "last-good", "passthrough")  # outcome 1, 2, 3

# Places in a stream's control numbers, int64 [8]. The host writes the first two at its start.
NEXT_CHUNK, SEED, CHUNK, FIRST_FRAME, WRITE_INDEX, COPY_SOURCE, COPY_TARGET, COPY_COUNT = range(8)

WARM_UP_RUNS = 2  # of a body: a backend that captures does so at the second one

KEEP_DIMENSION = "num_keep"  # the one dynamic dimension of a bundle


class Engine(Protocol):
    """One graph whose tensors are bound to buffers once."""

    def run(self, *, side: int = 0, num_keep: int | None = None) -> None:
        """Run with the binding number ``side``; ``num_keep`` rows of the dynamic input count."""

    def rows(self, num_keep: int) -> int:
        """The smallest size at least ``num_keep`` that the dynamic dimension can have."""


class ChunkOutput(Protocol):
    """Where one chunk arrives on the host. Belongs to the caller until `release`."""

    def ready(self) -> bool:
        """Whether everything asked for has arrived: nothing below would wait."""

    def results(self) -> Mapping[str, Array]:
        """The `result` region as `fetch_results` found it; waits for it. Not to be kept."""

    def frames(self, start: int, stop: int) -> Frames | LentFrames:
        """Frames ``start`` to ``stop`` of those that `fetch_frames` put here; waits for them.

        The caller's to keep, also after `release`. On the device, if the backend leaves them there.
        """

    def release(self) -> None:
        """Hand the place back for another chunk. Waits for what still arrives."""


class Backend(Protocol):
    """Buffers and engines of one stream. What follows `start` is on the hot path."""

    name: str
    depth: int  # 1 or 2: chunks that may be queued before the first of them must be collected
    immediate: bool  # everything is done when its call returns
    intake: Intake | None  # for frames in a device's memory; None takes those of the host only

    def alloc(
        self, buffer: str, dtype: DType, shape: tuple[int, ...], region: Region = "state"
    ) -> None:
        """Make a zero-filled buffer that keeps its address until `close`. Before `start`."""

    def load(self, graph: str, spec: GraphSpec, path: Path, bindings: Sequence[Binding]) -> Engine:
        """Load a graph and bind every tensor of it, once per entry of ``bindings``.

        An output may share an input's buffer if the graph reads that input nowhere but in the
        operator that makes the output; then the buffer is updated in place.

        Raises:
            BackendError: this backend cannot run the graph.
        """

    def start(self) -> None:
        """Everything was allocated and loaded. Buffers can be written from now on.

        Raises:
            BackendError: it does not fit; by how many bytes.
        """

    def frame_ring(self, count: int, layout: FrameLayout) -> Frames:
        """uint8 [count, *layout.shape], where the frames of `write_frames` must lie.

        Every frame in and out is of this layout. Before `start`.
        """

    def output(self, num_frames: int) -> ChunkOutput:
        """A place for a chunk of at most ``num_frames`` frames."""

    def stage(self, stage: Stage) -> AbstractContextManager[None]:
        """What is called inside goes to this stage."""

    def record(self, event: str) -> None:
        """``event`` happens once everything queued on this stage so far is done."""

    def wait(self, event: str) -> None:
        """What follows on this stage waits for the last `record` of ``event``, if there was one."""

    def replay(self, key: Hashable, body: Callable[[], None]) -> None:
        """Do ``body``; a backend may do it again, by what it saw, whenever ``key`` comes back.

        ``body`` queues the same calls every time, on one stage; whatever changes from chunk to
        chunk it finds in buffers.
        """

    def write(self, buffer: str, value: npt.ArrayLike) -> None:
        """Host to buffer: a scalar for all of it, or an array for its first rows.

        Not on the hot path: it may wait.
        """

    def read(self, buffer: str) -> Array:
        """Buffer to host, read only, valid until the next run. Waits. Not on the hot path."""

    def stage_frame(self, index: int, frame: ForeignFrames, keep: Frames | None) -> ForeignFrames:
        """Take one frame on the device as number ``index`` of the next `write_frames`.

        Ordered after what its owner has queued on it, and, where the frame has a stream, before
        what the owner queues there next. ``keep``: a frame of the ring that also gets it.

        Returns:
            Where the frame lies from now on, until another one is staged in its place.
        """

    def write_frames(
        self, buffer: str, frames: Frames, staged: Collection[int] = frozenset()
    ) -> None:
        """Frames of the frame ring to real [1, 3, n, H, W]; those of number ``staged`` as staged.

        ``frames`` must stay as they are until the chunk they belong to was collected.
        """

    def fetch_frames(self, buffer: str, skip: int, out: ChunkOutput, start: int) -> None:
        """The reverse, rounded to nearest and clamped: all but ``skip`` frames, to ``start``.."""

    def fetch_results(self, out: ChunkOutput) -> None:
        """The `result` region as it is at this point of the stage."""

    def begin_chunk(self, kv: KVCache, buffers: Mapping[str, str]) -> None:
        """Set what depends on the chunk's number, from ``control``, and count it up.

        ``buffers`` names: ``control`` int64 [8]; ``counts`` int32 [2] of `choose_tokens`; written:
        ``write_index`` int64 [1], ``kv_full`` and ``kv_pruned`` int32 [1] (valid rows in a pass
        over all or over the kept tokens), ``flag`` int32 [1] (cleared).
        """

    def write_noise(self, buffer: str, *, control: str, draw: int) -> None:
        """Fill with the normals of `liveedit.runtime.noise.normal` for the chunk of ``control``."""

    def rotary(self, control: str, table: RotaryTable, frequency: str, cos: str, sin: str) -> None:
        """Turn the temporal columns of the tables to the first frame of ``control``.

        ``frequency``: int64 [pairs], the bits of ``table.frequency``.
        """

    def copy(self, src: str, dst: str, *, src_row: int, dst_row: int, count: int) -> None:
        """Copy rows of axis 2 ([1, heads, rows, head_dim], [1, channels, frames, h, w]).

        Source and destination rows do not overlap.
        """

    def copy_all(self, src: str, dst: str) -> None:
        """Copy a whole buffer to one of the same shape and type."""

    def write_addresses(self, table: str, buffers: Sequence[str]) -> None:
        """Where the buffers lie, to int64 [len(buffers)], for `commit`. Not on the hot path."""

    def commit(self, buffers: Sequence[str], table: str, control: str, most_rows: int) -> None:
        """The copy of rows of axis 2 that ``control`` states, in each of ``buffers``.

        The buffers are of one shape and type; ``table`` holds their addresses. At most
        ``most_rows`` rows are copied; no overlap.
        """

    def guard(self, policy: OnNonFinite, buffers: Mapping[str, str]) -> None:
        """Replace a latent with a value that is not finite, as ``policy`` says.

        ``buffers`` names: ``latent``, ``last_good`` and ``source`` of one shape; ``flag`` and
        ``has_good`` int32 [1]; ``outcome`` int32 [1], written: 0, or 1 + the policy's place in
        `OUTCOMES`.
        """

    def choose_tokens(self, choice: TokenChoice, buffers: Mapping[str, str]) -> None:
        """The next chunk's tokens from this chunk's latents, as ``choice`` does on the host.

        ``buffers`` names: ``edited`` and ``source`` real [1, C, F, h, w]; ``outcome`` int32 [1]: if
        it is not 0 every token is kept, unless the policy has a budget; written: ``importance``
        float32 [F, h, w] in [0, 1], ``peak`` float32 [1], ``keep_index`` and ``token_row`` int32
        [L], ``kept`` uint8 [L], ``counts`` int32 [2], tokens selected and tokens kept.
        """

    def synchronize(self) -> None:
        """Wait for everything queued. Not on the hot path."""

    def zero(self, buffer: str) -> None:
        """Fill with zeros."""

    def close(self) -> None:
        """Free everything. A second call does nothing."""
