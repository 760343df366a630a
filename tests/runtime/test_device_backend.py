"""The device runtime in host memory: equal to the CPU backend in every bit, in every order."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from bundle_factory import Codec, micro_stream
from host_backends import (
    PROMPT,
    Frames,
    TwinBackend,
    assert_same,
    device_of,
    edit,
    host_backend,
    moving_clip,
    open_editor,
)
from toy_bundle import make_bundle

from liveedit.bundle import read_manifest
from liveedit.errors import BackendError, DeviceError, LiveEditError, StreamError, UsageError
from liveedit.runtime import EditedChunk, MaskCachePolicy, PixelFormat
from liveedit.runtime.device_backend import DeviceBackend
from liveedit.runtime.device_engine import NullLoader
from liveedit.runtime.device_frames import LentFrames
from liveedit.runtime.dlpack import CPU, CUDA, CUDA_HOST, TakenTensor, capsule_of
from liveedit.runtime.host_device import (
    HostDevice,
    HostMemory,
    HostPinned,
    HostStream,
    Order,
    host_bytes,
)
from liveedit.runtime.memory_budget import memory_budget
from liveedit.runtime.nv12 import Matrix
from liveedit.runtime.onnx_device import OnnxHostLoader
from liveedit.runtime.pixel_format import FrameLayout

CLIP = moving_clip(76)
ORDERS = {
    "at once": None,
    "first stream first": min,
    "last stream first": max,
    "random": random.Random(3).choice,
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    stream = micro_stream(height_px=64, width_px=96, keep_bucket=8)
    for codec in ("taehv", "wan_vae"):
        make_bundle(root / codec, codec=codec, stream=stream)  # type: ignore[arg-type]
    return {codec: root / codec for codec in ("taehv", "wan_vae")}


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Path], host_library: ctypes.CDLL) -> dict[str, list[EditedChunk]]:
    return {c: edit(root, TwinBackend(host_library), CLIP) for c, root in bundles.items()}


@pytest.mark.parametrize("codec", ["taehv", "wan_vae"])
@pytest.mark.parametrize("options", [{}, {"graphs": False}, {"overlap": False}])
@pytest.mark.parametrize("order", ORDERS)
def test_the_stream_equals_the_cpu_backend(
    bundles: dict[str, Path],
    expected: dict[str, list[EditedChunk]],
    host_library: ctypes.CDLL,
    codec: Codec,
    options: dict[str, bool],
    order: str,
) -> None:
    assert len({c.num_kept for c in expected[codec]}) > 2
    backend = host_backend(host_library, ORDERS[order], **options)  # type: ignore[arg-type]
    assert_same(edit(bundles[codec], backend, CLIP), expected[codec])
    assert bool(device_of(backend).counts["capture"]) == (options != {"graphs": False})


@pytest.mark.parametrize("event", ["encoded", "source taken", "edited.0"])
def test_a_missing_event_is_found(
    bundles: dict[str, Path],
    expected: dict[str, list[EditedChunk]],
    host_library: ctypes.CDLL,
    event: str,
) -> None:
    """The orders above would show it: without the event one of them gives something else."""

    class Careless(DeviceBackend):
        def wait(self, name: str) -> None:
            if name != event:
                super().wait(name)

    def differs(order: str) -> bool:
        like = host_backend(host_library, ORDERS[order])  # type: ignore[arg-type]
        backend = Careless(like._device, like._loader)
        try:
            assert_same(edit(bundles["taehv"], backend, CLIP), expected["taehv"])
        except (AssertionError, LiveEditError):
            return True
        return False

    assert any(differs(order) for order in ORDERS if order != "at once")


@pytest.mark.parametrize(
    "policy",
    [
        MaskCachePolicy(mode="off"),
        MaskCachePolicy(mode="paper", keep_ratio=0.4),
        MaskCachePolicy(keep_ratio=0.6, pruned_passes=(1, 3), importance_dtype="bfloat16"),
        MaskCachePolicy(keep_ratio=0.6, token_budget=20),
    ],
)
def test_policies(
    bundles: dict[str, Path], host_library: ctypes.CDLL, policy: MaskCachePolicy
) -> None:
    want = edit(bundles["taehv"], TwinBackend(host_library), CLIP[:60], mask_cache=policy)
    backend = host_backend(host_library, max)
    assert_same(edit(bundles["taehv"], backend, CLIP[:60], mask_cache=policy), want)


def test_a_prompt_change_and_a_reset(bundles: dict[str, Path], host_library: ctypes.CDLL) -> None:
    def both(backend: DeviceBackend | TwinBackend) -> list[EditedChunk]:
        with open_editor(bundles["taehv"], backend) as editor:
            editor.set_prompt(PROMPT)
            chunks = editor.push(CLIP[:41])
            editor.set_prompt("blue")
            chunks += editor.push(CLIP[41:]) + editor.flush()
            editor.reset()
            editor.push(CLIP[:30])
            editor.reset()  # chunks on their way are dropped
            return chunks + editor.push(CLIP[:30]) + editor.flush()

    want = both(TwinBackend(host_library))
    for order in (None, min, max):
        assert_same(both(host_backend(host_library, order)), want)


def poisoned(backend: DeviceBackend | TwinBackend, root: Path, policy: str) -> list[EditedChunk]:
    """A stream whose third chunk is not finite; the prompt that caused it is then replaced."""
    with open_editor(root, backend, on_non_finite=policy) as editor:
        editor.set_prompt(PROMPT)
        chunks = editor.push(CLIP[:24])
        backend.write("cross_v_01", np.nan)  # of the last block: the keys stay finite
        chunks += editor.push(CLIP[24:36])
        editor.set_prompt(PROMPT)
        return chunks + editor.push(CLIP[36:]) + editor.flush()


@pytest.mark.parametrize("policy", ["last-good", "passthrough"])
def test_a_latent_that_is_not_finite_is_replaced(
    bundles: dict[str, Path], host_library: ctypes.CDLL, policy: str
) -> None:
    want = poisoned(TwinBackend(host_library), bundles["taehv"], policy)
    assert [c.recovered for c in want][:4] == [None, None, policy, None]
    for order in (None, max):
        assert_same(poisoned(host_backend(host_library, order), bundles["taehv"], policy), want)


@pytest.mark.parametrize(("budget", "following"), [(None, 72), (20, 20)])
def test_the_chunk_after_a_replaced_one(
    bundles: dict[str, Path], host_library: ctypes.CDLL, budget: int | None, following: int
) -> None:
    """It is full, but for a number of tokens that the host has fixed."""
    policy = MaskCachePolicy(keep_ratio=0.6, token_budget=budget)

    def run(backend: DeviceBackend | TwinBackend) -> list[EditedChunk]:
        with open_editor(
            bundles["taehv"], backend, on_non_finite="last-good", mask_cache=policy
        ) as editor:
            editor.set_prompt(PROMPT)
            chunks = editor.push(CLIP[:24])
            good = backend.read("cross_v_01").copy()
            backend.write("cross_v_01", np.nan)
            chunks += editor.push(CLIP[24:36])
            backend.write("cross_v_01", good)
            return chunks + editor.push(CLIP[36:60]) + editor.flush()

    want = run(TwinBackend(host_library))
    assert [c.recovered for c in want[:4]] == [None, None, "last-good", None]
    assert want[3].num_kept == following
    for order in (None, max):
        assert_same(run(host_backend(host_library, order)), want)


def test_a_latent_that_is_not_finite_stops_the_stream(
    bundles: dict[str, Path], host_library: ctypes.CDLL
) -> None:
    """One chunk late, and the chunks before it are handed out first."""
    with pytest.raises(StreamError, match=r"chunk 2 \(from frame 21\) came out not finite"):
        poisoned(host_backend(host_library), bundles["taehv"], "stop")


def test_nothing_is_allocated_or_waited_for_in_the_steady_state(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=micro_stream())
    policy = MaskCachePolicy(token_budget=8)
    device = HostDevice(None)
    backend = DeviceBackend(device, NullLoader())
    with open_editor(tmp_path, backend, mask_cache=policy) as editor:
        editor.set_prompt(PROMPT)
        frames = moving_clip(12, 32, 48)
        for _ in range(8):
            editor.push(frames)
        counts, calls = device.counts.copy(), backend.counts.copy()
        for _ in range(20):
            editor.push(frames)
        steady = {k: v / 20 for k, v in (device.counts - counts).items()}
        assert not {"alloc", "alloc pinned", "sync", "capture", "streams", "events"} & set(steady)
        # Two halves of a chunk, three latents in and out.
        assert steady["graph launch"] == 2 + 3 + 3
        # The kernels outside graphs convert frames.
        assert steady["launch"] == 6
        assert "call" not in steady
        assert not (backend.counts - calls).keys() - {"graph launch"}


@pytest.mark.parametrize("codec", ["taehv", "wan_vae"])
@pytest.mark.parametrize("order", ["at once", "random"])
def test_a_prewarmed_stream_captures_nothing_and_is_the_same(
    bundles: dict[str, Path],
    expected: dict[str, list[EditedChunk]],
    host_library: ctypes.CDLL,
    codec: Codec,
    order: str,
) -> None:
    """Also where the number of tokens changes from chunk to chunk, and after a reset."""
    backend = host_backend(host_library, ORDERS[order])  # type: ignore[arg-type]
    counts = device_of(backend).counts
    with open_editor(bundles[codec], backend, prewarm=True) as editor:
        captured = counts["capture"]
        # Nine numbers of tokens, the clean pass, and two sides of each codec step.
        assert captured >= 9 + 1 + 2 + 2
        for _ in range(2):
            editor.set_prompt(PROMPT)
            assert_same(editor.push(CLIP) + editor.flush(), expected[codec])
            editor.reset()
        assert counts["capture"] == captured


def test_prewarming_a_fixed_number_of_tokens(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=micro_stream())
    device = HostDevice(None)
    policy = MaskCachePolicy(token_budget=8)
    backend = DeviceBackend(device, NullLoader())
    with open_editor(tmp_path, backend, mask_cache=policy, prewarm=True) as editor:
        bodies = {
            key[1] for key in backend._graphs if isinstance(key, tuple) and key[0] == "denoise"
        }
        assert bodies == {8, 18}
        captured = device.counts["capture"]
        editor.set_prompt(PROMPT)
        editor.push(moving_clip(60, 32, 48))
        assert device.counts["capture"] == captured


def test_addresses_never_move_and_sizes_are_as_computed(
    bundles: dict[str, Path], host_library: ctypes.CDLL
) -> None:
    root = bundles["taehv"]
    manifest = read_manifest(root)
    backend = host_backend(host_library)
    with open_editor(root, backend) as editor:
        before = dict(backend._at)
        assert all(address % 256 == 0 for address in before.values())
        places = sorted((a, a + backend._bytes[n]) for n, a in before.items())
        assert all(a[1] <= b[0] for a, b in pairwise(places))
        editor.set_prompt(PROMPT)
        editor.push(CLIP)
        assert backend._at == before
        budget = memory_budget(manifest, "fp32")
        purposes = {
            "kv_cache": ("k_cache_", "v_cache_"),
            "stored_outputs": ("attn_store_",),
            "codec_caches": ("encode.cache_", "decode.cache_"),
            "prompt": ("cross_", "text_embeds", "input_ids", "attention_mask"),
        }
        for purpose, prefixes in purposes.items():
            mine = sum(size for n, size in backend._bytes.items() if n.startswith(prefixes))
            assert mine == budget[purpose], purpose
        assert places[-1][1] - places[0][0] <= backend.arena_bytes


def test_a_device_that_is_too_small_is_refused(
    bundles: dict[str, Path], host_library: ctypes.CDLL
) -> None:
    backend = host_backend(host_library)
    with open_editor(bundles["taehv"], backend):
        needed = backend.arena_bytes
    device = HostDevice(host_library)
    pinned = 1 << 20
    small = DeviceBackend(device, NullLoader())
    device.free_bytes = lambda: needed - pinned  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r"needs \d+ bytes on host, of which \d+ are free"):
        open_editor(bundles["taehv"], small)
    assert device.counts["bytes"] == device.counts["streams"] == device.counts["events"] == 0


def test_frames_stay_as_they_were_handed_out(
    bundles: dict[str, Path], expected: dict[str, list[EditedChunk]], host_library: ctypes.CDLL
) -> None:
    """The newest are shown where they arrived; kept ones are never written again."""
    backend = host_backend(host_library)
    device = device_of(backend)
    chunks: list[Frames] = []
    copies: list[Frames] = []
    with open_editor(bundles["taehv"], backend) as editor:
        editor.set_prompt(PROMPT)
        for i in range(0, 72, 12):
            for chunk in editor.push(CLIP[i : i + 12]):
                chunks.append(chunk.frames)
                copies.append(chunk.frames.copy())
    for chunk, copy, want in zip(chunks, copies, expected["taehv"], strict=False):
        assert (chunk == copy).all()
        assert (chunk == want.frames).all()
    assert sum(c.base is not None for c in chunks) >= 2
    chunks.clear()
    del chunk
    gc.collect()
    assert device.counts["bytes"] == device.counts["events"] == 0


def test_frames_can_be_filled_in_place(
    bundles: dict[str, Path], expected: dict[str, list[EditedChunk]], host_library: ctypes.CDLL
) -> None:
    for backend in (TwinBackend(host_library), host_backend(host_library, max)):
        with open_editor(bundles["taehv"], backend) as editor:
            editor.set_prompt(PROMPT)
            chunks: list[EditedChunk] = []
            start = 0
            while start < len(CLIP):
                room = editor.frame_room(min(9, len(CLIP) - start))
                room[...] = CLIP[start : start + len(room)]
                start += len(room)
                chunks += editor.push(room)
            with pytest.raises(UsageError, match="count of at least 1, got 0"):
                editor.frame_room(0)
            assert_same(chunks + editor.flush(), expected["taehv"])


def test_a_stream_can_be_reset_as_often_as_it_stops(
    bundles: dict[str, Path], expected: dict[str, list[EditedChunk]], host_library: ctypes.CDLL
) -> None:
    """Neither a chunk that stopped it nor one whose submission failed holds on to its place."""
    backend = host_backend(host_library)

    def refuse(first: int, frames: Frames) -> None:
        raise BackendError("the display is gone")

    with open_editor(bundles["taehv"], backend) as editor:
        for turn in range(8):
            editor.set_prompt(PROMPT)
            editor.push(CLIP[:24])
            if turn % 2:
                backend.write("cross_v_01", np.nan)
                assert len(editor.push(CLIP[24:])) == 1  # the one before it
                with pytest.raises(StreamError, match="came out not finite"):
                    editor.flush()
            else:
                editor._on_frames = refuse
                with pytest.raises(BackendError, match="the display is gone"):
                    editor.push(CLIP[24:])
                editor._on_frames = None
            editor.reset()
        editor.set_prompt(PROMPT)
        assert_same(editor.push(CLIP) + editor.flush(), expected["taehv"])


class OnDevice:
    """Frames in the device's memory, as another library would hand them over."""

    def __init__(self, memory: HostMemory, count: int, stream: int | None) -> None:
        self.memory = memory
        self.__cuda_array_interface__ = {
            "shape": (count, 64, 96, 3),
            "typestr": "|u1",
            "data": (memory.address, True),
            "strides": None,
            "stream": stream,
            "version": 3,
        }


