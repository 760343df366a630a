"""What the package brings along: a small editor bundle and a real clip."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def shipped(name: str) -> Path:
    """The path of ``tiny`` (a bundle) or ``clip.mp4``; licences are in ``LICENSES.md`` beside."""
    return Path(str(resources.files("liveedit.runtime") / "assets" / name))
