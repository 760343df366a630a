from __future__ import annotations

from pathlib import Path

import pytest
from engine_bundles import write_bundle
from engine_graphs import step_model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with one stand-in DiT step of 2 blocks."""
    return write_bundle(tmp_path / "bundle", {"dit_step": step_model()})
