"""Plans on a device, through a stand-in of TensorRT's runtime API that runs the ONNX graphs."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import micro_stream
from fake_tensorrt import FakeTensorRT
from host_backends import TwinBackend, assert_same, edit, moving_clip, open_editor
from toy_bundle import make_bundle

from liveedit.bundle import Manifest, add_files
from liveedit.engines import plan_loader
from liveedit.engines.flavour import context_settings
from liveedit.engines.fuzz import unbuilt
from liveedit.engines.plan import BuildInputs, BuildOptions, PlanSet, here
from liveedit.engines.plan_loader import PlanLoader, check_memory
from liveedit.errors import BackendError, BundleError
from liveedit.profiling.pass_runner import PassRunner
from liveedit.profiling.plan_run import layer_times
from liveedit.runtime import EditedChunk
from liveedit.runtime.device_backend import DeviceBackend
from liveedit.runtime.host_device import HostDevice, Order

CLIP = moving_clip(60)
EVERY = (72, *range(8, 72, 8))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A bundle whose plans are the names of their graphs."""
    root = tmp_path_factory.mktemp("plans")
    stream = micro_stream(height_px=64, width_px=96, keep_bucket=8)
    manifest = make_bundle(root, codec="wan_vae", stream=stream)
    files = []
    for graph in manifest.graphs["fp32"]:
        (root / f"{graph}.plan").write_text(graph)
        files.append(f"{graph}.plan")
    return root, add_files(root, manifest, files)


@pytest.fixture(scope="module")
def expected(bundle: tuple[Path, Manifest], host_library: ctypes.CDLL) -> list[EditedChunk]:
    return edit(bundle[0], TwinBackend(host_library), CLIP)


def plan_set(manifest: Manifest, profiles: tuple[int, ...]) -> PlanSet:
    inputs = BuildInputs(
        flavour="tensorrt",
        version="0",
        platform=here(),
        targets=("sm90",),
        precision="fp32",
        onnx={},
        plugins=None,
        profiles=profiles,
    )
    graphs = {
        name: replace(unbuilt(spec, f"{name}.plan"), weights_bytes=1000, activation_bytes=4096)
        for name, spec in manifest.graphs["fp32"].items()
    }
    return PlanSet(inputs=inputs, graphs=graphs)


def plan_backend(
    bundle: tuple[Path, Manifest],
    library: ctypes.CDLL,
    profiles: tuple[int, ...] = EVERY,
    *,
    order: Order | None = None,
    in_place: bool = True,
    broken: str = "",
) -> tuple[DeviceBackend, FakeTensorRT]:
    device = HostDevice(library, order=order)
    trt = FakeTensorRT(device, *bundle, profiles, store_in_place=in_place)
    trt.broken = broken
    loader = PlanLoader(trt, *bundle, plan_set(bundle[1], profiles))
    return DeviceBackend(device, loader), trt


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("order", [None, min, max])
def test_plans_give_the_stream_of_the_cpu(
    bundle: tuple[Path, Manifest],
    expected: list[EditedChunk],
    host_library: ctypes.CDLL,
    order: Order | None,
    in_place: bool,
) -> None:
    """Also where a plan does not write the stored attention outputs in place."""
    backend, trt = plan_backend(bundle, host_library, order=order, in_place=in_place)
    assert_same(edit(bundle[0], backend, CLIP), expected)
    # One context per token count of the step, two sides of four codec graphs, two for the prompt.
    assert trt.contexts == len(EVERY) + 2 * 4 + 2
    assert backend.counts["graph launch"] > 0


def test_a_pass_alone_is_captured_and_gives_that_of_the_cpu(
    bundle: tuple[Path, Manifest], host_library: ctypes.CDLL
) -> None:
    device = plan_backend(bundle, host_library)[0]
    results = []
    for backend in (device, TwinBackend(host_library)):
        runner = PassRunner(*bundle, "fp32", backend)
        for kept in (72, 72, 72, 24):
            runner.keep(kept)
            runner.run()
        results.append(backend.read("x0").copy())
        backend.close()
    np.testing.assert_array_equal(*results)
    assert device.counts["graph launch"] == 2


def test_layers_are_timed_in_full_passes_after_the_warm_up(
    bundle: tuple[Path, Manifest], host_library: ctypes.CDLL
) -> None:
    root, manifest = bundle
    device = HostDevice(host_library)
    loader = PlanLoader(
        FakeTensorRT(device, root, manifest, EVERY), root, manifest, plan_set(manifest, EVERY)
    )
    times = layer_times(root, manifest, "fp32", device, loader, chunks=2)
    file = manifest.graphs["fp32"]["dit_step"].file
    assert times.average_ms == {f"{file} [profile 0]": 0.5}
    passes = len(manifest.stream.denoising_step_list) + 1  # and the clean one
    assert times.runs == 2 * passes


