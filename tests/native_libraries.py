"""Where the tests find the native libraries of this checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOG = "build.txt"  # in a build folder: what the compilers said


def given(library: str) -> Path | None:
    """A library that was built before, in the folder LIVEEDIT_LIBRARIES."""
    folder = os.environ.get("LIVEEDIT_LIBRARIES")
    path = Path(folder).resolve() / library if folder else None
    return path if path and path.is_file() else None


def cmake_build(build: Path, *options: str) -> Path:
    """Configure and build. Leaves the output in ``build / LOG``."""
    output = ""
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *options],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        output += done.stdout + done.stderr
        assert done.returncode == 0, output
    (build / LOG).write_text(output)
    return build