class OverDlpack:
    """An array of a library that numpy does not know."""

    def __init__(self, array: npt.NDArray[Any], place: tuple[int, int] = (CPU, 0)) -> None:
        self.array, self.place = array, place

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
        assert (stream is None) == (self.place[0] != CUDA)
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place


class Queued:
    """Frames that are still on their way to the device's memory, which is given back with them."""

    alive = 0

    def __init__(self, theirs: HostStream, pinned: HostPinned, start: int, count: int) -> None:
        size = CLIP[0].nbytes
        self.theirs, self.shape = theirs, (count, *CLIP.shape[1:])
        self.memory = theirs.device.alloc(count * size)
        theirs.upload(self.memory.address, pinned, start * size, count * size)
        Queued.alive += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.theirs.device.dlpack_device

    def __dlpack__(self, *, stream: int) -> object:
        """That stream waits for them, as the protocol says."""
        device = self.theirs.device
        event = device.event()
        self.theirs.record(event)
        device.foreign_stream(stream).wait(event)
        event.close()
        return capsule_of(self.memory.address, self.shape, self.__dlpack_device__(), self)

    def __del__(self) -> None:
        Queued.alive -= 1
        ctypes.memset(self.memory.address, 7, self.memory.nbytes)
        self.memory.free()


@pytest.mark.parametrize("order", [None, min, max])
def test_frames_come_and_go_on_the_device(
    bundles: dict[str, Path],
    expected: dict[str, list[EditedChunk]],
    host_library: ctypes.CDLL,
    order: Order | None,
) -> None:
    """Their owner queues them on a stream of its own, and overwrites them there at once."""
    backend = host_backend(host_library, order, leave_frames=True)
    device = device_of(backend)
    theirs, memory = device.stream(), device.alloc(7 * 64 * 96 * 3)
    pinned = device.alloc_pinned(CLIP.nbytes)
    pinned.array(0, CLIP.nbytes, write=True)[:] = CLIP.reshape(-1)
    size = CLIP[0].nbytes
    with open_editor(bundles["taehv"], backend) as editor:
        editor.set_prompt(PROMPT)
        number = 0
        for start in range(0, len(CLIP), 7):
            count = min(7, len(CLIP) - start)
            theirs.upload(memory.address, pinned, start * size, count * size)
            chunks = editor.push(OnDevice(memory, count, theirs.handle))  # type: ignore[arg-type]
            theirs.zero(memory.address, 7 * size)
            for chunk in chunks:
                check_lent(chunk, expected["taehv"][number])
                number += 1
        for chunk in editor.flush():
            check_lent(chunk, expected["taehv"][number])
            number += 1
    assert number == len(expected["taehv"])
    theirs.synchronize()
    memory.free()
    pinned.free()
    del chunk, chunks
    gc.collect()
    assert device.counts["bytes"] == 0


