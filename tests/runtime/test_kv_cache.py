"""KV slots against a deque: what each chunk sees, for many windows, over hundreds of chunks."""

from __future__ import annotations

from collections import deque

import pytest

from liveedit.config import StreamConfig
from liveedit.runtime.kv_cache import KVCache, RowCopy

ROWS = 5


def visible_by_rule(chunk: int, window: int, sink: int) -> list[int]:
    """The release's window: the sink and the newest chunks that fill up the rest."""
    recent: deque[int] = deque(maxlen=window - sink)
    kept = []
    for c in range(chunk + 1):
        if c < sink:
            kept.append(c)
        else:
            recent.append(c)
    return [*kept, *recent]


@pytest.mark.parametrize(("window", "sink"), [(w, s) for w in (1, 2, 3, 4, 7) for s in range(w)])
def test_each_chunk_sees_the_sink_and_the_newest(window: int, sink: int) -> None:
    kv = KVCache(num_slots=window, num_sink_slots=sink, rows_per_slot=ROWS)
    rows: list[tuple[int, int] | None] = [None] * (window * ROWS)
    for chunk in range(300):
        for num_kept in (ROWS, 2, ROWS):  # full, pruned, clean
            start = kv.write_index
            for i in range(num_kept):
                rows[start + i] = (chunk, i)
            seen = rows[: kv.kv_length(num_kept)]
            current = [(chunk, i) for i in range(num_kept)]
            past = [(c, i) for c in visible_by_rule(chunk, window, sink) for i in range(ROWS)]
            assert sorted(r for r in seen if r) == sorted(
                [r for r in past if r[0] != chunk] + current
            )
            assert seen[start:] == current
        copy = kv.commit()
        if copy:
            rows[copy.dst : copy.dst + copy.count] = rows[copy.src : copy.src + copy.count]
            assert copy.dst + copy.count <= copy.src


def test_the_first_copy_is_made_by_the_chunk_that_fills_the_window() -> None:
    kv = KVCache(num_slots=4, num_sink_slots=1, rows_per_slot=10)
    copies = [kv.commit() for _ in range(6)]
    assert copies == [
        None,
        None,
        None,
        RowCopy(30, 10, 10),
        RowCopy(30, 20, 10),
        RowCopy(30, 10, 10),
    ]
    assert kv.write_index == 30
    kv.reset()
    assert (kv.chunk, kv.write_index, kv.kv_length(3)) == (0, 0, 3)


def test_sizes_come_from_the_stream() -> None:
    stream = StreamConfig(height_px=48, width_px=80, local_attn_size=12, sink_size=3)
    kv = KVCache.for_stream(stream)
    assert (kv.num_slots, kv.num_sink_slots, kv.rows_per_slot) == (4, 1, 45)
    assert kv.num_slots * kv.rows_per_slot == stream.kv_cache_length
