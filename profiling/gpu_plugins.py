"""Part of the GPU suite: do the plugins pay for the fusions that they forbid?

Passes of the step graph alone, once with plugins and once with native layers in their place, in
the order A-B-A, so that a machine that changes shows in the spread.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from liveedit.bundle import read_manifest
from liveedit.errors import UsageError
from liveedit.profiling.gpu_editor import (
    KEEPS,
    attempt,
    build_plans,
    export_editor,
    runnable,
    some,
)
from liveedit.profiling.gpu_setting import Figures, Setting
from liveedit.profiling.pass_runner import PassRunner
from liveedit.profiling.records import distribution
from liveedit.profiling.reference_speed import times_ms
from liveedit.runtime.backends import Opening, open_backend, resolve

BLOCKS = 8  # of the official 30: what a plugin saves or costs is the same in each
ORDER = ("plugins", "native", "plugins")


def plugins(s: Setting, time_s: float) -> Figures:
    """Full and pruned passes of each flavour that runs here.

    Args:
        time_s: when it is up, no other build begins.
    """
    end = time.monotonic() + time_s
    backends = [name for name, flavour in runnable(s).items() if flavour or s.dry]
    out: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = _bundles(s, Path(folder))
        for backend in backends:
            with attempt(backend):
                if not s.dry:
                    for label, bundle in bundles.items():
                        build_plans(bundle, backend, end, plugins=label == "plugins")
                out |= _compare(s, bundles, backend)
    return some(out)


def _bundles(s: Setting, root: Path) -> dict[str, Path]:
    """One bundle for each form, because a bundle's plans are chosen by what they can run."""
    if s.dry:  # nothing is built there
        if s.bundle is None:
            raise UsageError("no bundle was given; add one: gpu_suite.sh OUT BUNDLE")
        return dict.fromkeys(ORDER, s.bundle)
    made = {label: root / label for label in ORDER}
    few = replace(s, dit=replace(s.dit, num_layers=BLOCKS))
    export_editor(few, "taehv", few.stream.local_attn_size, made["plugins"])
    shutil.copytree(made["plugins"], made["native"], copy_function=os.link)
    return made


def _compare(s: Setting, bundles: dict[str, Path], backend: str) -> Figures:
    times: dict[str, list[float]] = {}
    for label in ORDER:
        for kept, measured in _passes(s, bundles[label], backend).items():
            times.setdefault(f"{backend}.{label}.kept{kept}.pass_ms", []).extend(measured)
    return {name: distribution(measured, "ms", "lower") for name, measured in times.items()}


def _passes(s: Setting, bundle: Path, backend: str) -> dict[int, list[float]]:
    """Times in ms by number of kept tokens."""
    from liveedit.engines.builder import token_counts

    manifest = read_manifest(bundle)
    backend, precision = resolve(bundle, manifest, backend, None)
    opening = Opening(root=bundle, manifest=manifest, precision=precision, overlap=False)
    opened = open_backend(backend, opening)
    out = {}
    try:
        runner = PassRunner(bundle, manifest, precision, opened)
        for kept in token_counts(manifest.stream, KEEPS):
            runner.keep(kept)
            runner.run()  # the second run is captured, the third the first to be timed
            out[kept] = times_ms(runner.run, s.rounds)
    finally:
        opened.close()
    return out
