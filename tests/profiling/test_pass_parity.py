"""Passes of a backend beside the PyTorch reference."""

from pathlib import Path

import numpy as np

from liveedit.bundle import read_manifest
from liveedit.export.sources import random_sources
from liveedit.profiling import pass_parity


def test_a_backend_is_held_against_the_reference(micro_bundle: Path) -> None:
    manifest = read_manifest(micro_bundle)
    inputs = pass_parity.random_inputs(manifest)
    got = pass_parity.backend_passes(micro_bundle, "onnxruntime", "fp32", inputs)
    dit, other = (random_sources(manifest.model, seed)[0]["dit"] for seed in (0, 1))
    exact = pass_parity.reference_passes(manifest, dit, inputs, device="cpu", dtype="float32")
    figures = pass_parity.errors("ours", got, exact, manifest)
    assert list(figures) == [f"ours.x0_error.{name}" for name in ("first", "full", "pruned")]
    assert all(figure.value < 1e-4 for figure in figures.values())
    # The second chunk sees the first one, dropped tokens are stale, and other weights are noticed.
    assert np.abs(exact[1] - exact[0]).max() > 1e-2
    assert np.abs(exact[2] - exact[1]).max() > 1e-3
    far = pass_parity.reference_passes(manifest, other, inputs, device="cpu", dtype="float32")
    assert pass_parity.errors("ours", got, far, manifest)["ours.x0_error.full"].value > 0.01