@pytest.mark.parametrize("order", [None, min, max])
@pytest.mark.parametrize("codec", ["taehv", "wan_vae"])
def test_frames_on_the_device_over_dlpack(
    bundles: dict[str, Path],
    expected: dict[str, list[EditedChunk]],
    host_library: ctypes.CDLL,
    codec: Codec,
    order: Order | None,
) -> None:
    """Our stream waits for theirs, and they are held until nothing reads them any more."""
    backend = host_backend(host_library, order)
    device = device_of(backend)
    device.dlpack_device = (CUDA, 0)
    theirs, pinned = device.stream(), device.alloc_pinned(CLIP.nbytes)
    pinned.array(0, CLIP.nbytes, write=True)[:] = CLIP.reshape(-1)

    def queued(start: int) -> Any:
        return Queued(theirs, pinned, start, min(7, len(CLIP) - start))

    with open_editor(bundles[codec], backend) as editor:
        editor.set_prompt(PROMPT)
        chunks: list[EditedChunk] = []
        for start in range(0, len(CLIP), 7):
            chunks += editor.push(queued(start))
            # Of three chunks of twelve frames at most, two of them on their way.
            assert 0 < Queued.alive <= 7
        chunks += editor.flush()
        assert Queued.alive == 0
        assert_same(chunks, expected[codec])
        editor.reset()
        editor.push(queued(0))
        assert Queued.alive == 1
        editor.reset()
        assert Queued.alive == 0
        # What was staged of the group that was dropped is not taken for a frame of the next one.
        assert_same(editor.push(CLIP) + editor.flush(), expected[codec])
        editor.reset()
        editor.push(queued(0))
    assert Queued.alive == 0
    theirs.synchronize()
    pinned.free()
    del chunks
    gc.collect()
    assert device.counts["bytes"] == 0


