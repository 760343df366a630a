"""Train the editor: `liveedit train causal --preset tiny --scenes FOLDER --out FOLDER`."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor, nn

from liveedit.config import ModelConfig, from_dict, named_config, to_dict
from liveedit.distill.batches import draw_batch
from liveedit.distill.checkpoint import Ema, load_state, restore_rng, rng_state, save_state
from liveedit.distill.latents import LatentScene, load_scene, scene_names
from liveedit.distill.presets import PRESETS, TrainConfig, preset
from liveedit.distill.stages import Draws, flow_loss
from liveedit.distill.tokenizer import encode_prompts, train_tokenizer
from liveedit.errors import CheckpointError, LiveEditError, UsageError
from liveedit.models.dit import CausalWanDiT
from liveedit.models.umt5 import UMT5Encoder


class Editor(nn.Module):
    """The DiT and its text encoder, trained together."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.dit = CausalWanDiT(model.dit)
        self.text = UMT5Encoder(model.text)
        # The first guess of every velocity is zero.
        nn.init.zeros_(self.dit.head.head.weight)
        if self.dit.head.head.bias is not None:
            nn.init.zeros_(self.dit.head.head.bias)

    def embed(self, tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
        """[B, text_len, text_dim], zero rows after each prompt."""
        ids, mask = encode_prompts(tokenizer, prompts, self.dit.config.text_len)
        out: Tensor = self.text(torch.from_numpy(ids), torch.from_numpy(mask))
        return out


class Trainer:
    """One stage's run: networks, optimizer, random state, and the step reached."""

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.config, self.out = config, out
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        for phase in config.phases:
            if phase.batch_size % self.world:
                raise UsageError(
                    f"batch_size {phase.batch_size} does not divide among {self.world} processes; "
                    "use a multiple"
                )
        out.mkdir(parents=True, exist_ok=True)
        self.model, self.stream = named_config(config.model)
        torch.manual_seed(config.seed)
        self.editor = Editor(self.model)
        self.ema = Ema(self.editor, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.editor.parameters(),
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.torch_rng = torch.Generator().manual_seed(config.seed)
        self.numpy_rng = np.random.default_rng(config.seed)
        self.tokenizer = train_tokenizer()
        if self.rank == 0:
            self.tokenizer.save(str(out / "tokenizer.json"))
        self.step = 0
        self.known: dict[str, LatentScene] = {}

    @property
    def path(self) -> Path:
        return self.out / "latest.pt"

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on. `dit`, `text`, `ema` alone make an editor."""
        return {
            "stage": self.config.stage,
            "step": self.step,
            "config": to_dict(self.config),
            "dit": self.editor.dit.state_dict(),
            "text": self.editor.text.state_dict(),
            "ema": {
                part: {
                    name.removeprefix(f"{part}."): value
                    for name, value in self.ema.state.items()
                    if name.startswith(f"{part}.")
                }
                for part in ("dit", "text")
            },
            "optimizer": self.optimizer.state_dict(),
            "rng": rng_state(self.torch_rng, self.numpy_rng),
        }

    def save(self) -> None:
        if self.rank == 0:
            save_state(self.path, self.state())

    def compile(self) -> None:
        """Fuse the DiT's blocks; one compilation per phase, kept in torch's own disk cache."""
        for block in self.editor.dit.blocks:
            block.compile(dynamic=False)

    def start_from(self, path: Path) -> None:
        """Take the weights (their mean, not the raw ones) of another run as the start."""
        state = load_state(path)
        self._load_weights(state["ema"], path)
        self.ema = Ema(self.editor, self.config.ema)

    def resume(self) -> None:
        """Continue a run exactly where its last save was.

        Raises:
            CheckpointError: it belongs to another stage or other networks.
        """
        state = load_state(self.path)
        if state["stage"] != self.config.stage:
            raise CheckpointError(
                f"{self.path} is a {state['stage']} run, this is {self.config.stage}; use another "
                "--out, or --init to start from its weights"
            )
        self._load_weights(state, self.path)
        self.ema.state = {
            f"{part}.{name}": value
            for part in ("dit", "text")
            for name, value in state["ema"][part].items()
        }
        self.optimizer.load_state_dict(state["optimizer"])
        restore_rng(state["rng"], self.torch_rng, self.numpy_rng)
        self.step = state["step"]

    def _load_weights(self, parts: dict[str, Any], path: Path) -> None:
        try:
            self.editor.dit.load_state_dict(parts["dit"])
            self.editor.text.load_state_dict(parts["text"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit model {self.config.model!r}: {error}"
            ) from None

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

    def train_step(self, scenes: list[LatentScene]) -> dict[str, float]:
        """One update. Returns the step's figures.

        Raises:
            LiveEditError: the loss is not finite; the last save is intact.
        """
        config = self.config
        phase = config.phase_at(self.step)
        block = self.stream.num_frame_per_block
        batch = draw_batch(scenes, self.numpy_rng, config, phase, block)
        batch = batch.share(self.rank, self.world)
        embeds = self.editor.embed(self.tokenizer, batch.prompts)
        loss, log = flow_loss(
            self.editor.dit,
            embeds,
            batch,
            config,
            phase,
            self.stream,
            Draws(self.torch_rng, self.rank, self.world),
        )
        log = self._mean({"loss": loss.item(), **log})
        if not math.isfinite(log["loss"]):
            raise LiveEditError(
                f"the loss became {log['loss']} at step {self.step} (prompts: "
                f"{'; '.join(batch.prompts[:3])}); {self.path} still holds the last good state"
            )
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._reduce_gradients()
        norm = nn.utils.clip_grad_norm_(self.editor.parameters(), config.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.editor, self.step)
        return {"grad_norm": float(norm), "lr": rate, **log}

    def load_scenes(self, folder: Path) -> list[LatentScene]:
        """The folder's scenes as the first process sees them; known ones are not read again."""
        listed: list[Any] = [scene_names(folder) if self.rank == 0 else None]
        if self.world > 1:
            dist.broadcast_object_list(listed)
        self.known = {n: self.known.get(n) or load_scene(folder / n) for n in listed[0]}
        return list(self.known.values())

    def time_is_over(self, mine: bool) -> bool:
        """Whether any process says so: all must stop at the same step."""
        return self._mean({"over": float(mine)})["over"] > 0 if self.world > 1 else mine

    def _mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Mean over the processes, so that all of them see a failure of one."""
        if self.world == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(figures, (values / self.world).tolist(), strict=True))

    def _reduce_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in self.editor.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for g, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(mean.view_as(g))


def run(trainer: Trainer, scenes_dir: Path, max_seconds: float, log_every: int = 20) -> None:
    """Train to the end of the configuration, or until the time is over; then save."""
    config = trainer.config
    scenes = trainer.load_scenes(scenes_dir)
    started = time.monotonic()
    sums: dict[str, float] = {}
    window_start, window_steps = started, 0
    with (trainer.out / "metrics.jsonl").open("a") as metrics:
        while trainer.step < config.total_steps:
            if trainer.time_is_over(time.monotonic() - started > max_seconds):
                break
            for name, value in trainer.train_step(scenes).items():
                sums[name] = sums.get(name, 0.0) + value
            window_steps += 1
            if trainer.step % log_every == 0 and trainer.rank == 0:
                now = time.monotonic()
                row = {name: value / window_steps for name, value in sums.items()}
                row["s_per_step"] = (now - window_start) / window_steps
                metrics.write(json.dumps({"step": trainer.step, **row}) + "\n")
                metrics.flush()
                print(
                    f"step {trainer.step}/{config.total_steps}  loss {row['loss']:.4f}  inside "
                    f"{row['inside']:.4f}  outside {row['outside']:.4f}  lr {row['lr']:.1e}  "
                    f"{row['s_per_step']:.2f} s/step  {now - started:.0f} s",
                    flush=True,
                )
                sums, window_start, window_steps = {}, now, 0
            if trainer.step % config.save_every == 0:
                trainer.save()
                scenes = trainer.load_scenes(scenes_dir)  # the encoder may still be adding some
    trainer.save()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=("foundation", "causal"))
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--preset", default="tiny", help=f"one of {', '.join(sorted(PRESETS))}")
    group.add_argument("--config", type=Path, help="JSON file instead of a preset")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of coded scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--init", type=Path, help="checkpoint of an earlier stage to start from")
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
        config = preset(options.preset)
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


def main(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    trainer = Trainer(read_config(options), options.out)
    if trainer.path.exists():
        trainer.resume()
        print(f"resumed {trainer.path} at step {trainer.step}", flush=True)
    elif options.init:
        trainer.start_from(options.init)
    if options.compile:
        trainer.compile()
    run(trainer, options.scenes, options.max_seconds)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    raise SystemExit(main(parser.parse_args()))
