"""One configuration, measured: a stream runs past its warm-up and every chunk is timed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from liveedit.bundle import Manifest, read_manifest
from liveedit.config import MODELS, to_dict
from liveedit.errors import LiveEditError, UsageError
from liveedit.profiling import nvtx_ranges
from liveedit.profiling.accounting import (
    EIGHT_BIT,
    HALF,
    SINGLE,
    dit_pass,
    total_flops,
    video_frames_per_chunk,
)
from liveedit.profiling.codec_accounting import codec_layers, codec_work
from liveedit.profiling.frames import clip_frames, moving_square
from liveedit.profiling.memory import (
    device_free_bytes,
    release_free_memory,
    rss_bytes,
    status_bytes,
)
from liveedit.profiling.prompting import give_prompt
from liveedit.profiling.records import Figure, Record, distribution, new_record, single
from liveedit.profiling.stage_timer import Span, StageTimer, TeeTracer, stage_ms
from liveedit.runtime.backend import Frames
from liveedit.runtime.backends import GPU_BACKENDS, resolve
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.mask_cache import MaskCachePolicy, Mode
from liveedit.runtime.memory_budget import memory_budget
from liveedit.runtime.stream import EditedChunk, StreamEditor

_WIDTHS = {"fp32": SINGLE, "fp16": HALF}  # of the others, weights and inputs have eight bits


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to run. ``warmup`` None fills the attention window first."""

    bundle: Path
    backend: str = "onnxruntime"
    precision: str | None = None
    mask: Mode = "released"
    keep: float = 0.3
    token_budget: int | None = None  # of pruned passes; None: what the keep ratio makes
    chunks: int = 20
    warmup: int | None = None
    threads: int | None = None
    overlap: bool = True
    cuda_graphs: bool = True
    prewarm: bool = False  # on a GPU: capture everything when the editor is opened
    wait_stages: bool = False  # on a GPU: stage times are the device's; serial, nothing captured
    seed: int = 0
    prompt: str = "make it blue"
    video: Path | None = None

    def __post_init__(self) -> None:
        if self.chunks < 2:
            raise UsageError(f"chunks must be at least 2, got {self.chunks}")
        if self.warmup is not None and self.warmup < 1:
            raise UsageError(f"warmup must be at least 1 chunk, got {self.warmup}")

    @property
    def policy(self) -> MaskCachePolicy:
        return MaskCachePolicy(mode=self.mask, keep_ratio=self.keep, token_budget=self.token_budget)


@dataclass(frozen=True, kw_only=True)
class ChunkTime:
    """One steady-state chunk. ``ms`` runs from its frames' push to the edited frames."""

    ms: float
    submit_ms: float  # of them until everything was queued; where nothing queues, all the work
    stages: dict[str, float]
    frames: int
    kept_tokens: int  # in pruned passes; all of them where no pass is pruned
    flops: float  # of its passes, by the accounting
    bytes: float  # that they must move at least


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """A measured case."""

    case: Case
    manifest: Manifest
    precision: str
    chunks: tuple[ChunkTime, ...]
    open_ms: float
    prompt_ms: float
    first_chunk_ms: float
    first_chunk_frames: int  # frames that had to come in before the first ones came out
    warmup_ms: tuple[float, ...]  # of each chunk after the first, until the measured ones
    first_frames: Frames  # what the first chunk shows
    last_frames: Frames
    rss_before: int
    rss_open: int
    rss_steady: int
    peak: int
    device_bytes: int | None  # what the stream took of the GPU's memory
    spans: tuple[Span, ...] = field(default_factory=tuple)

    @property
    def label(self) -> str:
        c = self.case
        mask = "mask off" if c.mask == "off" else f"{c.mask} keep {c.keep:g}"
        budget = f" budget {c.token_budget}" if c.token_budget else ""
        return f"{self.manifest.model.name} {c.backend} {self.precision} {mask}{budget}"

    @property
    def tokens(self) -> int:
        return self.manifest.stream.block_seq_length

    @property
    def realised_keep(self) -> float:
        return float(np.mean([c.kept_tokens for c in self.chunks])) / self.tokens

    @property
    def fps(self) -> float:
        """End to end, from the median chunk."""
        return self.chunks[0].frames / float(np.median([c.ms for c in self.chunks])) * 1e3


