"""Reads the tensors of a checkpoint without running its code and without copying its bytes.

The format is told from the first bytes, never from the name. Tensors are mapped: they take memory
when they are first touched, and their file must stay in place as long as they are used.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from liveedit.errors import CheckpointError

_ZIP = b"PK\x03\x04"
_INDEX_SUFFIX = ".safetensors.index.json"


def read_tensor_file(path: Path) -> dict[str, Any]:
    """The top-level mapping of a checkpoint: names to tensors or, in a .pt, to nested mappings.

    Args:
        path: a safetensors file, a folder of one safetensors file or of shards with their index,
            or a file written by torch.save.

    Raises:
        CheckpointError: missing, unreadable, truncated, of another kind, or holding code.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give the path of a downloaded checkpoint.")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    if start[8:] == b"{":
        return dict(_read_safetensors(path))
    return _read_torch(path, mapped=start[:4] == _ZIP)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({_first_line(error)}). Download it again."
        ) from None


def _read_folder(folder: Path) -> dict[str, Any]:
    indices = sorted(folder.glob(f"*{_INDEX_SUFFIX}"))
    if len(indices) > 1:
        raise CheckpointError(
            f"{folder} holds {len(indices)} indices ({', '.join(i.name for i in indices)}); "
            "expected one. Give the folder of one model."
        )
    if indices:
        return dict(_read_shards(folder, indices[0]))
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} holds {len(files)} safetensors files and no *{_INDEX_SUFFIX}; expected one "
            "file, or shards with their index. Give a file, or the folder of one model."
        )
    return dict(_read_safetensors(files[0]))


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        placed: Any = json.loads(index.read_bytes())["weight_map"]
        shards = sorted(set(placed.values()))
        outside = [name for name in shards if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not an index of safetensors shards ({_first_line(error)}). "
            "Download it again."
        ) from None
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}, which lies outside its folder.")
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {_some(absent)} of the {len(shards)} shards that {index.name} names. "
            "Download the missing ones."
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        found = _read_safetensors(folder / shard)
        wanted = {name for name, place in placed.items() if place == shard}
        if wrong := sorted(wanted ^ set(found)):
            raise CheckpointError(
                f"{folder / shard} and {index.name} disagree about {_some(wrong)}. "
                "Download both again."
            )
        tensors |= found
    return tensors


def _read_torch(path: Path, mapped: bool) -> dict[str, Any]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:?) (\S+)", str(error))
        if refused is None:
            raise _not_a_checkpoint(path, error) from None
        raise CheckpointError(
            f"{path} holds Python code ({refused[1]}), which is never loaded; only tensors are. "
            "Save its state dict alone with torch.save."
        ) from None
    except Exception as error:  # torch.load raises nearly anything on foreign bytes
        raise _not_a_checkpoint(path, error) from None
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(data).__name__}; expected a state dict. "
            "Save module.state_dict() with torch.save."
        )
    return dict(data)


def _not_a_checkpoint(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a complete checkpoint: neither torch.save nor safetensors can read it "
        f"({_first_line(error)}). Download it again."
    )


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {line}"[:160]


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
