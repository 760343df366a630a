"""Where each chunk's keys and values live. Host integers only; it never rolls.

    [ sink | ring of past chunks | current ]      one slot holds one chunk

While the window fills, chunk c is written at slot c. From then on the current chunk is written in
the last slot, and after its clean pass copied over the oldest ring slot. The valid rows are always
a prefix, so one length bounds attention, also when a pruned pass writes fewer keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from liveedit.config import StreamConfig


@dataclass(frozen=True)
class RowCopy:
    """Copy ``count`` rows of every K and V buffer from row ``src`` to row ``dst``; no overlap."""

    src: int
    dst: int
    count: int


class KVCache:
    """Slot bookkeeping of one stream.

    ``chunk`` is the number of the chunk being edited. It grows without bound; rows do not.
    """

    def __init__(
        self, *, num_slots: int, num_sink_slots: int, rows_per_slot: int, num_frames: int = 1
    ) -> None:
        """``num_frames``: latent frames per chunk."""
        assert 0 <= num_sink_slots < num_slots, (num_sink_slots, num_slots)
        assert rows_per_slot > 0, rows_per_slot
        self.num_slots = num_slots
        self.num_sink_slots = num_sink_slots
        self.rows_per_slot = rows_per_slot
        self.num_frames = num_frames
        self.chunk = 0

    @classmethod
    def for_stream(cls, stream: StreamConfig) -> KVCache:
        block = stream.num_frame_per_block
        return cls(
            num_slots=stream.local_attn_size // block,
            num_sink_slots=stream.sink_size // block,
            rows_per_slot=stream.block_seq_length,
            num_frames=block,
        )

    @property
    def write_index(self) -> int:
        """First row of the current chunk, the same in all of its passes."""
        return self.first_row(self.chunk)

    def first_row(self, chunk: int) -> int:
        """Where chunk ``chunk`` is written."""
        return min(chunk, self.num_slots - 1) * self.rows_per_slot

    def kv_length(self, num_kept: int) -> int:
        """Valid rows in a pass that writes ``num_kept`` keys."""
        assert 0 < num_kept <= self.rows_per_slot, num_kept
        return self.write_index + num_kept

    def row_copy(self, chunk: int) -> RowCopy | None:
        """The copy to make after the clean pass of chunk ``chunk``, or None.

        While the window fills, the chunk is already where it stays; a window of sink and current
        chunk alone keeps nothing else.
        """
        ring = self.num_slots - 1 - self.num_sink_slots
        past_fill = chunk - (self.num_slots - 1)
        if past_fill < 0 or ring == 0:
            return None
        slot = self.num_sink_slots + past_fill % ring
        return RowCopy(
            src=self.first_row(chunk), dst=slot * self.rows_per_slot, count=self.rows_per_slot
        )

    def commit(self) -> RowCopy | None:
        """End the current chunk after its clean pass. The copy to make, or None."""
        copy = self.row_copy(self.chunk)
        self.chunk += 1
        return copy

    def reset(self) -> None:
        """Start a new stream: nothing written before is visible."""
        self.chunk = 0
