"""What CMake builds, and the Python side of the native libraries."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_libraries import LOG

from liveedit.errors import BackendError
from liveedit.runtime.kernels import (
    HOST_LIBRARY,
    KERNEL_LIBRARY,
    PLUGIN_LIBRARY,
    check_launch,
    library_path,
    load_kernels,
)

ROOT = Path(__file__).parents[2]
INVALID_VALUE = 1


def configure(tmp_path: Path, *options: str, path: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC", "CUDACXX")}
    return subprocess.run(
        [cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), *options],
        capture_output=True,
        text=True,
        env={**environment, "PATH": path},
    )


BUILD_TOOLS = ("make", "ninja", "ar", "ranlib", "ld", "as", "uname", "sh")


def path_with(folder: Path, *tools: str) -> str:
    """A PATH that holds these tools and nothing else."""
    folder.mkdir()
    for tool in tools:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


@pytest.mark.parametrize(
    ("option", "fails"), [("AUTO", False), ("ON", True)], ids=["optional", "required"]
)
@pytest.mark.parametrize(
    ("missing", "tools"),
    [("nvcc", (*BUILD_TOOLS, "c++")), ("C++ compiler", BUILD_TOOLS)],
    ids=["nvcc", "compiler"],
)
def test_what_is_missing_is_named(
    tmp_path: Path, option: str, fails: bool, missing: str, tools: tuple[str, ...]
) -> None:
    path = path_with(tmp_path / "bin", *tools)
    done = configure(tmp_path, f"-DLIVEEDIT_PLUGINS={option}", "-DCMAKE_CUDA_COMPILER=", path=path)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    if fails:
        said = " ".join(done.stderr.split())
        assert re.search(f"LIVEEDIT_PLUGINS=ON needs (a )?{re.escape(missing)}", said)
    else:
        assert f"liveedit: no {missing}" in done.stdout


@pytest.mark.slow
def test_kernel_library_loads_without_a_driver(cuda_build: Path) -> None:
    library = load_kernels(cuda_build / KERNEL_LIBRARY)
    gather, scatter = library.liveedit_mask_cache_gather, library.liveedit_mask_cache_scatter
    assert gather(*[None] * 5, 1, 1, 8, 9, None) == INVALID_VALUE
    assert scatter(*[None] * 7, -1, 1, 8, 0, None) == INVALID_VALUE
    assert gather(*[None] * 5, 1, 0, 8, 0, None) == 0  # nothing kept: nothing launched


@pytest.mark.slow
def test_kernels_keep_everything_in_registers(cuda_build: Path) -> None:
    said = (cuda_build / LOG).read_text()
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(spills) > 50
    assert set(spills) == {("0", "0")}
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert max(registers) <= 128  # so that a block of 512 threads fits


@pytest.mark.slow
def test_plugin_library_exports_what_tensorrt_calls(cuda_build: Path) -> None:
    path = cuda_build / PLUGIN_LIBRARY
    if not path.is_file():
        pytest.skip("TENSORRT_INCLUDE_DIR is not set, so the C++ adapters are not built")
    library = ctypes.CDLL(str(path))
    count = ctypes.c_int32()
    library.getCreators.restype = ctypes.c_void_p
    assert library.getCreators(ctypes.byref(count))
    assert count.value == 2
    assert library.setLoggerFinder


def test_wrong_tensorrt_headers_are_named(tmp_path: Path) -> None:
    done = configure(tmp_path, f"-DTENSORRT_INCLUDE_DIR={tmp_path}", path=os.environ["PATH"])
    assert done.returncode != 0
    assert "has no NvInferRuntime.h" in done.stderr


def test_relative_path_and_foreign_library_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="absolute path"):
        load_kernels(Path(HOST_LIBRARY))
    with pytest.raises(BackendError, match="cannot be loaded"):
        load_kernels(tmp_path / "none.so")
    with pytest.raises(BackendError, match=r"has no function liveedit_mask_cache_gather"):
        load_kernels(Path(_libc()))


def _libc() -> str:
    """Some shared library that is not ours."""
    maps = Path("/proc/self/maps").read_text().split()
    return next(p for p in maps if "libc.so" in p or "libc-" in p)


def test_launch_errors_are_raised() -> None:
    check_launch(0, "gather")
    with pytest.raises(BackendError, match="gather was not launched: CUDA error 700"):
        check_launch(700, "gather")


def test_absent_library_has_no_path() -> None:
    assert library_path("libliveedit_nothing.so") is None
