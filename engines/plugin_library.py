"""Which implementation of the custom operators a build or a plan uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import liveedit
from liveedit.bundle import sha256_file
from liveedit.engines.plan import PluginLibrary

LIBRARY = "libliveedit_plugins.so"
OPERATORS = frozenset({"MaskCacheGather", "MaskCacheScatter"})


@dataclass(frozen=True, kw_only=True)
class PluginChoice:
    """An implementation and where it lies; loaded by this absolute path only."""

    identity: PluginLibrary
    path: Path


def find_plugins() -> PluginChoice | None:
    """The C++ library of this installation, else the Python classes, else None."""
    package = Path(liveedit.__file__).parent
    library = package / "runtime" / LIBRARY
    if library.is_file():
        return _choice("library", library)
    classes = package / "engines" / "python_plugins.py"
    return _choice("python", classes) if classes.is_file() else None


def _choice(kind: Literal["library", "python"], path: Path) -> PluginChoice:
    return PluginChoice(
        identity=PluginLibrary(kind=kind, sha256=sha256_file(path)), path=path.resolve()
    )
