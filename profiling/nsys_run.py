"""Finds Nsight Systems, runs it around a stream's steady state, and exports what it saw."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from liveedit.errors import LiveEditError, UsageError
from liveedit.profiling.nvtx_ranges import DOMAIN, STEADY

MINIMUM = (2022, 4)  # node-level CUDA graph tracing and the export schema read here
Capture = Literal["steady", "all"]
_PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-systems/*/bin", "/opt/nvidia/nsight*/*/bin")


def find_nsys() -> Path:
    """The newest `nsys` on this machine: $NSYS, PATH, the CUDA toolkit, /opt/nvidia.

    Raises:
        UsageError: there is none; the sentence says how to get it.
    """
    chosen = os.environ.get("NSYS")
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise UsageError(f"NSYS names {chosen!r}, which is not a program")
        return Path(chosen)
    on_path = shutil.which("nsys")
    if on_path:
        return Path(on_path)
    found = [p for place in _PLACES for p in sorted(Path("/").glob(f"{place[1:]}/nsys"))]
    usable = [p for p in found if os.access(p, os.X_OK)]
    if not usable:
        raise UsageError(
            "Nsight Systems (nsys) was not found in $NSYS, on PATH, in /usr/local/cuda/bin or in "
            "/opt/nvidia. It comes with the CUDA toolkit and as the package nsight-systems-cli "
            "from developer.nvidia.com/nsight-systems; `liveedit profile layers` and `liveedit "
            "bench` work without it"
        )
    return usable[-1]


def check_version(nsys: Path) -> tuple[int, int]:
    """The version of ``nsys``, at least `MINIMUM`.

    Raises:
        UsageError: it is older, or does not say.
    """
    try:
        out = subprocess.run(
            [nsys, "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"{nsys} does not run: {error}") from None
    match = re.search(r"(\d{4})\.(\d+)", out)
    if match is None:
        raise UsageError(f"{nsys} --version says {out.strip()!r}, which names no version")
    version = int(match[1]), int(match[2])
    if version < MINIMUM:
        raise UsageError(
            f"{nsys} is version {version[0]}.{version[1]}; at least {MINIMUM[0]}.{MINIMUM[1]} is "
            "needed to trace the nodes of CUDA graphs. Install a newer nsight-systems-cli"
        )
    return version


def command_line(
    nsys: Path, out: Path, args: Sequence[str], capture: Capture = "steady"
) -> list[str]:
    """How `liveedit ARGS` is run under nsys. Every CUDA graph node is traced on its own."""
    options = [
        "--trace=cuda,nvtx",
        "--cuda-graph-trace=node",
        "--sample=none",  # no CPU sampling: it costs time and answers other questions
        "--cpuctxsw=none",
        "--force-overwrite=true",
        f"--output={out}",
    ]
    if capture == "steady":
        options += [
            "--capture-range=nvtx",
            f"--nvtx-capture={STEADY}@{DOMAIN}",
            "--capture-range-end=stop",
        ]
    return [str(nsys), "profile", *options, sys.executable, "-m", "liveedit", *args]


def profile(nsys: Path, out: Path, args: Sequence[str], capture: Capture = "steady") -> Path:
    """Run and export. ``out`` has no suffix; returns ``out.sqlite``.

    Raises:
        LiveEditError: the program failed, or nothing was captured.
    """
    environment = {**os.environ, "NSYS_NVTX_PROFILER_REGISTER_ONLY": "0"}
    reports = [Path(f"{out}{suffix}") for suffix in (".nsys-rep", ".qdrep")]
    for report in reports:
        report.unlink(missing_ok=True)  # an earlier run's would pass for this one's
    done = subprocess.run(command_line(nsys, out, args, capture), env=environment)
    found = next((report for report in reports if report.is_file()), None)
    failure = f"`liveedit {shlex.join(args)}` failed under nsys ({done.returncode})"
    if done.returncode and found is None:
        raise LiveEditError(failure)
    if done.returncode:
        print(f"{failure}; this is what was captured until then", file=sys.stderr)
    if found is None:
        raise LiveEditError(
            f"nsys captured nothing: the range '{STEADY}' was not reached. `liveedit bench` opens "
            "it after its warm-up; for another command use --capture all, and see that the nvtx "
            "package is installed"
        )
    database = Path(f"{out}.sqlite")
    export: list[str | Path] = [
        nsys,
        "export",
        "--type",
        "sqlite",
        "--force-overwrite",
        "true",
        "-o",
        database,
    ]
    try:
        subprocess.run([*export, found], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise LiveEditError(f"nsys could not export {found}: {error.stderr.strip()}") from None
    return database
