"""Full passes of a stream through a plan, timed layer by layer by TensorRT's own profiler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from liveedit.bundle import Manifest
from liveedit.profiling.accounting import video_frames_per_chunk
from liveedit.profiling.frames import moving_square
from liveedit.profiling.layer_profiler import LayerTimes, layer_profiler
from liveedit.profiling.prompting import give_prompt
from liveedit.runtime.device import Device
from liveedit.runtime.device_backend import DeviceBackend
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.stream import StreamEditor

if TYPE_CHECKING:
    from liveedit.engines.plan_loader import PlanLoader

GRAPH = "dit_step"


def layer_times(
    root: Path,
    manifest: Manifest,
    precision: str,
    device: Device,
    loader: PlanLoader,
    *,
    chunks: int = 5,
) -> LayerTimes:
    """Mean layer times of full passes over ``chunks`` chunks, once the window has filled.

    Nothing is captured: a CUDA graph reports no layers. With a profiler the library waits for every
    layer, so the sum says more about the layers than about a stream's speed.
    """
    times = LayerTimes()
    loader.profilers[GRAPH] = layer_profiler(loader.trt, times)
    stream = manifest.stream
    backend = DeviceBackend(device, loader, overlap=False, graphs=False)
    frames = moving_square(video_frames_per_chunk(stream), stream.height_px, stream.width_px)
    policy = MaskCachePolicy(mode="off")
    with StreamEditor(root, manifest, backend, precision=precision, mask_cache=policy) as editor:
        give_prompt(editor, "a", precision)
        for _ in range(stream.local_attn_size // stream.num_frame_per_block + 1):
            editor.push(frames)
        times.reset()
        for _ in range(chunks):
            editor.push(frames)
    return times
