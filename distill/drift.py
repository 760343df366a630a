"""Long streams: is chunk 200 edited as well as chunk 2? `python -m liveedit.distill.drift --help`.

A held-out scene of one chunk is played forwards and backwards for ever, so every second chunk shows
the same frames and chunks are compared on equal terms. Nothing but the latents of the stream is
held, and only the chunks that are judged are decoded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from liveedit.distill.evaluate import Case, add_arguments, held_out_cases, scene_config
from liveedit.distill.footage import real_footage
from liveedit.distill.judge import judge, table
from liveedit.distill.judged_record import save, stage_figures
from liveedit.distill.samplers import Sampler, load_sampler
from liveedit.distill.scenes import Bytes
from liveedit.errors import UsageError


def there_and_back(frames: Bytes) -> Bytes:
    """[T, ...] -> [2 T, ...]: forwards, then backwards. Its end meets its beginning."""
    return np.concatenate((frames, frames[::-1]))


def loop_case(case: Case) -> Case:
    """A case of one chunk as one period of two."""
    edit = case.edit
    target, mask = there_and_back(edit.target), there_and_back(edit.mask)
    return replace(
        case,
        source=there_and_back(case.source),
        edit=replace(edit, target=target, mask=mask),
    )


def judge_chunks(
    sampler: Sampler, cases: Sequence[Case], chunks: Sequence[int]
) -> dict[int, list[dict[str, Any]]]:
    """Stream looped cases as long as needed; figures of each case at the named chunks.

    Args:
        chunks: counted from 1, even ones: they show the way back.

    Raises:
        UsageError: a chunk is odd or not positive.
    """
    if any(n < 1 or n % 2 for n in chunks):
        raise UsageError(f"chunks {list(chunks)}: only even ones show the same frames")
    loops = [loop_case(case) for case in cases]
    period = sampler.encode([case.source for case in loops])  # two chunks
    block = sampler.stream.num_frame_per_block
    source = period.repeat(1, 1, max(chunks) // 2, 1, 1)
    prompts = [case.edit.instruction for case in loops]
    edited = sampler.edit_latents(source, prompts, [case.scene for case in loops])
    coded = sampler.decode(sampler.encode([case.edit.target for case in loops]))
    rows: dict[int, list[dict[str, Any]]] = {}
    for n in chunks:
        # The decoder looks back one latent.
        start = (n - 1) * block
        decoded = sampler.decode(edited[:, :, start - 1 : start + block])
        rows[n] = []
        for case, output, reconstruction in zip(loops, decoded, coded, strict=True):
            half = len(case.source) // 2
            edit = replace(case.edit, target=case.edit.target[half:], mask=case.edit.mask[half:])
            row = judge(case.source[half:], edit, output[4:], reconstruction[half:])
            rows[n].append({"scene": case.scene, **row})
    return rows


def recolours(cases: Iterator[Case], count: int) -> list[Case]:
    """The first ``count`` recoloured objects."""
    chosen: list[Case] = []
    for case in cases:
        if case.edit.kind == "recolour":
            chosen.append(case)
            if len(chosen) == count:
                break
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--cases", type=int, default=4, help="recoloured objects at once")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2, 50, 100, 150, 200])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sampler, stage, step = load_sampler(options.checkpoint, options.codec, method="stream")
    config = scene_config(sampler, 4 * sampler.stream.num_frame_per_block, edits_per_scene=1)
    footage = real_footage(options.sources, "held_out", config.height_px, config.width_px)
    cases = recolours(held_out_cases(footage, config, 40 * options.cases), options.cases)
    rows = judge_chunks(sampler, cases, options.chunks)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {str(n): {"table": table(r)["all"], "rows": r} for n, r in rows.items()}
    (options.out / "drift.json").write_text(json.dumps(result, indent=1))
    for n, judged in rows.items():
        save(
            options.out,
            "distill-drift",
            f"chunk {n:03d}",
            {"stage": stage, "step": step, "cases": len(cases), "chunks": options.chunks},
            stage_figures(judged),
        )
        print(f"chunk {n}: {json.dumps(table(judged)['all'])}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