def check_lent(chunk: EditedChunk, want: EditedChunk) -> None:
    frames = chunk.frames
    assert isinstance(frames, LentFrames)
    address, _ = frames.__cuda_array_interface__["data"]
    shown = host_bytes(address, want.frames.nbytes).reshape(frames.shape)
    assert (shown == want.frames).all()
    tensor = np.from_dlpack(frames)
    assert tensor.ctypes.data == address
    assert tensor.dtype == np.uint8
    assert (tensor == want.frames).all()


def test_a_dlpack_tensor_keeps_its_frames(
    bundles: dict[str, Path], expected: dict[str, list[EditedChunk]], host_library: ctypes.CDLL
) -> None:
    backend = host_backend(host_library, leave_frames=True)
    with open_editor(bundles["taehv"], backend) as editor:
        editor.set_prompt(PROMPT)
        (chunk,) = editor.push(CLIP[:24])
        tensor = np.from_dlpack(chunk.frames)
        unused = chunk.frames.__dlpack__()
        slot = next(s for s in backend._slots._all if s.lent)  # type: ignore[union-attr]
        del chunk
        editor.push(CLIP[24:60])
        assert slot.lent == 1
        assert (tensor == expected["taehv"][0].frames).all()
        del tensor
        gc.collect()
        assert slot.lent == 1  # by the capsule that nobody took
        del unused
        gc.collect()
        assert slot.lent == 0