def test_token_counts_between_profiles_are_padded(
    bundle: tuple[Path, Manifest], expected: list[EditedChunk], host_library: ctypes.CDLL
) -> None:
    backend, trt = plan_backend(bundle, host_library, (72, 44))
    chunks = edit(bundle[0], backend, CLIP)
    assert [c.num_kept for c in chunks] == [c.num_kept for c in expected]
    assert any(c.num_kept not in (72, 44) for c in chunks)
    for got, want in zip(chunks, expected, strict=True):
        assert np.abs(got.frames.astype(int) - want.frames).max() <= 1
    assert trt.contexts == 2 + 2 * 4 + 2


def test_a_plan_that_does_not_load_is_named(
    bundle: tuple[Path, Manifest], host_library: ctypes.CDLL
) -> None:
    backend, _ = plan_backend(bundle, host_library, broken="dit_step")
    device = backend._device
    with pytest.raises(BackendError, match=r"cannot load dit_step.plan: .*magic tag. Run: live"):
        open_editor(bundle[0], backend)
    assert isinstance(device, HostDevice)
    assert device.counts["bytes"] == device.counts["streams"] == device.counts["events"] == 0


def test_a_changed_plan_is_not_loaded(
    bundle: tuple[Path, Manifest], host_library: ctypes.CDLL, tmp_path: Path
) -> None:
    root, manifest = bundle
    files = dict(manifest.files)
    files["prompt.plan"] = replace(files["prompt.plan"], sha256="0" * 64)
    changed = replace(manifest, files=files)
    device = HostDevice(host_library)
    trt = FakeTensorRT(device, root, manifest, EVERY)
    loader = PlanLoader(trt, root, changed, plan_set(manifest, EVERY))
    with pytest.raises(BundleError, match=r"prompt.plan was changed"):
        open_editor(root, DeviceBackend(device, loader))


def test_a_gpu_that_is_too_small_is_refused_before_a_plan_is_loaded(
    bundle: tuple[Path, Manifest],
) -> None:
    plans = plan_set(bundle[1], EVERY)
    check_memory(HostDevice(None), bundle[1], plans)
    with pytest.raises(BackendError, match=r"\(7000 of weights, 4096 of activations\), of which 9"):
        check_memory(HostDevice(None, memory_bytes=9000), bundle[1], plans)


def test_streamed_weights_are_not_captured(bundle: tuple[Path, Manifest]) -> None:
    plans = plan_set(bundle[1], EVERY)
    trt = FakeTensorRT(HostDevice(None), *bundle, EVERY)
    assert PlanLoader(trt, *bundle, plans).capturable
    inputs = replace(plans.inputs, options=BuildOptions(weight_streaming=True))
    assert not PlanLoader(trt, *bundle, replace(plans, inputs=inputs)).capturable


def test_a_plugin_library_that_is_missing_or_refused_is_named(
    bundle: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Registry:
        def load_library(self, path: str) -> None:
            return None

    trt = FakeTensorRT(HostDevice(None), *bundle, EVERY)
    monkeypatch.setattr(trt, "get_plugin_registry", Registry, raising=False)
    monkeypatch.setattr(plan_loader, "library_path", lambda name: None)
    with pytest.raises(BackendError, match=r"no libliveedit_kernels\.so to run them. Install"):
        plan_loader.load_plugins(trt, tmp_path / "python_plugins.py")
    with pytest.raises(BackendError, match=r"cannot load the plugin library .*plugins\.so"):
        plan_loader.load_plugins(trt, tmp_path / "libliveedit_plugins.so")


def test_tensorrt_rtx_compiles_before_a_run_is_captured() -> None:
    """The members that are set exist in the installed library."""
    rtx = pytest.importorskip("tensorrt_rtx")

    class Config:
        allocation: Any = None
        dynamic_shapes_kernel_specialization_strategy: Any = None
        cache: Any = None

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self.allocation = strategy

        def create_runtime_cache(self) -> str:
            return "a cache"

        def set_runtime_cache(self, cache: str) -> None:
            self.cache = cache

    class Engine:
        create_runtime_config = Config

    assert all(hasattr(rtx.IRuntimeConfig, n) for n in vars(Config) if n.startswith(("set", "dyn")))
    assert hasattr(rtx.ICudaEngine, "create_runtime_config")
    settings = context_settings(rtx, Engine())
    assert settings.allocation == rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    strategy = settings.dynamic_shapes_kernel_specialization_strategy
    assert strategy == rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    assert settings.cache == "a cache"
