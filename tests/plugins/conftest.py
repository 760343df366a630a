"""The CUDA libraries, built once per session from the checkout by the project's own CMake."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from made_once import made_once
from native_libraries import cmake_build


@pytest.fixture(scope="session")
def cuda_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder of the CUDA libraries, for one architecture to save time."""
    if any(shutil.which(tool) is None for tool in ("cmake", "c++", "nvcc")):
        pytest.skip("no cmake, C++ compiler or nvcc")
    options = ["-DLIVEEDIT_PLUGINS=ON", "-DCMAKE_CUDA_ARCHITECTURES=89"]
    options += ["-DCMAKE_CUDA_FLAGS=-Xptxas -v"]  # registers and spills, for a test to read
    if headers := os.environ.get("TENSORRT_INCLUDE_DIR"):
        options.append(f"-DTENSORRT_INCLUDE_DIR={headers}")
    return made_once(tmp_path_factory, "cuda", lambda folder: cmake_build(folder, *options))