@pytest.mark.parametrize("kind", [CPU, CUDA_HOST])
def test_frames_over_dlpack(
    bundles: dict[str, Path],
    expected: dict[str, list[EditedChunk]],
    host_library: ctypes.CDLL,
    kind: int,
) -> None:
    with open_editor(bundles["taehv"], host_backend(host_library)) as editor:
        editor.set_prompt(PROMPT)
        chunks = editor.push(OverDlpack(CLIP, (kind, 0))) + editor.flush()  # type: ignore[arg-type]
        assert_same(chunks, expected["taehv"])


def test_frames_that_cannot_be_taken(bundles: dict[str, Path], host_library: ctypes.CDLL) -> None:
    backend = host_backend(host_library)
    device = device_of(backend)
    device.dlpack_device = (CUDA, 0)
    memory = device.alloc(1 << 20)
    shape = (2, 64, 96, 3)

    def interface(**change: Any) -> Any:
        frames: Any = OnDevice(memory, 2, None)
        frames.__cuda_array_interface__ |= change
        return frames

    def dlpack(array: npt.NDArray[Any], place: tuple[int, int] = (CUDA, 0)) -> Any:
        return OverDlpack(array, place)

    bytes_ = np.zeros(shape, np.uint8)
    for frames in (interface(), dlpack(bytes_)):
        with open_editor(bundles["taehv"], TwinBackend(host_library)) as editor:
            editor.set_prompt(PROMPT)
            with pytest.raises(UsageError, match="lie on a GPU, and this backend takes frames of"):
                editor.push(frames)
    with open_editor(bundles["taehv"], backend) as editor:
        editor.set_prompt(PROMPT)
        assert editor.push(interface()) == editor.push(interface(shape=(0, 64, 96, 3))) == []
        for frames, message in (
            (interface(typestr="<f4"), r"are float32 \[2, 64, 96, 3\]; this bundle takes uint8"),
            (interface(shape=(2, 64, 95, 3)), r"uint8 \[2, 64, 95, 3\]; this bundle takes"),
            (interface(strides=(18432, 288, 3, 2)), "must be contiguous; their strides"),
            (interface(data=(64, False)), "lie in host memory; this stream runs on host, GPU 0"),
            (interface(mask=OnDevice(memory, 2, None)), "must have no mask"),
            (interface(stream=0), "state stream 0, which"),
            (dlpack(np.zeros(shape, np.float32)), r"are float32 \[2, 64, 96, 3\]; this bundle"),
            (dlpack(np.zeros((2, 64, 95, 3), np.uint8)), r"uint8 \[2, 64, 95, 3\]; this bundle"),
            (dlpack(bytes_.transpose(1, 0, 2, 3).copy().swapaxes(0, 1)), "must be contiguous"),
            (dlpack(bytes_, (CUDA, 1)), "these frames lie in GPU 1; this stream runs on host, GPU"),
            (dlpack(bytes_, (10, 0)), "lie in a device of kind 10 of DLPack"),
        ):
            with pytest.raises(UsageError, match=message):
                editor.push(frames)


