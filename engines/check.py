"""Ask Polygraphy, in a child process, which nodes of a graph the parser refuses. Builds nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from liveedit.bundle import read_manifest, verify_file
from liveedit.engines.builder import graphs_of
from liveedit.engines.flavour import child_environment, resolve
from liveedit.errors import BackendError

POLYGRAPHY = "import sys; from polygraphy.tools import main; sys.exit(main())"
SUPPORTED = "fully supported"


def check_bundle(
    root: Path,
    *,
    flavour: str = "auto",
    precision: str = "fp16",
    graphs: tuple[str, ...] = (),
    progress: TextIO | None = None,
) -> None:
    """Report for each graph whether the parser takes all of it.

    Raises:
        BackendError: Polygraphy is missing, or a graph is not fully supported; says which nodes.
    """
    chosen, progress = resolve(flavour), progress or sys.stderr
    if importlib.util.find_spec("polygraphy") is None:
        raise BackendError("--check needs Polygraphy. Run: pip install polygraphy")
    manifest = read_manifest(root)
    refused = []
    for name, spec in graphs_of(manifest, precision, graphs).items():
        path = verify_file(root, manifest, spec.file).resolve()
        with tempfile.TemporaryDirectory() as folder:
            environment = child_environment(chosen, Path(folder))
            arguments = ["inspect", "capability", str(path), "-o", f"{folder}/dumps"]
            done = subprocess.run(
                [sys.executable, "-c", POLYGRAPHY, *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
        text = done.stdout + done.stderr
        supported = done.returncode == 0 and SUPPORTED in text
        print(f"{name}: {'supported' if supported else 'refused'}", file=progress)
        if not supported:
            print(text.strip(), file=progress)
            refused.append(name)
    if refused:
        raise BackendError(f"{chosen.name} refuses nodes of {', '.join(refused)}, listed above")