def run_case(case: Case) -> CaseResult:
    """Open, warm up, measure.

    Raises:
        LiveEditError: the bundle or the backend cannot run.
    """
    manifest = read_manifest(case.bundle)
    backend, precision = resolve(case.bundle, manifest, case.backend, case.precision)
    case = replace(case, backend=backend)
    stream = manifest.stream
    per_chunk = video_frames_per_chunk(stream)
    source = _source(case, per_chunk * 8, manifest)
    timer = StageTimer()
    tracer = TeeTracer((timer, nvtx_ranges.tracer()))
    warmup = case.warmup or stream.local_attn_size // stream.num_frame_per_block + 1
    release_free_memory()
    rss_before = rss_bytes()
    free_before = device_free_bytes() if backend in GPU_BACKENDS else None
    start = time.perf_counter()
    editor = StreamEditor.open(
        case.bundle,
        backend=case.backend,
        precision=precision,
        mask_cache=case.policy,
        seed=case.seed,
        threads=case.threads,
        overlap=case.overlap and not case.wait_stages,
        cuda_graphs=case.cuda_graphs and not case.wait_stages,
        prewarm=case.prewarm,
        tracer=tracer,
    )
    with editor, tracer.range("stream", backend=case.backend):
        opened = time.perf_counter()
        timer.wait = editor.synchronize if case.wait_stages else None
        rss_open = rss_bytes()
        give_prompt(editor, case.prompt, precision)
        prompted = time.perf_counter()
        first_frames, pushed = _push_first(editor, source)
        first_ms = (time.perf_counter() - prompted) * 1e3
        warmup_ms = []
        for i in range(warmup - 1):
            _, ms = _push(editor, source, pushed + i * per_chunk, per_chunk)
            warmup_ms.append(ms)
        timer.take()
        rss_warm = rss_bytes()
        begin = pushed + (warmup - 1) * per_chunk
        chunks, spans = [], []
        with tracer.range(nvtx_ranges.STEADY):
            for i in range(case.chunks):
                edited, ms = _push(editor, source, begin + i * per_chunk, per_chunk)
                mine = timer.take()
                spans += mine
                chunks.append(_chunk_time(manifest, precision, case.policy, edited, ms, mine))
        rss_steady = rss_bytes()
        free_steady = device_free_bytes() if backend in GPU_BACKENDS else None
    return CaseResult(
        case=case,
        manifest=manifest,
        precision=precision,
        chunks=tuple(chunks),
        open_ms=(opened - start) * 1e3,
        prompt_ms=(prompted - opened) * 1e3,
        first_chunk_ms=first_ms,
        first_chunk_frames=pushed,
        warmup_ms=tuple(warmup_ms),
        first_frames=first_frames,
        last_frames=edited.frames.copy(),
        rss_before=rss_before,
        rss_open=rss_open,
        rss_steady=max(rss_warm, rss_steady),
        peak=status_bytes("VmHWM"),
        device_bytes=None if free_before is None else free_before - (free_steady or 0),
        spans=tuple(spans),
    )


def _source(case: Case, count: int, manifest: Manifest) -> Frames:
    size = manifest.stream.height_px, manifest.stream.width_px
    return clip_frames(case.video, count, *size) if case.video else moving_square(count, *size)


def _cut(source: Frames, start: int, count: int) -> Frames:
    """Frames start..start+count of the endless repetition of ``source``."""
    return source[np.arange(start, start + count) % len(source)]


def _push_first(editor: StreamEditor, source: Frames) -> tuple[Frames, int]:
    """Push frame by frame until the first chunk comes out: its frames, and how many it took."""
    for n in range(len(source)):
        if chunks := editor.push(source[n : n + 1]):
            return _only(chunks).frames.copy(), n + 1  # a view would take a place for a chunk
    raise LiveEditError(f"no chunk came out of {len(source)} frames")


