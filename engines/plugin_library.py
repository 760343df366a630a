"""Which implementation of the custom operators a build or a plan uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from liveedit.bundle import sha256_file
from liveedit.engines import python_plugins
from liveedit.engines.plan import PluginLibrary
from liveedit.runtime.kernels import PLUGIN_LIBRARY, library_path

OPERATORS = frozenset(operator.name for operator in python_plugins.OPERATORS)


@dataclass(frozen=True, kw_only=True)
class PluginChoice:
    """An implementation and where it lies; loaded by this absolute path only."""

    identity: PluginLibrary
    path: Path


def find_plugins() -> PluginChoice:
    """The C++ library of this installation, else the Python classes."""
    library = library_path(PLUGIN_LIBRARY)
    if library is not None:
        return _choice("library", library)
    return _choice("python", Path(__file__).with_name("python_plugins.py"))


def _choice(kind: Literal["library", "python"], path: Path) -> PluginChoice:
    path = path.resolve()
    return PluginChoice(identity=PluginLibrary(kind=kind, sha256=sha256_file(path)), path=path)
