"""Training state on disk: written whole or not at all, and resumed bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liveedit.errors import CheckpointError


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
    """Read a state without running any code in it. Tensors stay mapped to the file until used,
    so that the processes of one machine share them.

    Raises:
        CheckpointError: the file cannot be read as one.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except Exception as error:
        raise CheckpointError(
            f"{path} is no training checkpoint ({error.__class__.__name__}); "
            "delete it, or point --out at another folder"
        ) from None
    return state


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The generator's state in types that the safe loader knows."""
    return dict(_plain(rng.bit_generator.state))


def restore_rng(state: dict[str, Any], rng: np.random.Generator) -> None:
    rng.bit_generator.state = _integers(state)


def _plain(value: Any) -> Any:
    """128-bit integers as text: the safe loader knows none."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return f"#{value}" if isinstance(value, int) else value


def _integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _integers(v) for k, v in value.items()}
    return int(value[1:]) if isinstance(value, str) and value.startswith("#") else value