def _push(
    editor: StreamEditor, source: Frames, start: int, count: int
) -> tuple[EditedChunk, float]:
    """The chunk that comes out for these frames, and how many ms that took."""
    frames = _cut(source, start, count)
    before = time.perf_counter_ns()
    chunks = editor.push(frames)
    return _only(chunks), (time.perf_counter_ns() - before) / 1e6


def _only(chunks: list[EditedChunk]) -> EditedChunk:
    assert len(chunks) == 1, len(chunks)
    return chunks[0]


def _chunk_time(
    manifest: Manifest,
    precision: str,
    policy: MaskCachePolicy,
    edited: EditedChunk,
    ms: float,
    spans: list[Span],
) -> ChunkTime:
    stream = manifest.stream
    tokens, num_passes = stream.block_seq_length, len(stream.denoising_step_list)
    pruned = policy.passes(num_passes) if edited.num_kept < tokens else frozenset()
    keys = KVCache.for_stream(stream).first_row(edited.index) + tokens
    work = [
        part
        for number in range(num_passes + 1)  # the clean pass is the last
        for part in dit_pass(
            manifest.model.dit,
            tokens=tokens,
            keys=keys,
            kept=edited.num_kept if number in pruned else None,
            widths=_WIDTHS.get(precision, EIGHT_BIT),
        )
    ]
    return ChunkTime(
        ms=ms,
        submit_ms=sum(s.ms for s in spans if s.name in ("upload", "encode", "chunk")),
        stages=stage_ms(spans),
        frames=len(edited.frames),
        kept_tokens=edited.num_kept if pruned else tokens,
        flops=total_flops(work),
        bytes=sum(part.bytes for part in work),
    )


def configuration(result: CaseResult) -> dict[str, Any]:
    """What decides whether two records compare."""
    case, manifest = result.case, result.manifest
    on_gpu = case.backend in GPU_BACKENDS
    unusual = {
        "token_budget": case.token_budget,
        "prewarm": case.prewarm,
        "warmup": case.warmup,
        "serial": on_gpu and not case.overlap,
        "no_cuda_graphs": on_gpu and not case.cuda_graphs,
        "stages": on_gpu and case.wait_stages,
    }
    return {
        "model": manifest.model.name,
        "codec": manifest.model.codec,
        "stream": to_dict(manifest.stream),
        "backend": case.backend,
        "precision": result.precision,
        "mask": case.mask,
        "keep": case.keep if case.mask != "off" else 1.0,
        **{name: value for name, value in unusual.items() if value},
        "threads": case.threads or 0,
        "source": case.video.name if case.video else "moving square",
        "included": "upload, encode, DiT, decode, download; no file I/O, no text encoder",
    }


