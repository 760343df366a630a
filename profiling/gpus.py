"""What GPUs can do: vendor dense peaks, bandwidth, and how much of them good kernels reach.

Peaks are dense (no structured sparsity) with the accumulation the networks need (fp32 for 16-bit
inputs). Efficiencies are class estimates from published kernels, not measurements of this project:
60 % for large GEMMs, 40 % for convolutions, and the best published attention rate per card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from liveedit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card. Rates in TFLOP/s, bandwidth in GB/s (10^9)."""

    name: str
    compute_capability: str
    half_tflops: float
    eight_bit_tflops: float
    eight_bit: Literal["fp8", "int8"]
    bandwidth_gbps: float
    memory_gb: float
    attention_half_tflops: float  # best published kernels; see `attention_source`
    attention_eight_bit_tflops: float
    attention_source: Literal["published", "estimate"] = "estimate"
    gemm_efficiency: float = 0.60
    convolution_efficiency: float = 0.40


GPUS: dict[str, Gpu] = {
    g.name: g
    for g in (
        Gpu(
            name="H200",
            compute_capability="9.0",
            half_tflops=989.4,
            eight_bit_tflops=1978.9,
            eight_bit="fp8",
            bandwidth_gbps=4800,
            memory_gb=141,
            attention_half_tflops=648,
            attention_eight_bit_tflops=890,
            attention_source="published",
        ),
        Gpu(
            name="H100",
            compute_capability="9.0",
            half_tflops=989.4,
            eight_bit_tflops=1978.9,
            eight_bit="fp8",
            bandwidth_gbps=3350,
            memory_gb=80,
            attention_half_tflops=648,
            attention_eight_bit_tflops=890,
            attention_source="published",
        ),
        Gpu(
            name="A100",
            compute_capability="8.0",
            half_tflops=312,
            eight_bit_tflops=624,
            eight_bit="int8",
            bandwidth_gbps=2039,
            memory_gb=80,
            attention_half_tflops=220,
            attention_eight_bit_tflops=280,
        ),
        Gpu(
            name="RTX 5090",
            compute_capability="12.0",
            half_tflops=209.5,
            eight_bit_tflops=838,
            eight_bit="int8",
            bandwidth_gbps=1792,
            memory_gb=32,
            attention_half_tflops=200,
            attention_eight_bit_tflops=640,
            attention_source="published",
        ),
        Gpu(
            name="RTX 4090",
            compute_capability="8.9",
            half_tflops=165.2,
            eight_bit_tflops=660.6,
            eight_bit="int8",
            bandwidth_gbps=1008,
            memory_gb=24,
            attention_half_tflops=160,
            attention_eight_bit_tflops=490,
            attention_source="published",
        ),
        Gpu(
            name="L4",
            compute_capability="8.9",
            half_tflops=121,
            eight_bit_tflops=242,
            eight_bit="fp8",
            bandwidth_gbps=300,
            memory_gb=24,
            attention_half_tflops=90,
            attention_eight_bit_tflops=155,
        ),
        Gpu(
            name="Jetson Thor",
            compute_capability="11.0",
            half_tflops=258.5,
            eight_bit_tflops=517,
            eight_bit="fp8",
            bandwidth_gbps=273,
            memory_gb=128,
            attention_half_tflops=168,
            attention_eight_bit_tflops=350,
        ),
        Gpu(
            name="AGX Orin 64",
            compute_capability="8.7",
            half_tflops=42.5,
            eight_bit_tflops=85,
            eight_bit="int8",
            bandwidth_gbps=204.8,
            memory_gb=64,
            attention_half_tflops=30,
            attention_eight_bit_tflops=55,
        ),
    )
}


def known_names() -> str:
    return ", ".join(GPUS)


def find_gpu(name: str) -> Gpu:
    """The table's entry for a name as people or the driver write it ("NVIDIA H200", "rtx4090").

    Raises:
        UsageError: no such card; the sentence lists the known ones.
    """
    wanted = _plain(name)
    # Only whole entries match: "A10" is not an A100, and a laptop or Super card is another card.
    for gpu in GPUS.values():
        if wanted in _spellings(gpu.name):
            return gpu
    raise UsageError(
        f"GPU {name!r} is not in the table. Known: {known_names()}. Give one of these, or "
        "--gpu-peaks HALF_TFLOPS,EIGHT_BIT_TFLOPS,BANDWIDTH_GBPS"
    )


def custom_gpu(text: str) -> Gpu:
    """A card from three numbers "HALF,EIGHT_BIT,BANDWIDTH" (TFLOP/s, TFLOP/s, GB/s).

    Attention is taken at 65 % (half) and 45 % (eight bits) of the peaks.

    Raises:
        UsageError: not three positive numbers.
    """
    try:
        half, eight, bandwidth = (float(part) for part in text.split(","))
    except ValueError:
        half = eight = bandwidth = 0.0
    if not min(half, eight, bandwidth) > 0:
        raise UsageError(
            f"--gpu-peaks {text!r} is not three positive numbers "
            "HALF_TFLOPS,EIGHT_BIT_TFLOPS,BANDWIDTH_GBPS, for example 989,1979,4800"
        )
    return Gpu(
        name="custom",
        compute_capability="",
        half_tflops=half,
        eight_bit_tflops=eight,
        eight_bit="int8",
        bandwidth_gbps=bandwidth,
        memory_gb=0.0,
        attention_half_tflops=0.65 * half,
        attention_eight_bit_tflops=0.45 * eight,
    )


def _plain(name: str) -> str:
    text = name.lower()
    text = re.sub(r"\b(nvidia|geforce|jetson|sxm\d?|pcie|nvl|hbm3e?|\d+ ?gb)\b", " ", text)
    return re.sub(r"[^a-z0-9]", "", text)


def _spellings(name: str) -> set[str]:
    plain = _plain(name)
    return {plain, plain.removeprefix("rtx"), plain.removesuffix("64")}
