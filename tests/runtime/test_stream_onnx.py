"""The loop on ONNX Runtime against a numpy rewrite that has no cache, no slots and no buffers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bundle_factory import Codec, micro_stream
from toy_bundle import make_bundle, weights

from liveedit.bundle import Manifest, read_manifest, write_manifest
from liveedit.config import StreamConfig
from liveedit.errors import BackendError, BundleError, StreamError, UsageError
from liveedit.runtime import EditedChunk, MaskCachePolicy, StreamEditor
from liveedit.runtime.mask_cache import importance_map, mean_square, paper_tokens, released_tokens
from liveedit.runtime.noise import normal
from liveedit.runtime.onnx_backend import OnnxBackend
from liveedit.runtime.rope import RotaryTable
from liveedit.runtime.stream import Submitted
from liveedit.schedule import denoising_steps

Array = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]
PROMPT = "make the car red"
OFF = MaskCachePolicy(mode="off")


def moving_clip(count: int, height: int = 64, width: int = 96) -> Frames:
    rng = np.random.default_rng(5)
    scene = rng.integers(0, 256, (height // 8, width // 8 + count, 3)).repeat(8, 0).repeat(8, 1)
    return np.stack([scene[:, 2 * i : 2 * i + width] for i in range(count)]).astype(np.uint8)


def stream_of(**changes: object) -> StreamConfig:
    """72 tokens per chunk, kept counts as they come."""
    return micro_stream(**{"height_px": 64, "width_px": 96, "keep_bucket": 1, **changes})


class NumpyEditor:
    """The whole clip at once: every chunk attends to an explicit list of earlier keys."""

    def __init__(self, manifest: Manifest, policy: MaskCachePolicy, seed: int) -> None:
        self.stream, self.dit = manifest.stream, manifest.model.dit
        self.codec = manifest.codec
        self.w = weights(self.dit.dim, self.dit.num_layers)
        self.policy, self.seed = policy, seed
        self.steps = denoising_steps(manifest.stream)
        self.history: list[list[tuple[int, Array, Array]]] = [
            [] for _ in range(self.dit.num_layers)
        ]
        self.store: list[Array] = [np.zeros(0, np.float32)] * self.dit.num_layers

    def text(self, ids: list[int]) -> list[Array]:
        """What each block adds to every token."""
        embeds = np.zeros((self.dit.text_len, 8), np.float32)
        embeds[: len(ids)] = self.w["table"][ids]
        means = [
            [(embeds @ self.w[f"wc{p}_{i:02}"]).mean(0) for p in "kv"]
            for i in range(self.dit.num_layers)
        ]
        return [k * v for k, v in means]

    def encode(self, frames: Frames) -> list[Array]:
        pixels = frames.astype(np.float32) / 255
        latents, cache, start = [], np.zeros_like(pixels[:1]), 0
        while start < len(pixels):
            size = self.codec.encode_first_frames if start == 0 else self.codec.encode_next_frames
            group = pixels[start : start + size]
            seen = np.concatenate([cache, group]).mean(0)
            h, w = self.stream.latent_height, self.stream.latent_width
            blocks = seen.reshape(h, 8, w, 8, 3).mean((1, 3))
            latents.append((blocks @ self.w["w_encode"]).transpose(2, 0, 1))
            cache, start = group[-1:], start + size
        return latents

    def decode(self, latents: list[Array], first_alone: bool) -> Array:
        out, cache = [], np.zeros_like(latents[0])
        for i, latent in enumerate(latents):
            count = 1 if first_alone and i == 0 else 4
            values = (latent + 0.5 * cache).transpose(1, 2, 0) @ self.w["w_decode"][:, : 3 * count]
            h, w = values.shape[:2]
            frames = values.reshape(h, w, 3, count).transpose(3, 0, 1, 2).repeat(8, 1).repeat(8, 2)
            out.append(np.clip(frames + 0.5, 0, 1))
            cache = latent
        return np.concatenate(out)[self.codec.decode_first_trim :]

    def visible(self, chunk: int, block: int) -> list[tuple[Array, Array]]:
        """Earlier keys and values: the sink, and the newest that leave room for this chunk."""
        size, sink = (
            n // self.stream.num_frame_per_block
            for n in (self.stream.local_attn_size, self.stream.sink_size)
        )
        past = self.history[block]
        recent = [x for x in past if x[0] >= sink]
        recent = recent[max(0, len(recent) - (size - sink - 1)) :] if chunk >= sink else []
        return [(k, v) for c, k, v in past if c < sink] + [(k, v) for _, k, v in recent]

    def velocity(
        self, chunk: int, noisy: Array, source: Array, t: float, keep: npt.NDArray[np.intp],
        text: list[Array], clean: bool,
    ) -> Array:  # fmt: skip
        F, h, w = noisy.shape[1:]
        heads, d = self.dit.num_heads, self.dit.head_dim
        both = np.concatenate([noisy, source]).reshape(32, F, h // 2, 2, w // 2, 2)
        x = both.transpose(1, 2, 4, 0, 3, 5).reshape(-1, 128) @ self.w["w_in"]
        rope = RotaryTable(head_dim=d, num_frames=F, height=h // 2, width=w // 2)
        rope.move_to(chunk * F)
        turn = (rope.cos + 1j * rope.sin)[0][keep][:, None]  # [kept, 1, d/2]
        for i in range(self.dit.num_layers):
            kept = (x * (1 + t / 1000))[keep]
            q, k, v = (
                (kept @ self.w[f"w{p}_{i:02}"]).reshape(-1, heads, d).astype(np.float64)
                for p in "qkv"
            )
            q, k = (
                ((y[..., 0::2] + 1j * y[..., 1::2]) * turn).view(np.float64).reshape(y.shape)
                for y in (q, k)
            )
            past = self.visible(chunk, i)
            keys = np.concatenate([*(a for a, _ in past), k])
            values = np.concatenate([*(b for _, b in past), v])
            scores = np.exp(np.einsum("qhd,khd->hqk", q, keys) / np.sqrt(d))
            scores /= scores.sum(-1, keepdims=True)
            out = np.einsum("hqk,khd->qhd", scores, values).reshape(len(keep), -1)
            filled = self.store[i].copy() if len(keep) < len(x) else np.zeros_like(x)
            filled[keep] = out @ self.w[f"wo_{i:02}"]
            self.store[i] = filled
            if clean:
                self.history[i].append((chunk, k, v))
            x = x + filled + text[i]
        out = (x @ self.w["w_out"]).reshape(F, h // 2, w // 2, 16, 2, 2)
        return out.transpose(3, 0, 1, 4, 2, 5).reshape(noisy.shape).astype(np.float32)

    def edit(self, frames: Frames, prompts: dict[int, list[int]]) -> tuple[Array, list[Array]]:
        """All frames in [0, 1], and the importance of each chunk."""
        F = self.stream.num_frame_per_block
        sources = self.encode(frames)
        assert len(sources) % F == 0, "the test's clip fills its chunks"
        everything = np.arange(self.stream.block_seq_length)
        pruned, edited, importances, text = everything, [], [], self.text([])
        for chunk in range(len(sources) // F):
            if chunk in prompts:
                text, pruned = self.text(prompts[chunk]), everything
            source = np.stack(sources[chunk * F : chunk * F + F], 1)

            def noise(draw: int, source: Array = source, chunk: int = chunk) -> Array:
                values = normal(source.size, seed=self.seed, chunk=chunk, draw=draw)
                return values.reshape(source.shape)

            x = noise(0)
            passes = self.policy.passes(len(self.steps))
            for i, step in enumerate(self.steps):
                keep = pruned if i in passes else everything
                v = self.velocity(chunk, x, source, step.timestep, keep, text, clean=False)
                x = x - step.sigma * v
                if step.sigma_next:
                    x = (1 - step.sigma_next) * x + step.sigma_next * noise(i + 1)
            self.velocity(chunk, x, source, 0.0, everything, text, clean=True)
            importances.append(importance_map(mean_square(x[None], source[None])))
            if passes:
                choose = released_tokens if self.policy.mode == "released" else paper_tokens
                pruned = np.flatnonzero(choose(importances[-1], self.policy.keep_ratio))
            edited += [x[:, f] for f in range(F)]
        first_alone = self.codec.encode_first_frames == 1
        return self.decode(edited, first_alone), importances


def joined(chunks: list[EditedChunk]) -> Frames:
    return np.concatenate([c.frames for c in chunks])


def run(
    root: Path, frames: Frames, *, sizes: tuple[int, ...] = (1000,), **options: object
) -> list[EditedChunk]:
    """Push in pieces of the given sizes, over and over, and flush."""
    with StreamEditor.open(root, threads=1, **options) as editor:  # type: ignore[arg-type]
        editor.set_prompt(PROMPT)
        chunks, start, turn = [], 0, 0
        while start < len(frames):
            end = start + sizes[turn % len(sizes)]
            chunks += editor.push(frames[start:end])
            start, turn = end, turn + 1
        return chunks + editor.flush()


@pytest.mark.parametrize("codec", ["wan_vae", "taehv"])
@pytest.mark.parametrize(
    ("window", "sink", "policy"),
    [
        (12, 3, OFF),
        (12, 3, MaskCachePolicy(keep_ratio=0.6)),
        (12, 3, MaskCachePolicy(mode="paper", keep_ratio=0.4)),
        (6, 0, MaskCachePolicy(keep_ratio=0.6, pruned_passes=(1, 3))),
        (9, 6, OFF),
        (3, 0, OFF),
    ],
)
def test_the_stream_equals_the_naive_loop(
    tmp_path: Path, codec: Codec, window: int, sink: int, policy: MaskCachePolicy
) -> None:
    stream = stream_of(local_attn_size=window, sink_size=sink)
    manifest = make_bundle(tmp_path, codec=codec, stream=stream)
    frames = moving_clip(12 * 9 if codec == "taehv" else 12 * 9 - 3)
    expected, importances = NumpyEditor(manifest, policy, seed=3).edit(frames, {0: [3, 4, 5, 6, 1]})
    with StreamEditor.open(tmp_path, threads=1, mask_cache=policy, seed=3) as editor:
        editor.set_prompt(PROMPT)
        chunks = editor.push(frames)
    assert len(chunks) == 9
    if policy.mode != "off":
        assert all(c.num_kept < 72 for c in chunks[1:])
    for chunk, importance in zip(chunks, importances, strict=True):
        np.testing.assert_allclose(chunk.importance, importance, atol=1e-3)
    got = joined(chunks)
    np.testing.assert_allclose(got, expected * 255, atol=0.6)
    assert 0.1 < ((got > 0) & (got < 255)).mean()


def test_a_prompt_change_equals_the_naive_loop(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path, stream=stream_of())
    policy, frames = MaskCachePolicy(keep_ratio=0.6), moving_clip(60)
    naive = NumpyEditor(manifest, policy, seed=0)
    expected, _ = naive.edit(frames, {0: [3, 4, 5, 6, 1], 3: [7, 1]})
    with StreamEditor.open(tmp_path, threads=1, mask_cache=policy) as editor:
        editor.set_prompt(PROMPT)
        chunks = editor.push(frames[:38])
        assert editor.set_prompt("blue") == 3
        chunks += editor.push(frames[38:])
    np.testing.assert_allclose(joined(chunks), expected * 255, atol=0.6)
    unchanged = joined(run(tmp_path, frames, mask_cache=policy))
    assert (joined(chunks)[:33] == unchanged[:33]).all()
    assert (joined(chunks)[33:57] != unchanged[33:57]).any()


def test_text_embeddings_stand_in_for_a_prompt(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path, stream=stream_of())
    frames = moving_clip(24)
    embeds = np.zeros((1, 6, 8), dtype=np.float32)
    embeds[0, :5] = weights(24, 2)["table"][[3, 4, 5, 6, 1]]
    graphs = {n: g for n, g in manifest.graphs["fp32"].items() if n != "text_encoder"}
    write_manifest(tmp_path, replace(manifest, graphs={"fp32": graphs}))
    with StreamEditor.open(tmp_path, threads=1) as editor:
        with pytest.raises(UsageError, match="holds no text encoder; give set_text_embeds"):
            editor.set_prompt(PROMPT)
        for wrong in (embeds[0], embeds * np.nan):
            with pytest.raises(UsageError, match=r"takes finite values of shape \[1, 6, 8\]"):
                editor.set_text_embeds(wrong)
        assert editor.set_text_embeds(embeds) == 0
        chunks = editor.push(frames)
    write_manifest(tmp_path, manifest)
    assert (joined(chunks) == joined(run(tmp_path, frames))[:21]).all()


def test_piece_sizes_do_not_matter_and_seeds_do(tmp_path: Path) -> None:
    make_bundle(tmp_path, codec="wan_vae", stream=stream_of(keep_bucket=8))
    frames = moving_clip(55)
    whole = run(tmp_path, frames)
    for sizes in ((1,), (7, 1, 20), (12,)):
        pieces = run(tmp_path, frames, sizes=sizes)
        assert len(pieces) == len(whole)
        for a, b in zip(pieces, whole, strict=True):
            assert a.frames.tobytes() == b.frames.tobytes()
            assert a.importance.tobytes() == b.importance.tobytes()
            assert a.kept.tobytes() == b.kept.tobytes()
    assert len(joined(whole)) == 55
    assert (joined(run(tmp_path, frames, seed=1)) != joined(whole)).any()


def test_all_ones_equals_off_bit_for_bit(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=stream_of(keep_bucket=8))
    frames = moving_clip(80)
    off = run(tmp_path, frames, mask_cache=OFF)
    for mode in ("released", "paper"):
        policy = MaskCachePolicy(mode=mode, keep_ratio=1.0)  # type: ignore[arg-type]
        for a, b in zip(run(tmp_path, frames, mask_cache=policy), off, strict=True):
            assert a.frames.tobytes() == b.frames.tobytes()
            assert a.importance.tobytes() == b.importance.tobytes()
    pruned = run(tmp_path, frames, mask_cache=MaskCachePolicy(keep_ratio=0.5))
    assert (joined(pruned) != joined(off)).any()


def test_reset_repeats_the_stream(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=stream_of())
    frames = moving_clip(70)
    with StreamEditor.open(tmp_path, threads=1) as editor:
        editor.set_prompt(PROMPT)
        first = joined(editor.push(frames) + editor.flush())
        editor.reset()
        assert (joined(editor.push(frames) + editor.flush()) == first).all()


def test_addresses_never_move(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=stream_of(keep_bucket=8))
    with StreamEditor.open(tmp_path, threads=1) as editor:
        backend = editor._backend
        assert isinstance(backend, OnnxBackend)
        before = {n: a.ctypes.data for n, a in backend._buffers.items()}
        assert all(address % 64 == 0 for address in before.values())
        editor.set_prompt(PROMPT)
        chunks = editor.push(moving_clip(100))
        editor.set_prompt("blue")
        chunks += editor.push(moving_clip(30))
        assert len({c.num_kept for c in chunks}) > 2
        assert {n: a.ctypes.data for n, a in backend._buffers.items()} == before


def poison(editor: StreamEditor, value: float) -> None:
    """Make the next chunk's x0 what no network should give."""
    backend = editor._backend
    assert isinstance(backend, OnnxBackend)
    backend._buffers["cross_v_01"].fill(value)


