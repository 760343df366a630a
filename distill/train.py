"""Train the editor: `liveedit train causal --scenes FOLDER --init CHECKPOINT --out FOLDER`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from liveedit.config import from_dict, to_dict
from liveedit.distill.batches import Batch
from liveedit.distill.dmd_trainer import DmdTrainer
from liveedit.distill.editor import by_part, joined, load_mean_weights, weights_of
from liveedit.distill.encode import load_codec
from liveedit.distill.loop import run
from liveedit.distill.pairs import read_pairs
from liveedit.distill.pictures import Pictures
from liveedit.distill.presets import PRESETS, Stage, TrainConfig, preset
from liveedit.distill.probes import Probes
from liveedit.distill.stages import Push, flow_loss, guidance_push
from liveedit.distill.teacher import Teacher
from liveedit.distill.trainer import Trainer
from liveedit.distill.training_data import coded_pairs, coded_scenes
from liveedit.distill.watch import together
from liveedit.errors import UsageError
from liveedit.export.checkpoints import load_wan_base


class FlowTrainer(Trainer):
    """The stages that learn the velocity of noised targets: foundation and causal.

    Args:
        teacher: checkpoint of a foundation run, whose guidance is learnt.

    Raises:
        CheckpointError: the teacher is of another stage or of other networks.
        UsageError: guidance without a teacher, or the other way round, or one that cannot guide.
    """

    def __init__(self, config: TrainConfig, out: Path, teacher: Path | None = None) -> None:
        super().__init__(config, out)
        self.teacher = self._guide(teacher) if teacher or config.guidance else None
        self.editor = self.new_editor()
        self.editor.train_text(config.train_text)
        self.learner = self.new_learner(self.editor, config.lr, config.ema)
        self.probes = Probes(self.model.dit).to(self.processes.device) if config.probed else None
        self.prober = self.new_learner(self.probes, config.lr) if self.probes else None

    def _guide(self, path: Path | None) -> Teacher:
        config = self.config
        if path is None or not config.guidance:
            raise UsageError(
                f"guidance {config.guidance:g} of stage {config.stage} "
                + ("needs --teacher" if path is None else "asks for no --teacher")
                + ": latest.pt of a foundation run goes with guidance above 0"
            )
        teacher = Teacher(self.new_editor(), path)
        if teacher.taught.stage != "foundation" or not teacher.taught.drop_prompt:
            raise UsageError(
                f"--teacher {path} cannot guide: that takes a foundation run with drop_prompt "
                f"above 0, this is a {teacher.taught.stage} run with "
                f"{teacher.taught.drop_prompt:g}"
            )
        return teacher

    def state(self) -> dict[str, Any]:
        """`dit`, `text` and `ema` alone make an editor."""
        own = self.learner.state()
        weights, mean = own.pop("weights"), own.pop("ema")
        taught = self.teacher.state() if self.teacher else {}
        probes = {"probes": self.prober.state()} if self.prober else {}
        state = {**super().state(), **own, **by_part(weights), "ema": by_part(mean)}
        return {**state, **taught, **probes}

    def load(self, state: dict[str, Any]) -> None:
        if self.teacher:
            self.teacher.check(state, self.path)
        self.learner.load({**state, "weights": weights_of(state), "ema": joined(state["ema"])})
        if self.prober:
            self.prober.load(state["probes"])
        super().load(state)

    def compile(self) -> None:
        """Fuse the DiT's blocks; one compilation per phase, kept in torch's own disk cache."""
        for editor in (self.editor, self.teacher.editor) if self.teacher else (self.editor,):
            for block in editor.dit.blocks:
                block.compile(dynamic=False)

    def start_from(self, path: Path) -> None:
        """Take the weights (their mean, not the raw ones) of another run as the start.

        Raises:
            CheckpointError: they are of other networks, or of a distilled student.
        """
        stages = ("foundation", "causal")
        load_mean_weights(self.editor, path, stages=stages, option="--init")
        self.learner.restart_mean()

    def start_from_wan(self, folder: Path) -> None:
        """Take the base text-to-video model's weights, blind to the source, as the start.

        Raises:
            CheckpointError: the folder's DiT is not the one that the configuration names.
        """
        self.editor.dit.load_state_dict(load_wan_base(folder, self.model.dit))
        self.learner.restart_mean()

    def train_step(self) -> dict[str, float]:
        """One update. Returns the step's figures.

        Raises:
            LiveEditError: the loss or its gradient is not finite; the last save is intact.
        """
        phase, rate = self.config.phase_at(self.step), self.learning_rate()
        parts, losses, logs = self.draw(), [], []
        for part in parts:
            embeds = self.editor.embed(self.tokenizer, part.prompts)
            loss, log = flow_loss(
                self.editor.dit,
                embeds,
                part,
                self.config,
                phase,
                self.stream,
                push=self._push(part),
                probes=self.probes,
            )
            (loss / len(parts)).backward()
            losses.append(loss)
            logs.append(log)
        figures = self.settle(parts, losses, logs)
        norm = self.learner.update(rate, lambda: self.where(parts))
        if self.prober:
            self.prober.update(rate, lambda: self.where(parts))
        self.step += 1
        return {**figures, "grad_norm": norm, "lr": rate}

    def _push(self, batch: Batch) -> Push | None:
        """The teacher's, of clips that have one noise level and no past."""
        if self.teacher is None or batch.target.shape[2] > self.stream.num_frame_per_block:
            return None
        editor = self.teacher.editor
        with torch.no_grad():
            embeds = editor.embed(self.tokenizer, batch.prompts)
            no_words = editor.embed(self.tokenizer, [""]).expand_as(embeds)
        return guidance_push(editor.dit, embeds, no_words, batch, self.config.guidance)


