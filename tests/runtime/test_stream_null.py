"""The loop on the null backend: what is called, how often, and that nothing grows."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bundle_factory import Codec, make_manifest

from liveedit.errors import BackendError, BundleError, UsageError
from liveedit.runtime import EditedChunk, MaskCachePolicy, StreamEditor
from liveedit.runtime.null_backend import NullBackend


def clip(n: int) -> npt.NDArray[np.uint8]:
    return (
        np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(48, 2).repeat(3, 3)
    )


def null_editor(root: Path, codec: Codec = "taehv", **options: object) -> StreamEditor:
    make_manifest(root, codec=codec)
    return StreamEditor.open(root, backend="null", verify=False, **options)  # type: ignore[arg-type]


def backend_of(editor: StreamEditor) -> NullBackend:
    backend = editor._backend
    assert isinstance(backend, NullBackend)
    return backend


def covered(chunks: list[EditedChunk]) -> list[int]:
    """The source frame of every frame that came out."""
    return [c.first_frame + i for c in chunks for i in range(len(c.frames))]


@pytest.mark.parametrize("codec", ["wan_vae", "taehv"])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 10, 12, 13, 21, 24, 25, 50])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_as_many_frames_come_out_as_went_in(
    tmp_path: Path, codec: Codec, count: int, size: int
) -> None:
    with null_editor(tmp_path, codec) as editor:
        editor.set_prompt("make the car red")
        frames = clip(count)
        chunks = [c for i in range(0, count, size) for c in editor.push(frames[i : i + size])]
        chunks += editor.flush()
        assert editor.flush() == []
    assert covered(chunks) == list(range(count))
    assert [c.index for c in chunks] == list(range(len(chunks)))
    shortest = 9 + 12 * (len(chunks) - 1)
    assert count <= shortest < count + 12


def test_first_chunks_of_each_codec(tmp_path: Path) -> None:
    for codec, needed in (("wan_vae", 9), ("taehv", 12)):
        with null_editor(tmp_path / codec, codec) as editor:  # type: ignore[arg-type]
            editor.set_prompt("red")
            assert editor.push(clip(needed - 1)) == []
            (chunk,) = editor.push(clip(1))
            assert (chunk.first_frame, len(chunk.frames)) == (0, 9)
            assert editor.push(clip(11)) == []
            (chunk,) = editor.push(clip(1))
            assert (chunk.first_frame, len(chunk.frames)) == (9, 12)


def test_calls_per_chunk_are_constant_after_the_window_filled(tmp_path: Path) -> None:
    with null_editor(tmp_path) as editor:
        backend = backend_of(editor)
        editor.set_prompt("red")
        editor.push(clip(12 * 5))
        first = Counter(backend.counts)
        editor.push(clip(12 * 10))
        second = Counter(backend.counts)
        editor.push(clip(12 * 10))
        assert second - first == backend.counts - second
        per_chunk = {k: v / 10 for k, v in (second - first).items()}
        assert per_chunk["run dit_step"] == 5
        assert per_chunk["run encode_next"] == per_chunk["run decode_next"] == 3
        assert per_chunk["write_noise"] == 4
        # The source, 4 passes' latents on their way, x0, 6 latents of the codec.
        assert per_chunk["copy"] == 1 + 4 + 1 + 6
        assert per_chunk["commit"] == per_chunk["guard"] == per_chunk["choose_tokens"] == 1
        assert "write" not in per_chunk
        assert "sync" not in per_chunk
        assert "alloc" not in per_chunk
        assert "run prompt" not in per_chunk


def test_buffers_are_as_large_as_computed(tmp_path: Path) -> None:
    with null_editor(tmp_path) as editor:
        sizes = dict(backend_of(editor).sizes)
        tokens, window, width, blocks, latent = 18, 72, 24, 2, 16 * 3 * 4 * 6
        kv = sum(v for k, v in sizes.items() if k.startswith(("k_cache_", "v_cache_")))
        assert kv == 2 * blocks * window * width * 4
        assert sizes["attn_store_01"] == tokens * width * 4
        assert sizes["keep_index"] == sizes["token_row"] == tokens * 4
        for name in ("noisy", "source", "noise", "x0", "next_latent", "last_good"):
            assert sizes[name] == latent * 4
        assert not any(name.startswith(("k_cache", "attn")) and "out" in name for name in sizes)
        assert sizes["encode.cache_00.0"] == sizes["encode.cache_00.1"]


def test_a_prompt_holds_from_the_next_chunk(tmp_path: Path) -> None:
    with null_editor(tmp_path) as editor:
        backend = backend_of(editor)
        assert editor.set_prompt("red") == 0
        editor.push(clip(12 * 2 + 5))
        before = backend.counts["alloc"], backend.counts["load"]
        assert editor.set_prompt("blue") == 2
        assert (backend.counts["alloc"], backend.counts["load"]) == before
        chunk, following = editor.push(clip(12 * 2 - 5))
        assert (chunk.index, chunk.num_kept) == (2, 18)
        assert chunk.kept.all()
        assert following.num_kept < 18
        assert following.kept.sum() == following.num_kept


def test_reset_starts_over(tmp_path: Path) -> None:
    with null_editor(tmp_path) as editor:
        editor.set_prompt("red")
        editor.push(clip(30))
        editor.reset()
        (chunk,) = editor.push(clip(12))
        assert (chunk.index, chunk.first_frame, chunk.num_kept) == (0, 0, 18)


def test_modes(tmp_path: Path) -> None:
    for mode in ("off", "paper"):
        policy = MaskCachePolicy(mode=mode)  # type: ignore[arg-type]
        with null_editor(tmp_path / mode, mask_cache=policy) as editor:
            editor.set_prompt("red")
            chunks = editor.push(clip(36))
            assert [c.num_kept for c in chunks] == ([18] * 3 if mode == "off" else [18, 4, 4])


def test_misuse_is_refused(tmp_path: Path) -> None:
    editor = null_editor(tmp_path)
    with pytest.raises(UsageError, match="call set_prompt before push"):
        editor.push(clip(1))
    with pytest.raises(UsageError, match="the prompt is empty"):
        editor.set_prompt(" &amp;nbsp; ")
    with pytest.raises(UsageError, match="has 6 tokens; this bundle takes at most 5"):
        editor.set_prompt("make the car red red red")
    editor.set_prompt("red")
    wrong: list[object] = [
        clip(1).astype(np.float32), clip(1)[0], clip(1)[:, :16], clip(1)[..., :2], [[1]]
    ]  # fmt: skip
    for frames in wrong:
        with pytest.raises(UsageError, match=r"this bundle takes uint8 \[n, 32, 48, 3\]"):
            editor.push(frames)  # type: ignore[arg-type]
    assert editor.push(clip(0)) == []
    assert editor.flush() == []
    with pytest.raises(UsageError, match="call reset"):
        editor.push(clip(1))
    editor.close()
    editor.close()
    for call in (editor.flush, editor.reset, lambda: editor.set_prompt("red")):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_open_refuses(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        StreamEditor.open(tmp_path)
    make_manifest(tmp_path)
    with pytest.raises(BackendError, match="no backend 'cuda'"):
        StreamEditor.open(tmp_path, backend="cuda")
    with pytest.raises(BundleError, match="holds no fp16 graphs; it holds fp32"):
        StreamEditor.open(tmp_path, precision="fp16")
    with pytest.raises(BundleError, match="not listed"):
        StreamEditor.open(tmp_path)
    with pytest.raises(UsageError, match="threads must be at least 1"):
        StreamEditor.open(tmp_path, threads=0)
    with pytest.raises(UsageError, match="on_non_finite"):
        StreamEditor.open(tmp_path, on_non_finite="ignore")  # type: ignore[arg-type]


def test_the_prompt_is_cleaned(tmp_path: Path) -> None:
    from liveedit.runtime.tokenizer import PromptTokenizer

    manifest = make_manifest(tmp_path)
    tokenizer = PromptTokenizer(tmp_path / manifest.tokenizer, text_len=6, vocab_size=16)
    ids, mask = tokenizer.encode("  make\n\tthe &amp;amp; ")
    assert ids.tolist() == [[3, 4, 8, 1, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64
    with pytest.raises(BundleError, match="has 9 tokens, the text encoder 4"):
        PromptTokenizer(tmp_path / manifest.tokenizer, text_len=6, vocab_size=4)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is no tokenizer"):
        PromptTokenizer(tmp_path / manifest.tokenizer, text_len=6, vocab_size=16)


def test_the_runtime_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, liveedit.runtime, liveedit.runtime.stream;"
        "print([m for m in ('torch', 'onnx', 'onnxscript', 'av') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


class RecordingTracer:
    """The names of open ranges, joined, in the order they were opened."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[str] = []

    @contextmanager
    def range(self, name: str, **fields: int | str) -> Iterator[None]:
        self.open.append(f"{name}:{fields['kind']}" if name == "pass" else name)
        self.seen.append("/".join(self.open))
        yield
        self.open.pop()


def test_ranges(tmp_path: Path) -> None:
    tracer = RecordingTracer()
    with null_editor(tmp_path, tracer=tracer) as editor:
        editor.set_prompt("red")
        editor.push(clip(12))
        first = len(tracer.seen)
        editor.push(clip(12))
        group, codec = ["stream/upload", "stream/encode"], ["decode", "download"]
        chunk = [
            "noise", "noise", "pass:full", "noise", "pass:pruned", "noise", "pass:pruned",
            "pass:full", "mask", *codec * 3, "pass:clean", "commit",
        ]  # fmt: skip
        expected = group * 3 + ["stream/chunk"] + [f"stream/chunk/{r}" for r in chunk]
        expected.append("stream/collect")
        assert tracer.seen[first:] == expected
        assert tracer.open == ["stream"]
    assert tracer.open == []
