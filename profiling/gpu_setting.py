"""Sizes and device of a run of the GPU suite: the official shape, or a toy one on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from liveedit.config import LIVEEDIT_1_3B, DiTConfig, StreamConfig, TAEHVConfig, WanVAEConfig
from liveedit.profiling.records import Figure

Figures = dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes and device of a suite run."""

    device: str
    dtype: str
    dit: DiTConfig
    stream: StreamConfig
    wan: WanVAEConfig
    taehv: TAEHVConfig
    rounds: int
    bundle: Path | None
    out: Path = Path()  # for files beside the record

    @property
    def dry(self) -> bool:
        return self.device == "cpu"


def setting(*, dry_run: bool, bundle: Path | None, out: Path = Path()) -> Setting:
    """The official shape on the GPU, or a toy shape on the CPU."""
    if not dry_run:
        return Setting(
            device="cuda",
            dtype="bfloat16",
            dit=LIVEEDIT_1_3B.dit,
            stream=StreamConfig(local_attn_size=12, sink_size=3),
            wan=WanVAEConfig(),
            taehv=TAEHVConfig(),
            rounds=20,
            bundle=bundle,
            out=out,
        )
    return Setting(
        device="cpu",
        dtype="float32",
        dit=DiTConfig(
            dim=32, num_layers=2, num_heads=2, ffn_dim=48, freq_dim=16, text_dim=16, text_len=8
        ),
        stream=StreamConfig(
            height_px=32, width_px=48, local_attn_size=12, sink_size=3, keep_bucket=4
        ),
        wan=WanVAEConfig(base_dim=4),
        taehv=TAEHVConfig(encoder_width=4, decoder_widths=(8, 4, 4, 4)),
        rounds=2,
        bundle=bundle,
        out=out,
    )