def add_arguments(parser: argparse.ArgumentParser, stage: Stage) -> None:
    """The options of one stage."""
    names = ", ".join(sorted(n for n, c in PRESETS.items() if stage in (c.stage, n)))
    what = parser.add_argument_group("what to train").add_mutually_exclusive_group()
    what.add_argument("--preset", help=f"default tiny-{stage}; for this stage: {names}")
    what.add_argument("--config", type=Path, help="JSON file instead of a preset")
    if stage == "causal":
        parser.add_argument(
            "--forcing",
            choices=("released", "teacher_forcing"),
            help="instead of the preset's: every block noised by itself, or after clean blocks",
        )
    data = parser.add_argument_group("data")
    one = data.add_mutually_exclusive_group(required=True)
    one.add_argument("--scenes", type=Path, metavar="DIR", help="coded scenes, ready to train on")
    one.add_argument(
        "--data",
        type=Path,
        metavar="LIST",
        help="JSON list of {source_path, edited_path, instruction}; see docs/data.md",
    )
    data.add_argument(
        "--cache", type=Path, metavar="DIR", help="coded clips of --data; default LIST.cache"
    )
    data.add_argument(
        "--codec",
        type=Path,
        metavar="FILE",
        help="patch codec: codes --data, and decodes the sample grids of a run",
    )
    data.add_argument(
        "--wan",
        type=Path,
        metavar="DIR",
        help="Wan2.1-T2V-1.3B folder: codes --data"
        + (", and its DiT is the start" if stage == "foundation" else ""),
    )
    start = parser.add_argument_group("start")
    before = {"foundation": "foundation", "causal": "foundation", "dmd": "causal"}[stage]
    start.add_argument(
        "--init", type=Path, metavar="FILE", help=f"latest.pt of a {before} run, to start from"
    )
    if stage != "foundation":
        start.add_argument(
            "--teacher",
            type=Path,
            metavar="FILE",
            help="latest.pt of a foundation run; "
            + ("needed" if stage == "dmd" else "for a configuration with guidance"),
        )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the run; resumed if it is there"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--compile", action="store_true", help="faster steps, needs a C++ compiler")
    parser.add_argument(
        "--max-seconds", type=float, default=math.inf, metavar="S", help="then save"
    )
    parser.set_defaults(stage=stage)


def read_config(options: argparse.Namespace) -> TrainConfig:
    """The configuration of the command line.

    Raises:
        UsageError: unknown preset, unreadable file, or a value that is not allowed.
    """
    if options.config is None:
        config = preset(options.preset or f"tiny-{options.stage}")
    else:
        try:
            data = json.loads(options.config.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {options.config}: {error}") from None
        config = from_dict(TrainConfig, data)
    changes = {"stage": options.stage}
    if getattr(options, "forcing", None):
        changes["forcing"] = options.forcing
    return from_dict(TrainConfig, {**to_dict(config), **changes})


def new_trainer(config: TrainConfig, options: argparse.Namespace) -> FlowTrainer | DmdTrainer:
    """The stage's trainer: where its run in ``--out`` was, or at its start.

    Raises:
        UsageError: a run begins, and the weights to start from are not named.
        CheckpointError: a file is of another stage or of other networks.
    """
    trainer: FlowTrainer | DmdTrainer
    if config.stage == "dmd":
        if options.teacher is None:
            raise UsageError("stage dmd needs --teacher: latest.pt of a foundation run")
        trainer = DmdTrainer(config, options.out, options.teacher)
    else:
        trainer = FlowTrainer(config, options.out, getattr(options, "teacher", None))
    if trainer.path.exists():
        trainer.resume()
        if trainer.processes.first:
            print(f"resumed {trainer.path} at step {trainer.step}", flush=True)
    elif options.init:
        trainer.start_from(options.init)
    elif config.stage == "dmd":
        raise UsageError("stage dmd needs --init: latest.pt of a causal run, the student's start")
    elif isinstance(trainer, FlowTrainer) and config.cached_text:
        if options.wan is None or config.stage != "foundation":
            raise UsageError(
                f"{config.model} is too large to start from nothing: stage foundation needs --wan, "
                "the Wan2.1-T2V-1.3B folder, and stage causal --init, latest.pt of foundation"
            )
        trainer.start_from_wan(options.wan)
    return trainer


def main(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    config = read_config(options)
    pairs = read_pairs(options.data) if options.data else []
    with together(alone=config.parallel == "shard") as processes:
        if pairs:
            cache = options.cache or options.data.with_suffix(".cache")
            data = coded_pairs(config, processes, pairs, cache, options.codec, options.wan)
        else:
            data = coded_scenes(config, options.scenes)
        trainer = new_trainer(config, options)
        if options.compile:
            trainer.compile()
        data.open(trainer)
        decodes = options.codec is not None and trainer.model.patch is not None
        codec = load_codec(options.codec, config.model) if decodes else None
        run(trainer, options.max_seconds, config.log_every, Pictures(trainer, codec).draw)
    return 0


if __name__ == "__main__":  # as `liveedit train`, for whoever starts modules
    from liveedit.cli import main as command

    raise SystemExit(command(["train", *sys.argv[1:]]))