def test_a_latent_that_is_not_finite_stops_the_stream(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=stream_of())
    frames = moving_clip(48)
    good = joined(run(tmp_path, frames))
    with StreamEditor.open(tmp_path, threads=1) as editor:
        editor.set_prompt(PROMPT)
        chunks = editor.push(frames[:24])
        poison(editor, np.nan)
        for call in (lambda: editor.push(frames[24:]), editor.flush):
            with pytest.raises(StreamError, match=r"chunk 2 \(from frame 21\) came out not finite"):
                call()
        assert (joined(chunks) == good[:21]).all()
        editor.reset()
        editor.set_prompt(PROMPT)
        assert (joined(editor.push(frames) + editor.flush()) == good).all()


def test_finished_chunks_are_returned_before_a_failure_is_raised(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=stream_of())

    class PoisonAtSecondChunk(StreamEditor):
        def _submit(self) -> Submitted:
            if self.chunk == 1:
                poison(self, np.inf)
            return super()._submit()

    with PoisonAtSecondChunk.open(tmp_path, threads=1) as editor:
        editor.set_prompt(PROMPT)
        assert [c.index for c in editor.push(moving_clip(36))] == [0]
        with pytest.raises(StreamError, match="chunk 1"):
            editor.push(moving_clip(1))


def test_the_stream_can_go_on_without_a_chunk(tmp_path: Path) -> None:
    make_bundle(tmp_path, stream=stream_of())
    frames = moving_clip(72)
    for policy in ("last-good", "passthrough"):
        with StreamEditor.open(tmp_path, threads=1, on_non_finite=policy) as editor:  # type: ignore[arg-type]
            editor.set_prompt(PROMPT)
            chunks = editor.push(frames[:24])
            poison(editor, np.nan)
            chunks += editor.push(frames[24:36])
            editor.set_prompt(PROMPT)
            chunks += editor.push(frames[36:]) + editor.flush()
        assert [c.recovered for c in chunks] == [None, None, policy, None, None, None, None]
        assert len(joined(chunks)) == 72
        assert np.isfinite(chunks[-1].importance).all()
        assert chunks[3].num_kept == 72
        if policy == "passthrough":
            assert (chunks[2].frames == frames[21:33]).all()


