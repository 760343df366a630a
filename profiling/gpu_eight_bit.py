"""Parts of the GPU suite: how fast the official editor is with its DiT in eight bits.

Weights are random and scales drawn, so the pictures say nothing; `liveedit quantize` judges those.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from liveedit.bundle import read_manifest
from liveedit.engines.gpu import compute_capability
from liveedit.profiling.gpu_editor import (
    DETAILED,
    Codec,
    attempt,
    build_plans,
    export_editor,
    measure,
    runnable,
    some,
)
from liveedit.profiling.gpu_setting import Figures, Setting

LARGEST = 6.0  # of an activation, about: those of random weights are near to normal


def eight_bit(codec: Codec, time_s: float) -> Callable[[Setting], Figures]:
    """The editor with ``codec`` at window 12, in every eight-bit format the GPU has.

    Args:
        time_s: when it is up, no other measurement begins.
    """

    def run(s: Setting) -> Figures:
        end = time.monotonic() + time_s
        backends = runnable(s)
        out: Figures = {}
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            if s.dry and s.bundle is not None:
                shutil.copytree(s.bundle, bundle)
            else:
                export_editor(s, codec, DETAILED, bundle)
            for precision in formats(compute_capability()):
                write_drawn(bundle, precision)
                for name, flavour in backends.items():
                    with attempt(f"{name} {precision}"):
                        if flavour:
                            build_plans(bundle, flavour, end, precision)
                        if flavour or s.dry:
                            measure(s, bundle, name, end, out, {}, precision)
        return some(out)

    return run


def formats(capability: str | None) -> tuple[str, ...]:
    """Eight-bit formats of a GPU such as ``sm89``, the better one first."""
    from liveedit.engines.builder import FIRST_FP8

    has_fp8 = capability is not None and int(capability.removeprefix("sm")) >= FIRST_FP8
    return ("fp8", "int8") if has_fp8 else ("int8",)


def write_drawn(root: Path, precision: str) -> None:
    """Add an eight-bit precision to a bundle, its layers the usual ones and its scales drawn.

    Every activation is smoothed, so that the graph has every node that a searched one may have.
    """
    from liveedit.export.graph_trial import load_step
    from liveedit.export.linears import default_layers, linears
    from liveedit.export.quantize import SiteScale, find_format, sites
    from liveedit.export.quantized_bundle import Report, base_precision, write_precision
    from liveedit.export.verdict import Limits, Verdict

    form, manifest = find_format(precision), read_manifest(root)
    base = base_precision(manifest, None, form)
    found = linears(load_step(root, manifest, base))
    layers = default_layers(found, manifest.model.dit)
    random = np.random.default_rng(0)
    scales = {}
    for tensor, readers in sites({name: found[name] for name in layers}).items():
        assert readers[0].weight.shape is not None
        channels = int(readers[0].weight.shape[0])  # type: ignore[arg-type]  # static
        factor = np.exp(0.1 * random.standard_normal(channels)).astype(np.float32)
        scales[tensor] = SiteScale(LARGEST / form.largest, smooth=factor)
    report = Report(
        format=form.name,
        base=base,
        layers=layers,
        left_out=tuple(name for name in found if name not in layers),
        scales={},
        sensitivity=(),
        verdict=Verdict(limits=Limits(), quality=(), refused=("scales are drawn, for speed only",)),
        calibration={},
    )
    write_precision(root, form, scales, report)
