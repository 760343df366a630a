"""What an installed package is made of: links, light imports, assets, pinned versions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import liveedit
from liveedit.runtime.shipped import shipped

ROOT = Path(__file__).parents[1]
PACKAGES = ("distill", "engines", "evaluation", "export", "models", "profiling", "runtime")


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_links_to_the_top_level(name):
    link = ROOT / "src" / "liveedit" / name
    assert link.is_symlink()
    assert link.is_dir()
    assert link.resolve() == ROOT / name
    assert (Path(liveedit.__file__).parent / name).is_dir()


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = str(Path(liveedit.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", PACKAGES)
def test_only_liveedit_can_be_imported(name, tmp_path):
    done = python(f"import importlib.util as u; assert u.find_spec({name!r}) is None", tmp_path)
    assert done.returncode == 0, done.stderr


def test_editing_imports_nothing_heavy(tmp_path):
    heavy = ("torch", "onnx", "PIL", "cv2", "transformers", "tensorrt", "tensorrt_rtx")
    modules = "runtime, liveedit.cli.edit, liveedit.cli.demo, liveedit.cli.inspect"
    done = python(
        f"import sys, liveedit.{modules}\nprint([m for m in {heavy} if m in sys.modules])", tmp_path
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_assets_are_beside_the_runtime():
    assert shipped("clip.mp4").is_file()
    assert shipped("LICENSES.md").is_file()


def test_every_direct_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"]]
    for extra in ("export", "train", "builder", "test"):
        wanted += [r for r in extras[extra] if not r.startswith("liveedit-trt")]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines if "==" in line}
    names = {re.sub(r"[-_.]+", "-", re.split(r"[<>=~!\[; ]", r)[0]).lower() for r in wanted}
    assert names <= pinned