def test_a_dlpack_tensor_is_taken_once() -> None:
    array = np.arange(12, dtype=np.int16).reshape(3, 4)[:, ::2]
    capsule = array.__dlpack__()
    tensor = TakenTensor(capsule)
    assert (tensor.shape, tensor.strides, tensor.dtype) == ((3, 2), (4, 2), "int16")
    assert tensor.address == array.ctypes.data
    with pytest.raises(ValueError, match="incorrect name"):
        TakenTensor(capsule)
    held = sys.getrefcount(array)
    del tensor, capsule
    assert sys.getrefcount(array) < held


def test_lent_frames_that_are_kept_are_not_written_again(
    bundles: dict[str, Path], host_library: ctypes.CDLL
) -> None:
    with open_editor(bundles["taehv"], host_backend(host_library, leave_frames=True)) as editor:
        editor.set_prompt(PROMPT)
        kept = editor.push(CLIP[:60])
        with pytest.raises(UsageError, match="of 4 chunks are still held"):
            editor.push(CLIP[60:72])
        assert len(kept) == 4


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_nv12(bundles: dict[str, Path], host_library: ctypes.CDLL, matrix: Matrix) -> None:
    """Converted by the kernels, the same bytes as converted by the host."""
    pixels = PixelFormat("nv12", matrix=matrix, full_range=matrix == "bt601")
    layout = FrameLayout(64, 96, pixels)
    clip = layout.from_rgb(CLIP[:40])
    assert clip.shape == (40, 96, 96)
    want = edit(bundles["wan_vae"], TwinBackend(host_library), clip, pixel_format=pixels)
    for order in (None, max):
        backend = host_backend(host_library, order)
        assert_same(edit(bundles["wan_vae"], backend, clip, pixel_format=pixels), want)
    plain = edit(bundles["wan_vae"], TwinBackend(host_library), layout.to_rgb(clip))
    for mine, other in zip(want, plain, strict=True):
        assert (mine.frames == layout.from_rgb(other.frames)).all()
    with open_editor(bundles["wan_vae"], TwinBackend(host_library), pixel_format=pixels) as editor:
        editor.set_prompt(PROMPT)
        with pytest.raises(UsageError, match=r"this bundle takes uint8 \[n, 96, 96\]"):
            editor.push(CLIP)
    with pytest.raises(UsageError, match="pixel format 'yuv'; there are rgb, nv12"):
        PixelFormat("yuv")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="colour matrix 'bt2020'"):
        PixelFormat("nv12", matrix="bt2020")  # type: ignore[arg-type]


