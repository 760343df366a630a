"""Training state on disk: written whole or not at all, and resumed bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liveedit.errors import CheckpointError


class Ema:
    """Running mean of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: p.detach().clone() for name, p in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        # A young mean forgets its random start sooner.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in module.state_dict().items():
            self.state[name].lerp_(p, 1 - decay)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Atomic: a reader, or a run after a kill, sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state without running any code in it.

    Raises:
        CheckpointError: the file cannot be read as one.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except Exception as error:
        raise CheckpointError(
            f"{path} is no training checkpoint ({error.__class__.__name__}); "
            "delete it, or point --out at another folder"
        ) from None
    return state


def rng_state(torch_rng: torch.Generator, numpy_rng: np.random.Generator) -> dict[str, Any]:
    return {"torch": torch_rng.get_state(), "numpy": _plain(numpy_rng.bit_generator.state)}


def restore_rng(
    state: dict[str, Any], torch_rng: torch.Generator, numpy_rng: np.random.Generator
) -> None:
    saved: Tensor = state["torch"]
    torch_rng.set_state(saved)
    numpy_rng.bit_generator.state = _integers(state["numpy"])


def _plain(value: Any) -> Any:
    """128-bit integers as text: the safe loader knows none."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return f"#{value}" if isinstance(value, int) else value


def _integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _integers(v) for k, v in value.items()}
    return int(value[1:]) if isinstance(value, str) and value.startswith("#") else value
