"""Runs that are killed, or whose disk or partner fails, lose nothing that was saved."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import CONFIG, random_scenes, start, start_two

from liveedit.cli import main
from liveedit.config import to_dict
from liveedit.distill.loop import read_metrics
from liveedit.distill.presets import PhaseConfig, TrainConfig, preset
from liveedit.distill.train import FlowTrainer
from liveedit.distill.watch import Watch
from liveedit.errors import CheckpointError, LiveEditError


def command(folder: Path, out: Path) -> None:
    """In a process: the real command."""
    torch.set_num_threads(1)
    fsync = os.fsync

    def slow_fsync(file: int) -> None:
        time.sleep(0.03)  # so that some kills hit a save
        fsync(file)

    os.fsync = slow_fsync
    options = ["--config", folder / "config.json", "--scenes", folder / "scenes", "--out", out]
    status = main(["train", "causal", *map(str, options), "--threads", "1"])
    os._exit(status)


def _saved(run: Path) -> int:
    """A number that changes with every save."""
    path = run / "latest.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_and_resume(folder: Path, config: TrainConfig, kills: int) -> None:
    """A run killed again and again ends with the weights of an unbroken one."""
    random_scenes(folder / "scenes")
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    whole, broken = folder / "whole", folder / "broken"
    unbroken = start(command, folder, whole)
    unbroken.join(timeout=600)
    assert unbroken.exitcode == 0
    rng, killed, during_save = random.Random(0), 0, 0
    for kill in range(kills):
        process = start(command, folder, broken)
        saves, last_save = rng.randint(1, 4), _saved(broken)
        while process.is_alive():
            time.sleep(0.002)  # the run needs the core
            if saves and (now := _saved(broken)) != last_save:
                saves, last_save = saves - 1, now
                if not saves:
                    time.sleep(rng.uniform(0.0, 0.1))
            writing = broken.exists() and any(broken.glob("*.partial"))
            if not saves and (writing or kill % 2):
                process.kill()
                killed += 1
                during_save += writing
                break
        process.join()
        torch.load(broken / "latest.pt", weights_only=True)
    last = start(command, folder, broken)
    last.join(timeout=600)
    assert last.exitcode == 0
    assert killed >= 2
    assert during_save
    states = [torch.load(run / "latest.pt", weights_only=True) for run in (whole, broken)]
    assert states[0]["step"] == states[1]["step"] == config.total_steps
    for part in ("dit", "text"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
            assert torch.equal(states[0]["ema"][part][name], states[1]["ema"][part][name]), name
    assert states[0]["rng"] == states[1]["rng"]
    rows = [[row["step"] for row in read_metrics(run)] for run in (whole, broken)]
    assert set(rows[1]) <= set(rows[0])
    assert rows[1] == sorted(set(rows[1]))
    assert not list(broken.glob(".*partial"))


def test_killed_runs_end_alike_bit_for_bit(tmp_path: Path) -> None:
    phases = (
        PhaseConfig(steps=14, num_latent_frames=1, batch_size=4, crop_columns=2),
        PhaseConfig(steps=10, num_latent_frames=2, batch_size=2),
    )
    config = replace(CONFIG, phases=phases, save_every=1)
    kill_and_resume(tmp_path, config, kills=5)


@pytest.mark.slow
def test_killed_tiny_runs_end_alike_bit_for_bit(tmp_path: Path) -> None:
    smoke = preset("tiny-smoke-causal")
    phases = tuple(replace(p, crop_columns=0, num_latent_frames=3) for p in smoke.phases)
    kill_and_resume(tmp_path, replace(smoke, phases=phases, save_every=2), kills=4)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = FlowTrainer(CONFIG, tmp_path)
    trainer.save()
    before = trainer.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot save .*: File too large; .* as it was"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert trainer.path.read_bytes() == before
    assert not list(tmp_path.glob(".*partial"))


def test_gradients_that_are_not_finite_leave_the_weights(tmp_path: Path) -> None:
    trainer = FlowTrainer(CONFIG, tmp_path / "run")
    trainer.open_scenes(random_scenes(tmp_path / "scenes"))
    before = {name: value.clone() for name, value in trainer.editor.state_dict().items()}
    trainer.editor.dit.head.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(LiveEditError, match=r"gradients became (nan|inf) at step 0, in clips of"):
        trainer.train_step()
    assert all(torch.equal(v, before[n]) for n, v in trainer.editor.state_dict().items())


def fail_at_step_six(folder: Path, how: str) -> None:
    """In each of two processes; the second fails."""
    trainer = FlowTrainer(CONFIG, folder / how)
    rank = trainer.processes.rank
    trainer.open_scenes(folder / "scenes")
    try:
        for step in range(20):
            if step == 6 and rank == 1:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise LiveEditError("the second one's scenes are gone")
            trainer.train_step()
            if trainer.step == 5:
                trainer.save()
    finally:
        (folder / f"{how}-{rank}-stopped").touch()


def told(folder: Path, how: str) -> None:
    """The same, with stderr in a file."""
    log = os.open(folder / f"{how}-{os.environ['RANK']}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 2)
    fail_at_step_six(folder, how)


def test_the_others_stop_with_the_message_of_the_one_that_fails(tmp_path: Path) -> None:
    random_scenes(tmp_path / "scenes")
    pairs = {how: start_two(told, tmp_path, how) for how in ("raised", "killed")}
    for pair in pairs.values():
        for process in pair:
            process.join(timeout=200)
            assert process.exitcode is not None, "a process hangs"
    assert [p.exitcode for p in pairs["killed"]] == [1, -signal.SIGKILL]
    assert [p.exitcode for p in pairs["raised"]] == [1, 1]
    messages = {how: (tmp_path / f"{how}-0.log").read_text() for how in pairs}
    assert "process 1 failed: the second one's scenes are gone. The last" in messages["raised"]
    assert "process 1 was killed, or its machine is gone. The last" in messages["killed"]
    for how in pairs:
        again = FlowTrainer(CONFIG, tmp_path / how)
        again.resume()
        assert again.step == 5


def stay_until_the_store_is_gone() -> None:
    """In each of two processes: the second comes to its end when the first, the host, has left."""
    if os.environ["RANK"] == "0":
        return
    stop = Watch._stop

    def late(watch: Watch) -> None:
        patience = time.monotonic() + 60
        with suppress(RuntimeError):
            while time.monotonic() < patience:
                watch.store.check(["anything"])
                time.sleep(0.05)
        assert time.monotonic() < patience
        stop(watch)

    Watch._stop = late  # type: ignore[method-assign]


def test_the_last_to_leave_needs_nobody() -> None:
    processes = start_two(stay_until_the_store_is_gone)
    for process in processes:
        process.join(timeout=90)
    assert [p.exitcode for p in processes] == [0, 0]
