"""Judging commands: batching changes nothing, a long stream is judged on equal frames, records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import CODEC, MODEL, STREAM
from torch import Tensor, nn

from liveedit.distill import compare, judged_record
from liveedit.distill.cache_cost import laid_over
from liveedit.distill.drift import judge_chunks, there_and_back
from liveedit.distill.editor import Editor
from liveedit.distill.edits import Scene, SceneConfig
from liveedit.distill.evaluate import Case, held_out_cases, judge_all
from liveedit.distill.guidance import full_attention
from liveedit.distill.rollout import whole_clip_edit
from liveedit.distill.samplers import Sampler, seeded
from liveedit.distill.scenes import Footage
from liveedit.distill.tokenizer import train_tokenizer
from liveedit.errors import UsageError
from liveedit.models.patch_codec import PatchCodec
from liveedit.profiling.records import read_record
from liveedit.runtime import EditedChunk
from liveedit.runtime.composite import SoftMask


@pytest.fixture(scope="module")
def editor() -> Editor:
    torch.manual_seed(0)
    made = Editor(MODEL)
    nn.init.normal_(made.dit.head.head.weight, std=0.05)  # else every velocity is zero
    return made


def sampler(editor: Editor, **options: Any) -> Sampler:
    torch.manual_seed(1)
    return Sampler(editor, PatchCodec(CODEC), train_tokenizer(), STREAM, **options)


@pytest.fixture(scope="module")
def cases(squares: list[Scene]) -> list[Case]:
    return [Case(n, scene.source, scene.edits[0]) for n, scene in enumerate(squares)]


def test_fresh_scenes_continue_the_first_ones(footage: Footage) -> None:
    config = SceneConfig(num_frames=4, height_px=48, width_px=64, split="held_out")
    through = list(held_out_cases(footage, config, 4))
    parted = [*held_out_cases(footage, config, 1), *held_out_cases(footage, config, 3, first=1)]
    assert {case.scene for case in parted} == {0, 1, 2, 3}
    for a, b in zip(through, parted, strict=True):
        assert (a.scene, a.edit.instruction) == (b.scene, b.edit.instruction)
        assert np.array_equal(a.source, b.source)


@pytest.mark.parametrize("method", ["stream", "whole"])
def test_clips_edited_together_are_as_alone(editor: Editor, cases: list[Case], method: str) -> None:
    some = sampler(editor, method=method, steps=3)
    source = some.encode([case.source for case in cases])
    prompts = [case.edit.instruction for case in cases]
    together = some.edit_latents(source, prompts, [0, 1, 2])
    alone = [some.edit_latents(source[i : i + 1], prompts[i : i + 1], [i]) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert not torch.equal(together[0], source[0])
    assert some.calls_per_frame == (3 if method == "whole" else 5)
    assert some.calls(2) == (3 if method == "whole" else 10)


def test_whole_clip_sampling_reaches_what_the_velocity_points_to() -> None:
    wanted = torch.randn(2, 16, 3, 4, 4)

    class Straight(nn.Module):
        def forward(self, noisy: Tensor, source: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return (noisy - wanted) / (t / 1000).view(2, 1, 3, 1, 1)

    dit: Any = Straight()
    velocity = full_attention(dit, torch.zeros(0), wanted)
    out = whole_clip_edit(velocity, wanted, [1.0, 0.8, 0.3], seeded([4, 5]))
    assert torch.allclose(out, wanted, atol=1e-5)


def test_guidance_moves_from_no_words_through_the_words(editor: Editor, cases: list[Case]) -> None:
    """Its first step is linear in the scale, and it calls the network twice."""
    first = cases[0].edit.instruction

    def one_step(guidance: float, prompt: str = first) -> Tensor:
        some = sampler(editor, method="whole", steps=1, guidance=guidance)
        assert some.calls_per_frame == (2 if guidance else 1)
        return some.edit_latents(some.encode([cases[0].source]), [prompt], [0])

    plain, wordless = one_step(0.0), one_step(0.0, "")
    assert not torch.allclose(plain, wordless, atol=1e-3)
    for guidance in (0.5, 3.0):
        wanted = plain + guidance * (plain - wordless)
        assert torch.allclose(one_step(guidance), wanted, atol=1e-4)


def test_rows_and_pictures_of_a_run(
    editor: Editor, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for stage, calls in (("foundation", 50), ("dmd", 5)):
        judged = judge_all(sampler(editor), iter(cases), batch_size=2)
        assert [row["scene"] for row in judged.rows] == [0, 1, 2]
        assert judged.num_frames == 24
        folder = tmp_path / stage
        folder.mkdir()
        meta = {
            "stage": stage,
            "step": 1,
            "num_video_frames": 8,
            "calls_per_frame": calls,
            "calls_per_clip": calls,
            "network_s_per_frame": 1.0,
            "rows": judged.rows,
        }
        (folder / "metrics.json").write_text(json.dumps(meta))
        np.savez(folder / "shown.npz", **{k: np.stack(v) for k, v in judged.shown.items()})
        folders.append(folder)
    words = ["x/compare.py", *map(str, folders), "--out", str(tmp_path / "sheet.png")]
    monkeypatch.setattr("sys.argv", [*words, "--records", str(tmp_path)])
    assert compare.main() == 0
    assert Image.open(tmp_path / "sheet.png").size == (5 * 32, 14 + 3 * 45)
    record = read_record(tmp_path / "distill-pair-dmd-against-foundation.json")
    assert record.figures["fewer_calls_per_frame"].value == 10
    assert record.figures["region_psnr"].value == 0
    assert str(tmp_path) not in record.command
    with pytest.raises(UsageError, match="holds no judged editor"):
        compare.read_judged(tmp_path)


class Untouched(Sampler):
    """Hands the source back, and ruins everything from the given latent frame on."""

    ruined_from = 10**9

    def edit_latents(self, source: Tensor, prompts: list[str], seeds: Any) -> Tensor:
        out = source.clone()
        out[:, :, self.ruined_from :] += 3
        return out


def test_long_streams_are_judged_on_the_same_frames(editor: Editor, cases: list[Case]) -> None:
    """With nothing edited, chunk 100 is exactly as good as chunk 2; drift is seen."""
    torch.manual_seed(1)
    still = Untouched(editor, PatchCodec(CODEC), train_tokenizer(), STREAM)
    short = [Case(c.scene, c.source[:4], _first(c.edit, 4)) for c in cases]
    rows = judge_chunks(still, short, [2, 100])
    assert rows[2] == rows[100]
    assert len(rows[2]) == 3
    still.ruined_from = 50
    worse = judge_chunks(still, short, [2, 100])
    assert worse[2] == rows[2]
    assert worse[100][0]["background_psnr"] < rows[100][0]["background_psnr"]
    with pytest.raises(UsageError, match="only even ones"):
        judge_chunks(still, short, [2, 7])


def _first(edit: Any, count: int) -> Any:
    from dataclasses import replace

    return replace(edit, target=edit.target[:count], mask=edit.mask[:count])


def test_an_edit_laid_over_its_source_leaves_the_rest() -> None:
    """The left of both latents changed: their frames keep the source's right half bit for bit."""
    rng = np.random.default_rng(0)
    source, edited = (rng.integers(0, 256, (8, 64, 128, 3), np.uint8) for _ in range(2))
    importance = np.zeros((2, 8, 16), np.float32)
    importance[:, :, :4] = 1.0
    chunk = EditedChunk(
        index=0,
        first_frame=0,
        frames=edited,
        latent_rows=np.repeat(np.arange(2), 4),
        importance=importance,
        peak_change=1.0,
        kept=np.ones((2, 4, 8), np.bool_),
        num_kept=64,
        recovered=None,
    )
    out = laid_over(source, [chunk], edited, SoftMask())
    assert np.array_equal(out[:, :, :24], edited[:, :, :24])
    assert np.array_equal(out[:, :, 64:], source[:, :, 64:])


def test_there_and_back_loops() -> None:
    assert there_and_back(np.arange(3)).tolist() == [0, 1, 2, 2, 1, 0]


def test_figures_of_a_record() -> None:
    row = {"kind": "recolour", "done": True, "named_colour": True, "flicker": 2.0}
    row |= {"region_psnr": 20.0, "region_psnr_unedited": 9.0, "background_psnr_codec": 27.0}
    row |= {"background_psnr": 26.0, "flicker_codec": 1.0, "scene": 3, "instruction": "x"}
    other = {**row, "done": False, "named_colour": None, "background_psnr": float("inf")}
    figures = judged_record.stage_figures([row, other])
    assert figures["done"].value == 50
    assert figures["recolour.named_colour"].count == 1
    assert figures["gain"].value == 11
    assert figures["background_loss"].value == 1
    assert figures["flicker_ratio"].value == 2
    assert "scene" not in figures
