"""The device runtime on a GPU against the same in host memory, with engines that only copy."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import make_manifest, micro_stream
from copy_engine import CopyLoader
from host_backends import moving_clip, open_editor

from liveedit.errors import BackendError
from liveedit.runtime import EditedChunk, MaskCachePolicy, PixelFormat, StreamEditor
from liveedit.runtime.cuda_device import CudaDevice
from liveedit.runtime.device import Device
from liveedit.runtime.device_backend import DeviceBackend
from liveedit.runtime.host_device import HostDevice
from liveedit.runtime.pixel_format import FrameLayout

CLIP = moving_clip(76)
POLICY = MaskCachePolicy(keep_ratio=0.6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copies")
    make_manifest(root, codec="taehv", stream=micro_stream(height_px=64, width_px=96))
    return root


@pytest.fixture
def gpu() -> Device:
    try:
        return CudaDevice()
    except BackendError as error:
        if os.environ.get("LIVEEDIT_REQUIRE_GPU"):
            raise
        pytest.skip(str(error))


def edit(root: Path, device: Device, **options: bool) -> list[EditedChunk]:
    backend = DeviceBackend(device, CopyLoader(), **options)
    with open_editor(root, backend, mask_cache=POLICY) as editor:
        return run(editor)


def run(editor: StreamEditor) -> list[EditedChunk]:
    editor.set_prompt("make the car red")
    return editor.push(CLIP) + editor.flush()


def assert_close(got: list[EditedChunk], want: list[EditedChunk]) -> None:
    """Equal but for the last bit of a normal, which two mathematics libraries may round apart."""
    assert [c.num_kept for c in got] == [c.num_kept for c in want]
    for a, b in zip(got, want, strict=True):
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1
        np.testing.assert_allclose(a.importance, b.importance, atol=1e-5)


@pytest.mark.parametrize("options", [{"graphs": False}, {"overlap": False}])
def test_copies_show_what_goes_through(
    bundle: Path, host_library: ctypes.CDLL, options: dict[str, bool]
) -> None:
    """The comparison below means something: chunks differ, and choose tokens."""
    want = edit(bundle, HostDevice(host_library))
    assert_close(edit(bundle, HostDevice(host_library, order=max), **options), want)
    assert len({c.frames.tobytes() for c in want}) == len(want)
    assert min(c.num_kept for c in want) < max(c.num_kept for c in want)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"graphs": False}, {"overlap": False}])
def test_a_gpu_gives_what_the_host_gives(
    bundle: Path, host_library: ctypes.CDLL, gpu: Device, options: dict[str, bool]
) -> None:
    assert_close(edit(bundle, gpu, **options), edit(bundle, HostDevice(host_library)))


@pytest.mark.gpu
def test_nv12_on_a_gpu(bundle: Path, host_library: ctypes.CDLL, gpu: Device) -> None:
    pixels = PixelFormat("nv12")
    clip = FrameLayout(64, 96, pixels).from_rgb(CLIP[:40])
    results = []
    for device in (gpu, HostDevice(host_library)):
        backend = DeviceBackend(device, CopyLoader())
        with open_editor(bundle, backend, pixel_format=pixels) as editor:
            editor.set_prompt("make the car red")
            results.append(editor.push(clip) + editor.flush())
    assert_close(*results)


@pytest.mark.gpu
def test_torch_frames_on_a_gpu(bundle: Path, host_library: ctypes.CDLL, gpu: Device) -> None:
    """In and out by DLPack, each tensor made by work that is still queued when it is pushed."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    want = np.concatenate([c.frames for c in edit(bundle, HostDevice(host_library))])
    shown: list[np.ndarray] = []
    backend = DeviceBackend(gpu, CopyLoader(), leave_frames=True)
    with open_editor(bundle, backend, mask_cache=POLICY) as editor:
        editor.set_prompt("make the car red")
        for start in range(0, len(CLIP), 7):
            frames = 255 - torch.from_numpy(255 - CLIP[start : start + 7]).cuda()
            shown += [torch.from_dlpack(c.frames).cpu().numpy() for c in editor.push(frames)]
        shown += [torch.from_dlpack(c.frames).cpu().numpy() for c in editor.flush()]
    assert np.abs(np.concatenate(shown).astype(int) - want).max() <= 1


@pytest.mark.gpu
def test_a_gpu_gets_its_memory_back(bundle: Path, gpu: Device) -> None:
    edit(bundle, gpu)
    before = gpu.free_bytes()
    for _ in range(100):
        edit(bundle, CudaDevice())
    assert gpu.free_bytes() >= before - (2 << 20)
