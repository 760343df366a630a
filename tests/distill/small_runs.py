"""A very small editor, its scenes, and runs of it in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liveedit import config as config_module
from liveedit.config import (
    DiTConfig,
    ModelConfig,
    PatchCodecConfig,
    StreamConfig,
    TextEncoderConfig,
)
from liveedit.distill.latents import LatentScene, save_scene
from liveedit.distill.presets import PhaseConfig, TrainConfig
from liveedit.distill.watch import together

CODEC = PatchCodecConfig(width=8, num_blocks=1)
MODEL = ModelConfig(
    name="mini",
    dit=DiTConfig(
        dim=24, num_layers=2, num_heads=2, ffn_dim=32, freq_dim=16, text_dim=16, text_len=12
    ),
    text=TextEncoderConfig(
        vocab_size=1024, dim=16, dim_attn=16, ffn_dim=16, num_heads=2, num_layers=1
    ),
    wan_vae=None,
    patch=CODEC,
)
STREAM = StreamConfig(
    height_px=32, width_px=32, num_frame_per_block=1, local_attn_size=3, sink_size=1
)
CONFIG = TrainConfig(
    model="mini",
    lr=8e-3,
    warmup_steps=3,
    save_every=4,
    phases=(
        PhaseConfig(steps=6, num_latent_frames=1, batch_size=4, crop_columns=2),
        PhaseConfig(steps=200, num_latent_frames=2, batch_size=4, on_policy=0.3),
    ),
)
config_module.MODELS["mini"] = (MODEL, STREAM)


def random_scenes(folder: Path, count: int = 3) -> Path:
    """A folder of coded scenes of noise, 3 latent frames of 4 x 4."""
    folder.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        scene = LatentScene(
            source=rng.normal(size=(16, 3, 4, 4)).astype(np.float16),
            targets=rng.normal(size=(2, 16, 3, 4, 4)).astype(np.float16),
            masks=rng.integers(0, 256, (2, 3, 4, 4)).astype(np.uint8),
            edits=[
                {
                    "instruction": f"make the ball {colour}",
                    "kind": "recolour",
                    "colour": "green",
                    "new_colour": colour,
                    "shape": "ball",
                    "new_shape": "",
                }
                for colour in ("red", "blue")
            ],
        )
        save_scene(folder / f"{i}.npz", scene)
    return folder


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that has torch and this module loaded already: it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "liveedit.distill.train"])
    process = context.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def spare_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def start_two(target: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Two processes as torchrun starts them; ``target`` runs in each once they have met."""
    port = spare_port()
    return [start(_joined, rank, port, target, args) for rank in range(2)]


def _joined(rank: int, port: int, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with together():
        target(*args)
