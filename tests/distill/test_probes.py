"""The auxiliary losses: what they read, where, and that they teach without being kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CONFIG, MODEL, STREAM, random_scenes
from torch import Tensor

from liveedit.config import TINY
from liveedit.distill.batches import Batch, draw_batch, rivals, told_colours
from liveedit.distill.editor import Editor
from liveedit.distill.latents import SceneFolder, scene_names
from liveedit.distill.objects import SHAPES
from liveedit.distill.palette import COLOURS
from liveedit.distill.phrases import RECOLOUR, pick
from liveedit.distill.presets import PhaseConfig, TrainConfig
from liveedit.distill.probes import Probes
from liveedit.distill.stages import edit_error, edit_weight, flow_loss
from liveedit.distill.tokenizer import train_tokenizer
from liveedit.distill.train import FlowTrainer
from liveedit.errors import UsageError
from liveedit.models.dit import CausalWanDiT

PHASE = PhaseConfig(steps=1, num_latent_frames=2, batch_size=3)
BALL = SHAPES.index("ball")


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    folder = random_scenes(tmp_path / "scenes")
    scenes = SceneFolder(folder, scene_names(folder))
    return draw_batch(scenes, np.random.default_rng(0), CONFIG, PHASE, 1)


def test_rivals_are_the_local_edits_of_the_scene() -> None:
    masks = np.zeros((4, 1, 1, 5), np.float32)
    masks[0, ..., 0] = masks[1, ..., 1] = 1.0
    masks[2, ..., 2] = 0.4
    masks[3] = 1.0
    edits = [
        {"kind": "recolour", "shape": "heart"},
        {"kind": "remove", "shape": "cross"},
        {"kind": "band", "shape": ""},
        {"kind": "global", "shape": ""},
    ]
    contested, shapes = rivals(edits, masks, 0)
    assert contested[0, 0].tolist() == pytest.approx([1, 1, 0.4, 0, 0])
    assert shapes[0, 0].tolist() == [SHAPES.index("heart"), SHAPES.index("cross"), -1, -1, -1]
    assert rivals(edits, masks, 3)[0].min() == 1
    assert masks[0].sum() == 1, "the masks are as they were"


def test_a_rival_counts_as_the_edit_does(batch: Batch) -> None:
    batch.mask.zero_()
    batch.contested.zero_()
    batch.mask[..., 0] = batch.contested[..., 0] = batch.contested[..., 1] = 1.0
    error = torch.zeros_like(batch.target)

    def loss(column: int) -> float:
        wrong = error.clone()
        wrong[..., column] = 1.0
        return float(edit_error(wrong, batch, CONFIG))

    assert loss(0) == pytest.approx(loss(1))
    assert loss(0) == pytest.approx((1 + CONFIG.edit_weight) * loss(2))
    lighter = edit_weight(batch, replace(CONFIG, edit_weight=8.0, rival=0.5, surround=0.5))
    assert lighter[0, 0, 0, 0].tolist() == [9, 5, 3, 2]


def test_cells_around_an_edit_count_by_the_surround(batch: Batch) -> None:
    batch.mask.zero_()
    batch.contested.zero_()
    batch.contested[:, :, 0, 0, 0] = 1.0
    weight = edit_weight(batch, replace(CONFIG, edit_weight=8.0, surround=0.5))
    assert weight[0, 0, 0, 0, :4].tolist() == [9, 5, 3, 1]
    assert weight[0, 0, 0, :4, 0].tolist() == [9, 5, 3, 1]
    assert float(weight[0, 0, 1:].max()) == 1, "other frames do not count"
    with pytest.raises(UsageError, match=r"surround must be between 0 and 1, got -0\.1"):
        replace(CONFIG, surround=-0.1)


def test_a_pseudo_huber_loss_decides_where_a_square_hedges(batch: Batch) -> None:
    """One clip of three shows the edit: a mean takes a third of it, a median none."""
    target = torch.zeros_like(batch.target)
    target[0] = 1.0
    batch.contested.fill_(1.0)
    guess = torch.full_like(target[:1], 0.5).requires_grad_()
    step = torch.optim.SGD([guess], lr=1.0)

    def settle(config: TrainConfig) -> float:
        for _ in range(300):
            step.zero_grad()
            (guess.numel() * edit_error((guess - target).square(), batch, config) / 10).backward()
            step.step()
        return float(guess.detach().mean())

    assert settle(replace(CONFIG, channel_weights=())) == pytest.approx(1 / 3, abs=0.01)
    assert settle(replace(CONFIG, channel_weights=(), pseudo_huber=0.01)) < 0.05
    with pytest.raises(UsageError, match="pseudo_huber must not be negative"):
        replace(CONFIG, pseudo_huber=-1.0)


def test_a_blind_probe_loses_what_chance_does(batch: Batch) -> None:
    batch.mask.copy_(batch.mask > 0.5)
    batch.shapes[0] = -1
    batch.shapes[1:] = BALL
    inner = [torch.randn(3, 8, MODEL.dit.dim) for _ in range(MODEL.dit.num_layers)]
    place, shape = Probes(MODEL.dit).losses(inner, batch, torch.ones_like(batch.mask))
    assert float(place.detach()) == pytest.approx(math.log(2))
    assert float(shape.detach()) == pytest.approx(math.log(len(SHAPES)) * 2 / 3)


def test_a_probe_reads_the_clip_and_not_its_context(batch: Batch) -> None:
    """Tokens that hold their own four cells: read at the right place, nothing is lost."""
    batch.mask.copy_(torch.rand_like(batch.mask) > 0.5)
    cells = batch.mask[:, 0].unflatten(2, (2, 2)).unflatten(4, (2, 2))  # [B, F, 2, 2, 2, 2]
    tokens = torch.zeros(3, 8, MODEL.dit.dim)
    tokens[..., :4] = cells.permute(0, 1, 2, 4, 3, 5).reshape(3, 8, 4)
    tokens[..., 4] = 1.0
    context = torch.full((3, 4, MODEL.dit.dim), 9.0)
    probes = Probes(MODEL.dit)
    with torch.no_grad():
        probes.place.weight[:, :4] = 40 * torch.eye(4)
        probes.place.weight[:, 4] = -20
    inner = [torch.cat((context, tokens), 1)] * MODEL.dit.num_layers
    even = torch.ones_like(batch.mask)
    assert probes.losses(inner, batch, even)[0] < 1e-6
    assert probes.losses([tokens.flip(1)] * MODEL.dit.num_layers, batch, even)[0] > 1


@pytest.mark.parametrize(
    ("kind", "new", "words", "expected"),
    [
        ("recolour", "white", "paint the red donut white", ("white", "red")),
        ("recolour", "white", "the donut should be white", ("white", "")),
        ("remove", "", "remove the red donut", ("", "red")),
        ("replace", "red", "turn the red donut into a star", ("", "red")),
        ("band", "white", "turn all red things white", ("white", "red")),
        ("global", "", "make it black and white", None),
        ("recolour", "white", "", None),
        ("pair", "", "turn the red box white", None),
    ],
)
def test_told_colours(kind: str, new: str, words: str, expected: tuple[str, str] | None) -> None:
    colours = {} if kind == "pair" else {"colour": "red", "new_colour": new}
    edit = {"kind": kind, **colours}
    names = (*COLOURS, "")
    indices = (-1, -1) if expected is None else tuple(names.index(name) for name in expected)
    assert told_colours(edit, words) == indices


def test_the_words_probe_reads_words_and_not_padding(batch: Batch) -> None:
    embeds = torch.zeros(3, 12, MODEL.dit.text_dim)
    embeds[:, 4, :2] = torch.tensor([5.0, 1.0])  # asks to be read, and says the second colour
    embeds[:, 5, :1] = -5.0  # padding lies between the two
    batch.colours[:] = torch.tensor([[1, -1], [1, -1], [-1, -1]])
    probes = Probes(MODEL.dit)
    names = len(COLOURS) + 1
    blind = probes.colours_lost(embeds, batch.colours).detach()
    assert float(blind) == pytest.approx(math.log(names) / 3)
    with torch.no_grad():
        probes.asked.weight[0, 0] = 10.0
        probes.words.weight[1, 1] = 20.0
        probes.words.bias[0] = 9.0  # what padding would say
    assert probes.colours_lost(embeds, batch.colours) < 1e-3
    nothing = probes.colours_lost(embeds, torch.full_like(batch.colours, -1))
    assert float(nothing.detach()) == 0
    nothing.backward()  # every process has gradients to exchange, whatever its clips
    assert probes.words.weight.grad is not None


def test_a_new_encoder_learns_the_order_of_words() -> None:
    """To a bag of words either colour may be the new one: log 2."""
    torch.manual_seed(0)
    rng, tokenizer = np.random.default_rng(0), train_tokenizer()
    editor, probes = Editor(TINY), Probes(TINY.dit)
    optimizer = torch.optim.AdamW(
        [*editor.text.parameters(), *probes.parameters()] if editor.text else [], lr=1e-3
    )

    def told(count: int) -> tuple[Tensor, Tensor]:
        words, colours = [], []
        for _ in range(count):
            old, new = rng.permutation(len(COLOURS))[:2]
            edit = {"kind": "recolour", "colour": COLOURS[old], "new_colour": COLOURS[new]}
            words.append(
                pick(rng, RECOLOUR).format(thing=f"{COLOURS[old]} box", colour=COLOURS[new])
            )
            colours.append(told_colours(edit, words[-1]))
        return editor.embed(tokenizer, words), torch.tensor(colours)

    for _ in range(80):
        loss = probes.colours_lost(*told(24))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert probes.colours_lost(*told(200)) < 0.1


def test_inner_tokens_carry_the_gradient_down_only(batch: Batch) -> None:
    dit, probes = CausalWanDiT(MODEL.dit), Probes(MODEL.dit)
    with torch.no_grad():
        probes.place.weight.normal_()
        dit.head.head.weight.zero_()  # the velocity itself teaches the blocks nothing
    config = replace(CONFIG, place_weight=1.0)
    loss, log = flow_loss(dit, torch.randn(3, 12, 16), batch, config, PHASE, STREAM, probes=probes)
    loss.backward()
    below, above = dit.blocks[0].ffn[0].weight.grad, dit.blocks[1].ffn[0].weight.grad
    assert below is not None
    assert below.abs().max() > 0
    assert above is None or above.abs().max() == 0
    assert log["place"] > 0
    assert probes.place.weight.grad is not None


def test_a_run_learns_shapes_and_keeps_no_probe_in_the_editor(tmp_path: Path) -> None:
    config = replace(CONFIG, shape_weight=1.0, phases=(replace(PHASE, steps=30),))
    trainer = FlowTrainer(config, tmp_path / "run")
    trainer.open_scenes(random_scenes(tmp_path / "scenes"))
    lost = [trainer.train_step()["shape"] for _ in range(30)]
    assert np.mean(lost[-5:]) < 0.3 * lost[0]  # every object is a ball
    trainer.save()
    again = FlowTrainer(config, tmp_path / "run")
    again.resume()
    assert trainer.probes is not None
    assert again.probes is not None
    for name, value in trainer.probes.state_dict().items():
        assert torch.equal(value, again.probes.state_dict()[name])
    plain = FlowTrainer(CONFIG, tmp_path / "plain")
    plain.start_from(trainer.path)
    assert not any("place" in name for name in trainer.editor.state_dict())


def test_the_third_stage_has_no_probes() -> None:
    with pytest.raises(UsageError, match="of stages foundation and causal"):
        replace(CONFIG, stage="dmd", place_weight=1.0)
