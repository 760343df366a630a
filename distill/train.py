"""Train the editor: `liveedit train causal --scenes FOLDER --init CHECKPOINT --out FOLDER`."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from liveedit.config import from_dict, to_dict
from liveedit.distill.dmd_trainer import DmdTrainer
from liveedit.distill.editor import by_part, joined, load_mean_weights
from liveedit.distill.learner import Learner
from liveedit.distill.loop import run
from liveedit.distill.parallel import join, leave
from liveedit.distill.presets import PRESETS, TrainConfig, preset
from liveedit.distill.stages import flow_loss
from liveedit.distill.trainer import Trainer
from liveedit.errors import UsageError


class FlowTrainer(Trainer):
    """The stages that learn the velocity of noised targets: foundation and causal."""

    def __init__(self, config: TrainConfig, out: Path) -> None:
        super().__init__(config, out)
        self.editor = self.new_editor()
        self.editor.text.requires_grad_(config.train_text)
        self.learner = Learner(
            self.editor,
            self.processes,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            ema=config.ema,
        )

    def state(self) -> dict[str, Any]:
        """`dit`, `text` and `ema` alone make an editor."""
        own = self.learner.state()
        weights, mean = own.pop("weights"), own.pop("ema")
        return {**super().state(), **own, **by_part(weights), "ema": by_part(mean)}

    def load(self, state: dict[str, Any]) -> None:
        weights = joined({"dit": state["dit"], "text": state["text"]})
        self.learner.load({**state, "weights": weights, "ema": joined(state["ema"])})
        super().load(state)

    def compile(self) -> None:
        """Fuse the DiT's blocks; one compilation per phase, kept in torch's own disk cache."""
        for block in self.editor.dit.blocks:
            block.compile(dynamic=False)

    def start_from(self, path: Path) -> None:
        """Take the weights (their mean, not the raw ones) of another run as the start.

        Raises:
            CheckpointError: they are of other networks, or of a distilled student.
        """
        stages = ("foundation", "causal")
        load_mean_weights(self.editor, path, stages=stages, option="--init")
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
            loss, log = flow_loss(self.editor.dit, embeds, part, self.config, phase, self.stream)
            (loss / len(parts)).backward()
            losses.append(loss)
            logs.append(log)
        figures = self.settle(parts, losses, logs)
        norm = self.learner.update(rate)
        self.step += 1
        return {**figures, "grad_norm": norm, "lr": rate}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=("foundation", "causal", "dmd"))
    group = parser.add_mutually_exclusive_group()
    names = ", ".join(sorted(PRESETS))
    group.add_argument("--preset", help=f"default tiny-STAGE; there are {names}")
    group.add_argument("--config", type=Path, help="JSON file instead of a preset")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of coded scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--init", type=Path, help="checkpoint of an earlier stage to start from")
    parser.add_argument("--teacher", type=Path, help="dmd: checkpoint of the foundation stage")
    parser.add_argument("--forcing", choices=("released", "teacher_forcing"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true", help="faster steps, needs a C++ compiler")
    parser.add_argument("--max-seconds", type=float, default=math.inf)


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
    if options.forcing:
        changes["forcing"] = options.forcing
    return from_dict(TrainConfig, {**to_dict(config), **changes})


def new_trainer(config: TrainConfig, options: argparse.Namespace) -> FlowTrainer | DmdTrainer:
    """The trainer of the command line's stage, at its start.

    Raises:
        UsageError: a checkpoint is missing on the command line, or one too many is there.
    """
    if config.stage != "dmd":
        if options.teacher:
            raise UsageError(f"--teacher is for stage dmd, not for {config.stage}")
        return FlowTrainer(config, options.out)
    if options.teacher is None:
        raise UsageError("stage dmd needs --teacher: latest.pt of a foundation run")
    trainer = DmdTrainer(config, options.out, options.teacher)
    if options.init is None and not trainer.path.exists():
        raise UsageError("stage dmd needs --init: latest.pt of a causal run, the student's start")
    return trainer


def main(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    config = read_config(options)
    join(alone=config.parallel == "shard")
    trainer = new_trainer(config, options)
    if trainer.path.exists():
        trainer.resume()
        print(f"resumed {trainer.path} at step {trainer.step}", flush=True)
    elif options.init:
        trainer.start_from(options.init)
    if options.compile:
        trainer.compile()
    trainer.open_scenes(options.scenes)
    run(trainer, options.max_seconds)
    leave()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    raise SystemExit(main(parser.parse_args()))
