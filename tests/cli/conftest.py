"""A bundle whose graphs do nothing: with the null backend every command runs in milliseconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from bundle_factory import make_manifest

from liveedit.bundle import add_files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    manifest = make_manifest(root)
    names = [graph.file for graph in manifest.graphs["fp32"].values()]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"graph " + name.encode())
    add_files(root, manifest, names)
    return root
