"""The loop around every training stage: figures, saves, and when to stop."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from liveedit.distill.parallel import Processes


class Stage(Protocol):
    """What the loop asks of a trainer."""

    processes: Processes
    out: Path
    step: int

    @property
    def total_steps(self) -> int: ...

    @property
    def save_every(self) -> int: ...

    def train_step(self) -> dict[str, float]:
        """One step; ``step`` grows by one. Returns figures for the log, `loss` among them."""

    def look_for_data(self) -> None:
        """Take up scenes that were added meanwhile."""

    def save(self) -> None:
        """Write everything the next step depends on."""


class Metrics:
    """The means over windows of steps, as JSON lines in ``metrics.jsonl`` and on the terminal.

    Args:
        step: where the run starts; rows after it are of steps that were lost, and are dropped.
    """

    def __init__(self, out: Path, step: int, every: int) -> None:
        self.path, self.every = out / "metrics.jsonl", every
        kept = "".join(json.dumps(r) + "\n" for r in read_metrics(out) if r["step"] <= step)
        if self.path.exists() and self.path.read_text() != kept:
            self.path.write_text(kept)
        self.started = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.window_start, self.steps = time.monotonic(), 0

    def add(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Figures of one step. A figure may be missing in some steps."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.steps += 1
        if sys.stdout.isatty():
            done = int(30 * step / total)
            bar = f"[{'=' * done}{' ' * (30 - done)}] step {step}/{total}"
            print(f"\r{bar}  loss {figures.get('loss', math.nan):.4f}", end="", flush=True)
        if step % self.every:
            return
        now = time.monotonic()
        row = {name: value / self.counts[name] for name, value in self.sums.items()}
        row["s_per_step"] = (now - self.window_start) / self.steps
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        clear = "\r\x1b[K" if sys.stdout.isatty() else ""
        print(f"{clear}step {step}/{total}  {shown}  {now - self.started:.0f} s", flush=True)
        self._reset()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The rows of a run; a last line that a kill cut off is left out."""
    path = out / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def run(
    stage: Stage,
    max_seconds: float,
    log_every: int = 20,
    at_save: Callable[[], None] | None = None,
) -> None:
    """Train to the end of the configuration, or until the time is over; then save.

    Args:
        at_save: called on every process after each save, to draw pictures.
    """
    processes = stage.processes
    metrics = Metrics(stage.out, stage.step, log_every) if processes.first else None
    started = time.monotonic()

    def save() -> None:
        stage.save()
        if at_save is not None:
            at_save()

    saved = None
    while stage.step < stage.total_steps:
        if processes.any(time.monotonic() - started > max_seconds):
            break
        figures = stage.train_step()
        if metrics is not None:
            metrics.add(stage.step, stage.total_steps, figures)
        if stage.step % stage.save_every == 0:
            stage.look_for_data()  # before saving: the next step depends on what is there
            save()
            saved = stage.step
    if saved != stage.step:
        save()
