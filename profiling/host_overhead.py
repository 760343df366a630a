"""What the host costs: the same loop on the null backend, which computes nothing and counts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import read_manifest
from liveedit.profiling.accounting import video_frames_per_chunk
from liveedit.profiling.frames import moving_square
from liveedit.profiling.prompting import give_prompt
from liveedit.profiling.records import Figure, distribution
from liveedit.profiling.stage_timer import StageTimer
from liveedit.runtime.graphs import choose_precision
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.null_backend import NullBackend
from liveedit.runtime.stream import StreamEditor


@dataclass(frozen=True, kw_only=True)
class HostOverhead:
    """Host time per chunk, mask building apart, and what the backend was asked for per chunk."""

    loop_ms: Figure
    mask_ms: Figure
    calls: dict[str, int]
    constant: bool  # every chunk made the same calls
    allocations: int  # after the first chunk


def measure(
    bundle: Path, policy: MaskCachePolicy, *, precision: str | None = None, chunks: int = 60
) -> HostOverhead:
    """Run ``chunks`` steady-state chunks without an engine."""
    manifest = read_manifest(bundle)
    stream = manifest.stream
    name = choose_precision(bundle, manifest, precision)
    backend = NullBackend()
    timer = StageTimer()
    per_chunk = video_frames_per_chunk(stream)
    frames = moving_square(per_chunk, stream.height_px, stream.width_px)
    warmup = stream.local_attn_size // stream.num_frame_per_block + 2
    loop, mask, calls = [], [], []
    with StreamEditor(
        bundle,
        manifest,
        backend,
        precision=name,
        mask_cache=policy,
        tracer=timer,
    ) as editor:
        give_prompt(editor, "a", name)
        for i in range(warmup + chunks):
            timer.take()
            before = Counter(backend.counts)
            start = time.perf_counter_ns()
            editor.push(frames)
            total = (time.perf_counter_ns() - start) / 1e6
            if i < warmup:
                continue
            building = sum(s.ms for s in timer.take() if s.name == "mask")
            loop.append(total - building)
            mask.append(building)
            calls.append(dict(Counter(backend.counts) - before))
    return HostOverhead(
        loop_ms=distribution(loop, "ms", "lower"),
        mask_ms=distribution(mask, "ms", "lower"),
        calls=calls[-1],
        constant=all(c == calls[0] for c in calls),
        allocations=sum(c.get("alloc", 0) for c in calls),
    )