def test_finished_chunks_can_be_had_at_once(
    bundles: dict[str, Path], expected: dict[str, list[EditedChunk]], host_library: ctypes.CDLL
) -> None:
    for order, finished in ((None, 1), (min, 0)):
        with open_editor(bundles["taehv"], host_backend(host_library, order)) as editor:
            editor.set_prompt(PROMPT)
            assert editor.poll() == []
            chunks = editor.push(CLIP[:24])
            assert len(chunks) == 1
            polled = editor.poll()
            assert len(polled) == finished
            chunks += polled + editor.push(CLIP[24:]) + editor.poll() + editor.flush()
            assert_same(chunks, expected["taehv"])


def test_low_latency(
    bundles: dict[str, Path], expected: dict[str, list[EditedChunk]], host_library: ctypes.CDLL
) -> None:
    """Frames are given as each latent is decoded, and again with their chunk."""
    for backend in (TwinBackend(host_library), host_backend(host_library, max)):
        given: list[tuple[int, Frames]] = []
        chunks = edit(
            bundles["taehv"],
            backend,
            CLIP,
            on_frames=lambda first, frames: given.append((first, frames.copy())),  # noqa: B023
        )
        assert_same(chunks, expected["taehv"])
        assert [first for first, _ in given[:4]] == [0, 1, 5, 9]
        whole = np.concatenate([frames for _, frames in given])
        assert (whole == np.concatenate([c.frames for c in chunks])).all()


