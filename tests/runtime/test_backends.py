"""Which backend runs, and what is said of one that cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundle_factory import make_manifest

from liveedit.bundle import Manifest, write_manifest
from liveedit.engines.gpu import compute_capability
from liveedit.errors import BackendError, BundleError, UsageError
from liveedit.runtime import StreamEditor
from liveedit.runtime.backends import BACKENDS, GPU_BACKENDS, check_backend, resolve


def with_plans(root: Path, *plans: tuple[str, str]) -> Manifest:
    """A bundle of fp32 and fp16 graphs that lists plans of (flavour, precision)."""
    manifest = make_manifest(root)
    graphs = {"fp32": manifest.graphs["fp32"], "fp16": manifest.graphs["fp32"]}
    listed = {
        str(i): {"inputs": {"flavour": flavour, "precision": precision}}
        for i, (flavour, precision) in enumerate(plans)
    }
    manifest = replace(manifest, graphs=graphs, plans=listed)
    write_manifest(root, manifest)
    return manifest


def test_auto_takes_what_the_bundle_holds(tmp_path: Path) -> None:
    plain = with_plans(tmp_path)
    assert resolve(tmp_path, plain, "auto", None) == ("onnxruntime", "fp32")
    planned = with_plans(tmp_path, ("tensorrt-rtx", "fp16"))
    assert resolve(tmp_path, planned, "auto", None) == ("tensorrt-rtx", "fp16")
    assert resolve(tmp_path, planned, "auto", "fp32") == ("onnxruntime", "fp32")
    assert resolve(tmp_path, planned, "tensorrt-rtx", None) == ("tensorrt-rtx", "fp16")
    assert resolve(tmp_path, planned, "onnxruntime", None) == ("onnxruntime", "fp32")
    # Never another backend than was asked for: its loader says that there are no such plans.
    assert resolve(tmp_path, planned, "tensorrt", "fp16") == ("tensorrt", "fp16")
    with pytest.raises(BundleError, match="holds no int8 graphs"):
        resolve(tmp_path, planned, "auto", "int8")


def test_names() -> None:
    assert set(GPU_BACKENDS) < set(BACKENDS)
    assert BACKENDS[0] == "onnxruntime"
    with pytest.raises(BackendError, match="no backend 'abacus'; there are onnxruntime, tensorrt"):
        check_backend("abacus")


@pytest.mark.skipif(compute_capability() is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_a_gpu_backend_without_a_gpu_says_why(tmp_path: Path, backend: str) -> None:
    make_manifest(tmp_path)
    with pytest.raises(BackendError, match=r"no NVIDIA driver is loaded|has no CUDA provider here"):
        StreamEditor.open(tmp_path, backend=backend, verify=False)


def test_options_that_a_backend_lacks(tmp_path: Path) -> None:
    make_manifest(tmp_path)
    with pytest.raises(UsageError, match="threads are of the backend onnxruntime; tensorrt has"):
        StreamEditor.open(tmp_path, backend="tensorrt", threads=2, verify=False)
    with pytest.raises(UsageError, match="device_frames need a GPU backend, not null"):
        StreamEditor.open(tmp_path, backend="null", device_frames=True, verify=False)
    with pytest.raises(UsageError, match="passthrough hands out host frames"):
        StreamEditor.open(
            tmp_path, backend="null", device_frames=True, on_non_finite="passthrough", verify=False
        )
