"""The native libraries, built once per session from the checkout by the project's own CMake."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from liveedit.runtime.kernels import HOST_LIBRARY, load_kernels

ROOT = Path(__file__).parents[2]


def cmake_build(build: Path, *options: str) -> Path:
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *options],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler")
    build = cmake_build(tmp_path_factory.mktemp("host"), "-DLIVEEDIT_PLUGINS=OFF")
    return load_kernels(build / HOST_LIBRARY)