class FailingDevice(HostDevice):
    """Refuses a launch, as a GPU that was lost would."""

    launches_left = 10**9

    def kernel(self, name: str, arguments: Sequence[Any]) -> Callable[[], None]:
        self.launches_left -= 1
        if self.launches_left < 0:
            raise DeviceError(f"kernel {name} failed with cudaErrorIllegalAddress")
        return super().kernel(name, arguments)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_device_error_ends_the_stream_and_frees_everything(
    bundles: dict[str, Path],
    expected: dict[str, list[EditedChunk]],
    host_library: ctypes.CDLL,
    graphs: bool,
) -> None:
    device = FailingDevice(host_library)
    other = open_editor(bundles["taehv"], host_backend(host_library))
    other.set_prompt(PROMPT)
    backend = DeviceBackend(device, OnnxHostLoader(threads=1), graphs=graphs)
    editor = open_editor(bundles["taehv"], backend)
    editor.set_prompt(PROMPT)
    device.launches_left = 24  # in the midst of the second chunk, where it is captured
    with pytest.raises(DeviceError, match="failed with cudaErrorIllegalAddress"):
        editor.push(CLIP)
    calls = (
        lambda: editor.push(CLIP), editor.flush, editor.reset, lambda: editor.set_prompt(PROMPT)
    )  # fmt: skip
    for call in calls:
        with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
            call()
    editor.close()
    gc.collect()
    assert device.counts["bytes"] == device.counts["streams"] == device.counts["events"] == 0
    assert device.capturing is None
    with other:
        assert_same(other.push(CLIP) + other.flush(), expected["taehv"])


@pytest.mark.slow
def test_a_thousand_streams_leave_nothing_behind(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    device = HostDevice(None)
    manifest_policy = MaskCachePolicy(mode="off")
    for _ in range(1000):
        open_editor(
            tmp_path, DeviceBackend(device, NullLoader()), mask_cache=manifest_policy
        ).close()
        assert device.counts["bytes"] == device.counts["streams"] == device.counts["events"] == 0


CYCLES = """
import sys
from pathlib import Path
from host_backends import edit, host_backend, moving_clip
from liveedit.profiling.memory import release_free_memory, rss_bytes
from liveedit.runtime.kernels import load_kernels

root, library = Path(sys.argv[1]), load_kernels(Path(sys.argv[2]))
frames, marks = moving_clip(24), []
for i in range(60):
    edit(root, host_backend(library), frames)
    if i in (19, 59):
        release_free_memory()
        marks.append(rss_bytes())
print(marks[1] - marks[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_streams_with_real_engines_give_their_memory_back(
    bundles: dict[str, Path], host_library: ctypes.CDLL
) -> None:
    out = subprocess.run(
        [sys.executable, "-c", CYCLES, str(bundles["taehv"]), str(host_library._name)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert int(out.stdout) <= 2 << 20
