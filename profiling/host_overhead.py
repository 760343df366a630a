"""What the host costs: the same loop without an engine, counted and timed.

Times are of the thread's own processor time: a busy machine does not change them.
Twice: on the null backend, where the host also chooses the tokens, and as the device runtime drives
a device that only counts. Frames are already where the runtime takes them from.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from liveedit.bundle import Manifest, read_manifest
from liveedit.config import to_dict
from liveedit.profiling.accounting import video_frames_per_chunk
from liveedit.profiling.prompting import give_prompt
from liveedit.profiling.records import (
    Figure,
    Record,
    distribution,
    new_record,
    single,
    write_record,
)
from liveedit.runtime.device_backend import DeviceBackend
from liveedit.runtime.device_engine import NullLoader
from liveedit.runtime.graphs import choose_precision
from liveedit.runtime.host_device import HostDevice
from liveedit.runtime.mask_cache import MaskCachePolicy, TokenChoice
from liveedit.runtime.null_backend import NullBackend
from liveedit.runtime.stream import StreamEditor

WAITS = ("sync", "alloc", "alloc pinned", "capture", "streams", "events")


@dataclass(frozen=True, kw_only=True)
class HostOverhead:
    """Host time per chunk, mask building apart, and what the backend was asked for per chunk."""

    loop_ms: Figure
    mask_ms: Figure
    device_ms: Figure  # of the device runtime
    calls: dict[str, int]
    constant: bool  # every chunk made the same calls
    allocations: int  # after the first chunk
    device_calls: dict[str, int]  # of one chunk on the device that only counts
    device_waits: int  # blocking calls and allocations there, after the warm-up


def measure(
    bundle: Path, policy: MaskCachePolicy, *, precision: str | None = None, chunks: int = 60
) -> HostOverhead:
    """Run ``chunks`` steady-state chunks without an engine, on each."""
    manifest = read_manifest(bundle)
    name = choose_precision(bundle, manifest, precision)
    backend = _TimedChoice()
    loop, mask, calls = [], [], []
    with StreamEditor(bundle, manifest, backend, precision=name, mask_cache=policy) as editor:
        give_prompt(editor, "a", name)
        per_chunk, warmup = _stream(manifest)
        for i in range(warmup + chunks):
            before = Counter(backend.counts)
            backend.spent_ns = 0
            total = _push_chunk(editor, per_chunk)
            if i < warmup:
                continue
            building = backend.spent_ns / 1e6
            loop.append(total - building)
            mask.append(building)
            calls.append(dict(Counter(backend.counts) - before))
    device_ms, device_calls = _device(bundle, manifest, name, policy, chunks)
    return HostOverhead(
        loop_ms=distribution(loop, "ms", "lower"),
        mask_ms=distribution(mask, "ms", "lower"),
        device_ms=distribution(device_ms, "ms", "lower"),
        calls=calls[-1],
        constant=all(c == calls[0] for c in calls),
        allocations=sum(c.get("alloc", 0) for c in calls),
        device_calls=device_calls[-1],
        device_waits=sum(c.get(w, 0) for c in device_calls for w in WAITS),
    )


class _TimedChoice(NullBackend):
    """The null backend, and what choosing tokens took."""

    spent_ns = 0

    def choose_tokens(self, choice: TokenChoice, buffers: Mapping[str, str]) -> None:
        start = time.thread_time_ns()
        super().choose_tokens(choice, buffers)
        self.spent_ns += time.thread_time_ns() - start


def _stream(manifest: Manifest) -> tuple[int, int]:
    """Frames per chunk, and chunks until nothing changes any more."""
    stream = manifest.stream
    return (
        video_frames_per_chunk(stream),
        stream.local_attn_size // stream.num_frame_per_block + 2,
    )


def _push_chunk(editor: StreamEditor, count: int) -> float:
    """Push so many frames, from where the runtime takes them. Returns ms in the editor."""
    spent = 0
    while count:
        room = editor.frame_room(count)
        count -= len(room)
        start = time.thread_time_ns()
        editor.push(room)
        spent += time.thread_time_ns() - start
    return spent / 1e6


def _device(
    bundle: Path, manifest: Manifest, precision: str, policy: MaskCachePolicy, chunks: int
) -> tuple[list[float], list[dict[str, int]]]:
    """Times in ms and the device's calls, per chunk.

    A device that only counts chooses no tokens, so their number is fixed.
    """
    device = HostDevice(None)
    budget = max(1, int(manifest.stream.block_seq_length * policy.keep_ratio))
    if policy.mode != "off":
        policy = replace(policy, token_budget=policy.token_budget or budget)
    backend = DeviceBackend(device, NullLoader())
    times, calls = [], []
    with StreamEditor(bundle, manifest, backend, precision=precision, mask_cache=policy) as editor:
        give_prompt(editor, "a", precision)
        per_chunk, warmup = _stream(manifest)
        for i in range(warmup + chunks):
            before = Counter(device.counts)
            ms = _push_chunk(editor, per_chunk)
            if i >= warmup:
                times.append(ms)
                calls.append(dict(Counter(device.counts) - before))
    return times, calls


def figures(host: HostOverhead) -> dict[str, Figure]:
    """Under the names that every record has them by."""
    return {
        "host.loop_ms": host.loop_ms,
        "host.mask_ms": host.mask_ms,
        "host.device_ms": host.device_ms,
        "host.device_waits": single(host.device_waits, "call", "lower"),
        "host.syncs_per_chunk": single(host.calls.get("sync", 0), "call", "lower"),
        "host.allocations": single(host.allocations, "call", "lower"),
    }


def to_record(manifest: Manifest, host: HostOverhead, command: str) -> Record:
    """The overhead as a record."""
    stream = manifest.stream
    return new_record(
        "host",
        f"{manifest.model.name}-{stream.height_px}x{stream.width_px}",
        command,
        {
            "model": manifest.model.name,
            "codec": manifest.model.codec,
            "stream": to_dict(stream),
            "included": "one chunk of StreamEditor.push; no engine, frames in place",
        },
        {
            "loop_ms": host.loop_ms,
            "mask_ms": host.mask_ms,
            "device_ms": host.device_ms,
            "device_waits": single(host.device_waits, "call", "lower"),
        },
        notes=(
            "processor time of the thread",
            *(f"bundle {k}: {v}" for k, v in sorted(manifest.notes.items())),
        ),
    )


def main(argv: list[str] | None = None) -> int:
    """``python -m liveedit.profiling.host_overhead BUNDLE OUT.json``: the graphs are not read."""
    bundle, out = map(Path, argv if argv is not None else sys.argv[1:])
    manifest = read_manifest(bundle)
    host = measure(bundle, MaskCachePolicy(), precision=min(manifest.graphs))
    command = f"python -m liveedit.profiling.host_overhead {bundle.name} {out.name}"
    write_record(out, to_record(manifest, host, command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
