"""Judge a trained editor on held-out scenes: `python -m liveedit.distill.evaluate --help`.

Writes `metrics.json` (figures of every edit, and their means), `shown.npz` (a frame of the first
edits) and a record into a folder. `python -m liveedit.distill.compare` puts several side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liveedit.distill.edits import Edit, SceneConfig, make_scene
from liveedit.distill.footage import real_footage
from liveedit.distill.judge import judge, table
from liveedit.distill.judged_record import save, stage_figures
from liveedit.distill.samplers import Sampler, load_sampler
from liveedit.distill.scenes import Bytes, Footage
from liveedit.errors import UsageError
from liveedit.profiling.records import single

SHOWN = 24  # edits of which a frame is kept


@dataclass(frozen=True)
class Case:
    """One edit of a held-out scene."""

    scene: int
    source: Bytes
    edit: Edit


def held_out_cases(
    footage: Footage, config: SceneConfig, count: int, first: int = 0
) -> Iterator[Case]:
    """The edits of ``count`` scenes from number ``first`` on, always the same ones."""
    for seed in range(first, first + count):
        scene = make_scene(seed, footage, config)
        for edit in scene.edits:
            yield Case(seed, scene.source, edit)


def batched(cases: Iterator[Case], size: int) -> Iterator[list[Case]]:
    batch: list[Case] = []
    for case in cases:
        batch.append(case)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass
class Judged:
    """What a run of `judge_all` found."""

    rows: list[dict[str, Any]]
    shown: dict[str, list[Bytes]]
    network_s: float
    num_frames: int


def judge_all(
    sampler: Sampler, cases: Iterator[Case], batch_size: int, max_seconds: float = math.inf
) -> Judged:
    """Edit and judge case after case, until the time is over."""
    started, before = time.monotonic(), sampler.network_s
    rows: list[dict[str, Any]] = []
    shown: dict[str, list[Bytes]] = {"source": [], "target": [], "codec": [], "output": []}
    frames = 0
    for batch in batched(cases, batch_size):
        prompts = [case.edit.instruction for case in batch]
        seeds = [case.scene for case in batch]
        outputs = sampler.edit([case.source for case in batch], prompts, seeds)
        coded = sampler.decode(sampler.encode([case.edit.target for case in batch]))
        for case, output, reconstruction in zip(batch, outputs, coded, strict=True):
            row = judge(case.source, case.edit, output, reconstruction)
            rows.append({"scene": case.scene, **row})
            frames += len(output)
            if len(rows) <= SHOWN:
                parts = (case.source, case.edit.target, reconstruction, output)
                for name, clip in zip(shown, parts, strict=True):
                    shown[name].append(clip[-6])
        if time.monotonic() - started > max_seconds:
            break
    return Judged(rows, shown, sampler.network_s - before, frames)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every judging command takes."""
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True, help="cache of clips and photos")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--threads", type=int, default=1)


def scene_config(sampler: Sampler, num_frames: int, edits_per_scene: int = 2) -> SceneConfig:
    """Held-out scenes for a sampler.

    Raises:
        UsageError: the frames are not whole chunks.
    """
    chunk = 4 * sampler.stream.num_frame_per_block
    if num_frames < 1 or num_frames % chunk:
        raise UsageError(f"--num-frames must be a multiple of {chunk}, got {num_frames}")
    return SceneConfig(
        num_frames=num_frames,
        height_px=sampler.stream.height_px,
        width_px=sampler.stream.width_px,
        edits_per_scene=edits_per_scene,
        split="held_out",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--num-frames", type=int, default=24, help="a multiple of 12")
    parser.add_argument("--batch", type=int, default=8, help="clips that are edited together")
    parser.add_argument(
        "--method", choices=("stream", "whole"), help="default: whole for a foundation model"
    )
    parser.add_argument("--steps", type=int, default=50, help="network calls of whole")
    parser.add_argument(
        "--guidance", type=float, default=0.0, help="g of c + g (c - u) in whole: twice the calls"
    )
    parser.add_argument("--name", help="row of the table; default: the stage")
    parser.add_argument("--max-seconds", type=float, default=math.inf)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sampler, stage, step = load_sampler(
        options.checkpoint,
        options.codec,
        method=options.method,
        steps=options.steps,
        guidance=options.guidance,
    )
    config = scene_config(sampler, options.num_frames)
    footage = real_footage(options.sources, "held_out", config.height_px, config.width_px)
    cases = held_out_cases(footage, config, options.scenes, options.first)
    judged = judge_all(sampler, cases, options.batch, options.max_seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    calls, clip_calls = sampler.calls_per_frame, sampler.calls(options.num_frames // 4)
    configuration = {
        "stage": stage,
        "step": step,
        "method": sampler.method,
        "guidance": options.guidance,
        "split": "held_out",
        "num_video_frames": options.num_frames,
        "scenes": len({row["scene"] for row in judged.rows}),
        "first_scene": options.first,
        "batch": options.batch,
        "threads": options.threads,
    }
    seconds = judged.network_s / judged.num_frames
    means = table(judged.rows)
    result = {
        **configuration,
        "calls_per_frame": calls,
        "calls_per_clip": clip_calls,
        "network_s_per_frame": seconds,
        "table": means,
        "rows": judged.rows,
    }
    (options.out / "metrics.json").write_text(json.dumps(result, indent=1))
    figures = {
        **stage_figures(judged.rows),
        "calls_per_frame": single(calls, "1", "lower"),
        "calls_per_clip": single(clip_calls, "1", "lower"),
        "seconds_per_frame": single(seconds, "s", "lower"),
    }
    save(options.out, "distill-stage", options.name or stage, configuration, figures)
    np.savez_compressed(
        options.out / "shown.npz",
        **{k: np.stack(v) for k, v in judged.shown.items()},  # type: ignore[arg-type]
    )
    print(json.dumps(means, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
