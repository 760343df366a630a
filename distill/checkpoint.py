"""Training state on disk: written whole or not at all, and resumed bit for bit."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liveedit.errors import CheckpointError

_PARTIAL = ".partial"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Atomic: a reader, or a run after a kill, sees the old file or the new one.

    Raises:
        CheckpointError: the disk does not take it; the old file is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        kept = f"{path} is as it was" if path.exists() else "nothing was saved before"
        raise CheckpointError(
            f"cannot save {path}: {_reason(error)}; {kept}. Make room, then run the same command"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Delete what killed runs left of checkpoints they were writing."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """What the system said, under what torch made of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


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
