"""What the mask cache costs an exported editor: `python -m liveedit.distill.cache_cost --help`.

Held-out edits through the runtime with its mask cache off, as released and as in the paper, and
laid over the untouched source, as `liveedit edit --composite` does. The first chunk of a stream is
never pruned, so it is left out of the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liveedit.distill.edits import SceneConfig
from liveedit.distill.encode import load_codec
from liveedit.distill.evaluate import Case, held_out_cases
from liveedit.distill.footage import real_footage
from liveedit.distill.judge import judge, table
from liveedit.distill.judged_record import save, stage_figures
from liveedit.distill.latents import to_tensor
from liveedit.distill.scenes import Bytes
from liveedit.models.patch_codec import PatchCodec
from liveedit.profiling.records import single
from liveedit.runtime import EditedChunk, MaskCachePolicy, StreamEditor
from liveedit.runtime.composite import SoftMask, lay_over
from liveedit.runtime.fit import Fit, Size

OFF, RELEASED = MaskCachePolicy(mode="off"), MaskCachePolicy(mode="released", keep_ratio=0.3)
# What is measured, and whether the edit is laid over its source.
SETTINGS: tuple[tuple[MaskCachePolicy, SoftMask | None], ...] = (
    (OFF, None),
    *((replace(RELEASED, keep_ratio=r), None) for r in (0.5, 0.3, 0.1)),
    *((MaskCachePolicy(mode="paper", keep_ratio=r), None) for r in (0.5, 0.3)),
    (OFF, SoftMask()),
    (RELEASED, SoftMask()),
)

EQUAL_DB = 60.0  # a background of which not one pixel changed counts as this


@dataclass
class Cost:
    """One policy: the figures of every edit, the share of tokens kept, and the time taken."""

    rows: list[dict[str, Any]]
    kept: float
    s_per_frame: float


def run_policy(
    bundle: Path,
    policy: MaskCachePolicy,
    cases: Sequence[Case],
    reconstructions: Sequence[Bytes],
    threads: int,
    composite: SoftMask | None = None,
) -> Cost:
    """Stream every case through the runtime; all chunks but each first one are judged and timed.

    Args:
        composite: lays the edits over the source before they are judged.
    """
    rows, kept, spent, frames = [], [], 0.0, 0
    with StreamEditor.open(bundle, mask_cache=policy, threads=threads) as editor:
        chunk = 4 * editor.manifest.stream.num_frame_per_block
        tokens = editor.manifest.stream.block_seq_length
        for case, coded in zip(cases, reconstructions, strict=True):
            editor.reset()
            editor.set_prompt(case.edit.instruction)
            first = editor.push(case.source[:chunk])
            started = time.perf_counter()
            rest = editor.push(case.source[chunk:]) + editor.flush()
            spent += time.perf_counter() - started
            output = np.concatenate([c.frames for c in first + rest])[chunk:]
            if composite is not None:
                output = laid_over(case.source[chunk:], rest, output, composite)
            frames += len(output)
            kept += [c.num_kept / tokens for c in rest]
            edit = replace(case.edit, target=case.edit.target[chunk:], mask=case.edit.mask[chunk:])
            row = judge(case.source[chunk:], edit, output, coded[chunk:])
            row["background_psnr"] = min(row["background_psnr"], EQUAL_DB)
            rows.append({"scene": case.scene, **row})
    return Cost(rows, float(np.mean(kept)), spent / frames)


def laid_over(source: Bytes, chunks: Sequence[EditedChunk], edited: Bytes, mask: SoftMask) -> Bytes:
    """Edited frames over the source's where the stream's own mask says so, both [T, H, W, 3]."""
    size = Size(*source.shape[1:3])
    fit = Fit(size, size)
    opacity = [mask(c.importance, c.peak_change)[row] for c in chunks for row in c.latent_rows]
    frames = zip(source, edited, opacity, strict=True)
    return np.stack([lay_over(s, e, fit.mask_to_source(o)) for s, e, o in frames])


def reconstruct(codec: PatchCodec, clip: Bytes) -> Bytes:
    """The codec alone: [T, H, W, 3] -> the same frames, coded and decoded."""
    with torch.inference_mode():
        video = codec.decode(codec.encode(to_tensor(clip)))[0]
        out: Bytes = (video.permute(1, 2, 3, 0) * 255 + 0.5).to(torch.uint8).numpy()
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True, help="cache of clips and photos")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--edits", type=int, default=2, help="of every scene")
    parser.add_argument("--num-frames", type=int, default=24, help="two chunks or more")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    codec = load_codec(options.codec)
    with StreamEditor.open(options.bundle, backend="null", verify=False) as editor:
        size = (editor.height_px, editor.width_px)
    config = SceneConfig(
        num_frames=options.num_frames,
        height_px=size[0],
        width_px=size[1],
        edits_per_scene=options.edits,
        split="held_out",
    )
    footage = real_footage(options.sources, "held_out", *size)
    cases = list(held_out_cases(footage, config, options.scenes))
    coded = [reconstruct(codec, case.edit.target) for case in cases]
    options.out.mkdir(parents=True, exist_ok=True)
    result = {}
    for policy, composite in SETTINGS:
        part = policy.mode if policy.mode == "off" else f"{policy.mode} {policy.keep_ratio}"
        part += " composite" if composite else ""
        cost = run_policy(options.bundle, policy, cases, coded, options.threads, composite)
        result[part] = {"kept": cost.kept, "table": table(cost.rows)["all"], "rows": cost.rows}
        figures = {
            **stage_figures(cost.rows),
            "kept": single(100 * cost.kept, "%"),
            "seconds_per_frame": single(cost.s_per_frame, "s", "lower"),
        }
        configuration = {
            "mask_cache": policy.mode,
            "keep_ratio": policy.keep_ratio,
            "composite": composite is not None,
            "edits": len(cases),
            "num_video_frames": options.num_frames,
            "threads": options.threads,
        }
        save(options.out, "distill-cache", part, configuration, figures)
        print(f"{part}: kept {cost.kept:.2f}, {json.dumps(result[part]['table'])}", flush=True)
    (options.out / "cache.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
