"""What every stage's trainer has: its data position, random state, step, and checkpoint file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liveedit.config import named_config, to_dict
from liveedit.distill.batches import Batch, draw_batch
from liveedit.distill.checkpoint import (
    load_state,
    remove_partials,
    restore_rng,
    rng_state,
    save_state,
)
from liveedit.distill.editor import Editor
from liveedit.distill.latents import LatentScene, SceneFolder, scene_names
from liveedit.distill.learner import Learner
from liveedit.distill.parallel import Processes, shard
from liveedit.distill.presets import TrainConfig
from liveedit.distill.text_cache import TextCache
from liveedit.distill.tokenizer import train_tokenizer
from liveedit.errors import CheckpointError, LiveEditError, UsageError


class Trainer:
    """One stage's run. A stage adds its learners, ``train_step`` and their part of the state.

    The processes of a run draw the same whole batches; each trains on its own rows.
    """

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.processes = Processes()
        for phase in config.phases:
            share, over = divmod(phase.batch_size, self.processes.world)
            if over:
                raise UsageError(
                    f"batch_size {phase.batch_size} does not divide among {self.processes.world} "
                    "processes; use a multiple"
                )
            if config.micro_batch_size and share % config.micro_batch_size:
                raise UsageError(
                    f"a process's share of {share} clips does not divide into parts of "
                    f"micro_batch_size {config.micro_batch_size}"
                )
        out.mkdir(parents=True, exist_ok=True)
        self.model, self.stream = named_config(config.model)
        self.rng = np.random.default_rng(config.seed)
        self.tokenizer = train_tokenizer()
        if self.processes.first:
            remove_partials(out)
            self.tokenizer.save(str(out / "tokenizer.json"))
        self.step = 0
        self.scenes: Sequence[LatentScene] = ()
        self.texts = TextCache(self.model.dit.text_len)
        self._wanted: list[str] | None = None

    @property
    def path(self) -> Path:
        return self.out / "latest.pt"

    @property
    def total_steps(self) -> int:
        return self.config.total_steps

    @property
    def save_every(self) -> int:
        return self.config.save_every

    def new_editor(self) -> Editor:
        """The networks with the seed's random weights, alike on every process, or sharded.

        With remembered texts they are too large for that, and wait for the weights of a file.
        """
        config = self.config
        torch.manual_seed(config.seed)
        with torch.device("meta" if config.cached_text else self.processes.device):
            editor = Editor(self.model, self.texts if config.cached_text else None)
        editor.dit.gradient_checkpointing = config.gradient_checkpointing
        if config.parallel == "shard":
            shard(editor.dit, editor.dit.blocks, config.precision)
            if editor.text is not None:
                shard(editor.text, (), config.precision)
        return editor.to_empty(device=self.processes.device) if config.cached_text else editor

    def new_learner(self, module: nn.Module, lr: float, ema: float = 0.0) -> Learner:
        """What updates a network of this run.

        Args:
            ema: decay of its running mean; 0 keeps none.
        """
        config = self.config
        return Learner(
            module,
            self.processes,
            lr=lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            ema=ema,
        )

    # Data.

    def open_scenes(self, folder: Path, names: list[str] | None = None) -> None:
        """Train on a folder of coded scenes, as the first process sees it.

        A resumed run goes on with the scenes it had; later ones join at its next save.

        Args:
            names: the scenes of a list; None takes all there are, and those added later.

        Raises:
            UsageError: there are none, or some that a resumed run had are gone.
        """
        self._wanted = names
        if isinstance(self.scenes, SceneFolder):  # resumed
            missing = [n for n in self.scenes.names if not (folder / n).exists()]
            if missing:
                raise UsageError(
                    f"{folder} lacks {len(missing)} scenes that this run trains on ({missing[0]}); "
                    "give the run's own folder, or another --out"
                )
            self.scenes = SceneFolder(folder, self.scenes.names)
        else:
            self.scenes = SceneFolder(folder, self._now(folder))

    def look_for_data(self) -> None:
        """Take up scenes that were added to the folder meanwhile."""
        if isinstance(self.scenes, SceneFolder):
            self.scenes.names = self._now(self.scenes.folder)

    def _now(self, folder: Path) -> list[str]:
        names = self._wanted
        if names is None and self.processes.first:
            names = scene_names(folder)
        return list(self.processes.from_first(names))

    def clips(self, count: int) -> list[LatentScene]:
        """The first scenes."""
        return [self.scenes[i] for i in range(min(count, len(self.scenes)))]

    def draw(self) -> list[Batch]:
        """This process's clips of the next step, in parts that fit the device's memory."""
        config, block = self.config, self.stream.num_frame_per_block
        whole = draw_batch(self.scenes, self.rng, config, config.phase_at(self.step), block)
        share = whole.share(self.processes.rank, self.processes.world)
        size = config.micro_batch_size or len(share.prompts)
        return [part.to(self.processes.device) for part in share.split(size)]

    def learning_rate(self) -> float:
        """Warm-up, then each phase goes linearly from where the last one ended to its own end."""
        rate, step = self.config.lr, self.step
        for phase in self.config.phases:
            end = rate if phase.lr_end is None else phase.lr_end
            if step < phase.steps:
                rate += (end - rate) * step / phase.steps
                break
            rate, step = end, step - phase.steps
        return rate * min(1.0, (self.step + 1) / self.config.warmup_steps)

    def settle(
        self, parts: Sequence[Batch], losses: Sequence[Tensor], logs: Sequence[dict[str, float]]
    ) -> dict[str, float]:
        """Mean figures of a step over its parts and the processes.

        Raises:
            LiveEditError: a loss is not finite, on whichever process; the last save is intact.
        """
        values = [float(loss.detach()) for loss in losses]
        rows = [{"loss": v, **log} for v, log in zip(values, logs, strict=True)]
        own = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        means = self.processes.mean(own)
        if not math.isfinite(means["loss"]):
            bad = [p for p, value in zip(parts, values, strict=True) if not math.isfinite(value)]
            raise LiveEditError(f"the loss became {means['loss']} {self.where(bad)}")
        return means

    def where(self, parts: Sequence[Batch]) -> str:
        """The step and these clips of all processes, for a message. Every process must call."""
        own = [
            f"{name} ({prompt!r})"
            for part in parts
            for name, prompt in zip(part.names, part.prompts, strict=True)
        ]
        named = [text for texts in self.processes.gather(own) for text in texts]
        shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if named[3:] else "")
        return f"at step {self.step}, in clips of {shown}. {self._last_good()}"

    def _last_good(self) -> str:
        if not self.path.exists():
            return "Nothing was saved yet; lower lr, or look at those clips"
        return f"{self.path} holds the last good state; lower lr, or look at those clips"

    # State.

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on. Stages add their networks."""
        names = self.scenes.names if isinstance(self.scenes, SceneFolder) else []
        return {
            "stage": self.config.stage,
            "step": self.step,
            "config": to_dict(self.config),
            "rng": rng_state(self.rng),
            "scenes": names,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a ``state``.

        Raises:
            KeyError, RuntimeError: it is of other networks.
        """
        restore_rng(state["rng"], self.rng)
        self.step = state["step"]
        if state["scenes"]:
            self.scenes = SceneFolder(Path(), state["scenes"])

    def save(self) -> None:
        """Write the checkpoint. Every process takes part.

        Raises:
            CheckpointError: the disk does not take it; the last one is as it was.
        """
        state = self.state()
        if self.processes.first:
            save_state(self.path, state)

    def resume(self) -> None:
        """Continue a run exactly where its last save was.

        Raises:
            CheckpointError: it belongs to another stage, other networks, or another program.
        """
        state = load_state(self.path)
        stage, model = state.get("stage"), state.get("config", {}).get("model")
        if stage != self.config.stage:
            raise CheckpointError(
                f"{self.path} is a {stage} run, this is {self.config.stage}; use another "
                "--out, or --init to start from its weights"
            )
        if model != self.config.model:
            raise CheckpointError(
                f"{self.path} is a run of model {model!r}, this is {self.config.model!r}; "
                "use another --out"
            )
        try:
            self.load(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} does not fit model {self.config.model!r} as it is now: {error}"
            ) from None
