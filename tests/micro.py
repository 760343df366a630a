"""Small editors with random weights, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from liveedit.config import (
    DiTConfig,
    ModelConfig,
    StreamConfig,
    TAEHVConfig,
    TextEncoderConfig,
    WanVAEConfig,
)

MICRO = ModelConfig(
    name="micro",
    dit=DiTConfig(
        dim=64, num_layers=2, num_heads=2, ffn_dim=96, freq_dim=32, text_dim=32, text_len=16
    ),
    text=TextEncoderConfig(
        vocab_size=300, dim=32, dim_attn=32, ffn_dim=48, num_heads=2, num_layers=1
    ),
    wan_vae=None,
    taehv=TAEHVConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8), pixel_convention="native"),
)
# One residual block a level, two in the decoder: the longest of all graphs to export.
MICRO_WAN = replace(
    MICRO, name="micro-wan", taehv=None, wan_vae=WanVAEConfig(base_dim=8, num_res_blocks=1)
)
MICRO_STREAM = StreamConfig(
    height_px=48, width_px=64, local_attn_size=9, sink_size=3, keep_bucket=4
)


def make_bundle(root: Path, model: ModelConfig, precisions: tuple[str, ...]) -> Path:
    from liveedit.export.bundle_writer import write_bundle
    from liveedit.export.sources import random_sources

    weights, tokenizer, notes = random_sources(model, 0)
    write_bundle(root, model, MICRO_STREAM, weights, tokenizer, precisions=precisions, notes=notes)
    return root
