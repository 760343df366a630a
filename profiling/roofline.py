"""How fast a GPU could be at most: time per class of work at vendor peaks, and FPS from it.

A class takes the longer of its arithmetic and its compulsory memory traffic; classes add up, since
on one GPU two tensor-bound kernels do not overlap for free. Normalisation and activation inside the
codec count as fused. These are bounds and estimates, never measurements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from liveedit.config import ModelConfig, StreamConfig
from liveedit.profiling.accounting import (
    EIGHT_BIT,
    HALF,
    MaskCache,
    Work,
    chunk_work,
    video_frames_per_chunk,
)
from liveedit.profiling.codec_accounting import codec_layers, codec_work
from liveedit.profiling.gpus import Gpu
from liveedit.profiling.text_table import text_table

Precision = Literal["half", "8bit"]


@dataclass(frozen=True, kw_only=True)
class ClassTime:
    """One row: a class of work per pixel frame."""

    stage: str  # encode, dit, decode
    name: str
    gflops: float
    megabytes: float
    bound_ms: float  # at vendor peaks
    estimate_ms: float  # at class efficiencies
    limited_by: Literal["compute", "memory"]


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The bound of one configuration. Times are per pixel frame."""

    gpu: str
    precision: Precision
    rows: tuple[ClassTime, ...] = field(default_factory=tuple)

    @property
    def bound_ms(self) -> float:
        return sum(r.bound_ms for r in self.rows)

    @property
    def estimate_ms(self) -> float:
        return sum(r.estimate_ms for r in self.rows)

    @property
    def bound_fps(self) -> float:
        return 1e3 / self.bound_ms

    @property
    def estimate_fps(self) -> float:
        return 1e3 / self.estimate_ms

    def stage_fps(self, stage: str) -> float:
        """Bound of one stage alone, e.g. ``dit``."""
        return 1e3 / sum(r.bound_ms for r in self.rows if r.stage == stage)

    def stages(self) -> list[str]:
        return list(dict.fromkeys(r.stage for r in self.rows))


def bound(
    gpu: Gpu,
    model: ModelConfig,
    stream: StreamConfig,
    *,
    precision: Precision = "half",
    mask: MaskCache | None = None,
) -> Roofline:
    """Encode + DiT + decode of a steady-state chunk.

    Args:
        precision: of the DiT's GEMMs and attention; the codec stays in 16 bits.
    """
    widths = EIGHT_BIT if precision == "8bit" else HALF
    encode, decode = codec_layers(model, stream)
    steps = stream.num_frame_per_block
    parts: list[tuple[str, Precision, Iterable[Work]]] = [
        ("encode", "half", (w * steps for w in codec_work(encode))),
        ("dit", precision, chunk_work(model.dit, stream, mask=mask, widths=widths)),
        ("decode", "half", (w * steps for w in codec_work(decode))),
    ]
    frames = video_frames_per_chunk(stream)
    rows = []
    for stage, kind, works in parts:
        for row in _by_class(works) if stage != "dit" else works:
            compute, memory = _seconds(gpu, row, kind, estimate=False)
            estimate = max(_seconds(gpu, row, kind, estimate=True))
            rows.append(
                ClassTime(
                    stage=stage,
                    name=row.name,
                    gflops=row.flops / frames / 1e9,
                    megabytes=row.bytes / frames / 1e6,
                    bound_ms=max(compute, memory) / frames * 1e3,
                    estimate_ms=estimate / frames * 1e3,
                    limited_by="compute" if compute >= memory else "memory",
                )
            )
    return Roofline(gpu=gpu.name, precision=precision, rows=tuple(rows))


def rate_tflops(gpu: Gpu, kind: str, precision: Precision, *, estimate: bool = False) -> float:
    """TFLOP/s of a kind of work: the vendor peak, or what good kernels reach."""
    eight = precision == "8bit" and kind in ("gemm", "attention")
    peak = gpu.eight_bit_tflops if eight else gpu.half_tflops
    if not estimate:
        return peak
    if kind == "attention":
        return gpu.attention_eight_bit_tflops if eight else gpu.attention_half_tflops
    return peak * (gpu.gemm_efficiency if kind == "gemm" else gpu.convolution_efficiency)


def _seconds(gpu: Gpu, work: Work, precision: Precision, *, estimate: bool) -> tuple[float, float]:
    compute = work.flops / (rate_tflops(gpu, work.kind, precision, estimate=estimate) * 1e12)
    return compute, work.bytes / (gpu.bandwidth_gbps * 1e9)


def _by_class(layers: Iterable[Work]) -> list[Work]:
    """Codec layers summed to one row per kind; a row's parts share one limit here."""
    sums: dict[str, Work] = {}
    for w in layers:
        old = sums.get(w.kind)
        sums[w.kind] = Work(
            name=w.kind,
            kind=w.kind,
            flops=w.flops + (old.flops if old else 0.0),
            bytes=w.bytes + (old.bytes if old else 0.0),
        )
    return list(sums.values())


def table(result: Roofline) -> str:
    """The rows and the two FPS as aligned text."""
    head = ("stage", "class", "GFLOP", "MB", "bound ms", "estimate ms", "limit")
    body = [
        (
            r.stage,
            r.name,
            f"{r.gflops:.1f}",
            f"{r.megabytes:.1f}",
            f"{r.bound_ms:.3f}",
            f"{r.estimate_ms:.3f}",
            r.limited_by,
        )
        for r in result.rows
    ]
    return text_table(head, body, left=(0, 1, 6))


def as_dict(result: Roofline) -> dict[str, Any]:
    """Plain data for the JSON line."""
    return {
        "gpu": result.gpu,
        "precision": result.precision,
        "bound_fps": round(result.bound_fps, 3),
        "estimate_fps": round(result.estimate_fps, 3),
        "rows": [r.__dict__ for r in result.rows],
    }