def test_one_frame(tmp_path: Path) -> None:
    for codec in ("wan_vae", "taehv"):
        make_bundle(tmp_path / codec, codec=codec, stream=stream_of())  # type: ignore[arg-type]
        (chunk,) = run(tmp_path / codec, moving_clip(1))
        assert chunk.frames.shape == (1, 64, 96, 3)


def test_a_changed_file_is_not_loaded(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    path = tmp_path / "fp32" / "prompt.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"prompt\.onnx was changed"):
        StreamEditor.open(tmp_path)
    path.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"cannot load .*prompt\.onnx"):
        StreamEditor.open(tmp_path, verify=False)


def test_a_graph_other_than_its_manifest_is_not_loaded(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path)
    graphs = manifest.graphs["fp32"]
    (tmp_path / graphs["decode_next"].file).replace(tmp_path / graphs["encode_next"].file)
    with pytest.raises(BackendError, match="disagree about tensor"):
        StreamEditor.open(tmp_path, verify=False)


MEMORY = """
import sys, resource
import numpy as np
from pathlib import Path
from liveedit.runtime import StreamEditor

def rss_kib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024

root, backend, chunks = sys.argv[1], sys.argv[2], int(sys.argv[3])
frames = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), dtype=np.uint8)
with StreamEditor.open(root, backend=backend, threads=1) as editor:
    editor.set_prompt("make the car red")
    marks = []
    for i in range(chunks):
        editor.push(frames)
        if i % (chunks // 4) == chunks // 4 - 1:
            marks.append(rss_kib())
print(marks[-1] - marks[0])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("backend", ["null", "onnxruntime"])
def test_memory_does_not_grow(tmp_path: Path, backend: str) -> None:
    make_bundle(tmp_path, stream=stream_of(keep_bucket=8))
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), backend, "200"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(out.stdout) <= 1024


def test_the_manifest_is_the_one_that_was_written(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path)
    with StreamEditor.open(tmp_path, backend="null") as editor:
        assert editor.manifest == manifest == read_manifest(tmp_path)
        assert (editor.height_px, editor.width_px) == (32, 48)