def figures(result: CaseResult) -> dict[str, Figure]:
    """Every figure of a case."""
    chunks = result.chunks
    frames = chunks[0].frames
    passes = [
        sum(ms for name, ms in c.stages.items() if name.startswith("pass") or name == "commit")
        for c in chunks
    ]
    out = {
        "fps": _inverse([c.ms for c in chunks], frames),
        "chunk_ms": distribution([c.ms for c in chunks], "ms", "lower"),
    }
    # On a GPU a range lasts as long as its submission, and a replayed graph opens none.
    if result.case.wait_stages or result.case.backend not in GPU_BACKENDS:
        dit = [c.flops / ms / 1e6 for c, ms in zip(chunks, passes, strict=True)]
        out |= {
            "fps_dit_only": _inverse(passes, frames),
            "dit_ms": distribution(passes, "ms", "lower"),
            "dit_gflop_per_s": distribution(dit, "GFLOP/s", "higher"),
        }
    else:
        out["submit_ms"] = distribution([c.submit_ms for c in chunks], "ms", "lower")
    names = sorted({name for c in chunks for name in c.stages})
    for name in names:
        samples = [c.stages.get(name, 0.0) for c in chunks]
        out[f"stage_ms.{name}"] = distribution(samples, "ms", "lower")
    host = [c.ms - sum(c.stages.values()) for c in chunks]
    out["stage_ms.other"] = distribution(host, "ms", "lower")
    budget = memory_budget(result.manifest, result.precision)
    out |= {
        "dit_gflop_per_chunk": single(float(np.mean([c.flops for c in chunks])) / 1e9, "GFLOP"),
        "dit_gb_per_chunk": single(float(np.mean([c.bytes for c in chunks])) / 1e9, "GB"),
        "codec_gflop_per_chunk": single(_codec_flops(result) / 1e9, "GFLOP"),
        "realised_keep": single(result.realised_keep, "share of tokens"),
        "first_chunk_ms": single(result.first_chunk_ms, "ms", "lower"),
        "first_chunk_frames": single(result.first_chunk_frames, "frame"),
        "slowest_warmup_chunk_ms": single(
            max(result.warmup_ms, default=result.first_chunk_ms), "ms", "lower"
        ),
        "open_ms": single(result.open_ms, "ms", "lower"),
        "prompt_ms": single(result.prompt_ms, "ms", "lower"),
        "memory_predicted_buffers": single((sum(budget.values()) - budget["weights"]) / 1e6, "MB"),
        "memory_predicted_weights": single(budget["weights"] / 1e6, "MB"),
        "memory_measured_open": single((result.rss_open - result.rss_before) / 1e6, "MB"),
        "memory_measured_steady": single((result.rss_steady - result.rss_before) / 1e6, "MB"),
        "memory_peak_process": single(result.peak / 1e6, "MB"),
    }
    if result.device_bytes is not None:
        out["memory_measured_device"] = single(result.device_bytes / 1e6, "MB", "lower")
    return out


def _codec_flops(result: CaseResult) -> float:
    encode, decode = codec_layers(result.manifest.model, result.manifest.stream)
    work = codec_work([*encode, *decode])
    return total_flops(work) * result.manifest.stream.num_frame_per_block


def _inverse(times_ms: list[float], frames: int) -> Figure:
    """Frames per second from chunk times; p95 and p99 are those of the slow chunks."""
    slow = np.percentile(times_ms, [25, 50, 75, 95, 99])
    fast, p50, low, p95, p99 = (float(frames / ms * 1e3) for ms in slow)
    return Figure(
        value=p50,
        unit="frame/s",
        better="higher",
        count=len(times_ms),
        p50=p50,
        p95=p95,
        p99=p99,
        spread=(fast - low) / 2,
    )


def to_record(result: CaseResult, command: str) -> Record:
    """The case as a record."""
    load = os.getloadavg()[0]
    return new_record(
        "bench",
        part_name(result),
        command,
        configuration(result),
        figures(result),
        notes=(
            f"{1 + len(result.warmup_ms)} warm-up chunks",
            f"load average {load:.1f} on {len(os.sched_getaffinity(0))} cores at the end",
            *(f"bundle {k}: {v}" for k, v in sorted(result.manifest.notes.items())),
        ),
    )


def part_name(result: CaseResult) -> str:
    """A file name for the case; codec and size are in it where they are not the model's usual."""
    c = result.case
    mask = c.mask if c.mask == "off" else f"{c.mask}-{c.keep:g}"
    threads = f"-t{c.threads}" if c.threads else ""
    mask += f"-{c.token_budget}tokens" if c.token_budget else ""
    mask += "-prewarm" if c.prewarm else ""
    model, stream = result.manifest.model, result.manifest.stream
    usual, at = MODELS.get(model.name, (None, None))
    editor = model.name
    if usual is None or model.codec != usual.codec:
        editor += f"-{model.codec}"
    if at is None or (stream.height_px, stream.width_px) != (at.height_px, at.width_px):
        editor += f"-{stream.height_px}x{stream.width_px}"
    window = stream.local_attn_size
    return f"{editor}-w{window}-{c.backend}-{result.precision}-{mask}{threads}"
