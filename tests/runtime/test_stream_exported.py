"""The stream of an exported bundle against one-shot torch: no cache, no chunks of the codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from liveedit.bundle import read_manifest
from liveedit.export.sources import modules, random_sources
from liveedit.models.block_mask import block_causal_mask
from liveedit.runtime import EditedChunk, MaskCachePolicy, StreamEditor
from liveedit.runtime.noise import normal
from liveedit.runtime.onnx_backend import OnnxBackend
from liveedit.runtime.tokenizer import PromptTokenizer
from liveedit.schedule import denoising_steps

Frames = npt.NDArray[np.uint8]
PROMPT = "turn it red"


def clip(count: int, height: int, width: int) -> Frames:
    y, x = np.mgrid[0:height, 0:width]
    frames = [
        np.stack([(3 * x + 7 * i) % 256, (5 * y + 2 * i) % 256, (x * y) % 256], -1)
        for i in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def frames_of(chunks: list[EditedChunk]) -> Frames:
    return np.concatenate([c.frames for c in chunks])


def edit(bundle: Path, frames: Frames, **options: object) -> list[EditedChunk]:
    with StreamEditor.open(bundle, threads=1, **options) as editor:  # type: ignore[arg-type]
        editor.set_prompt(PROMPT)
        return editor.push(frames) + editor.flush()


@torch.no_grad()
def one_shot(bundle: Path, frames: Frames) -> Tensor:
    """Pixels [T, H, W, 3] in [0, 1], with every pass over the whole clip so far."""
    manifest = read_manifest(bundle)
    stream, model = manifest.stream, manifest.model
    F, S = stream.num_frame_per_block, stream.frame_seq_length
    weights = random_sources(model, 0)[0]
    networks = modules(model)
    for name, module in networks.items():
        module.to_empty(device="cpu").load_state_dict(dict(weights[name]))
        module.eval()
    tokenizer = PromptTokenizer(
        bundle / manifest.tokenizer,
        text_len=model.dit.text_len,
        vocab_size=model.text.vocab_size,
    )
    ids, mask = (torch.from_numpy(a) for a in tokenizer.encode(PROMPT))
    embeds = networks["text_encoder"](ids, mask)
    pixels = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None] / 255
    source = networks["codec"].encode(pixels)
    edited = source[:, :, :0]
    for chunk in range(source.shape[2] // F):
        end = (chunk + 1) * F
        visible = block_causal_mask(end, F, S, stream.local_attn_size, stream.sink_size)

        def noise(draw: int, shape: tuple[int, ...], chunk: int = chunk) -> Tensor:
            count = int(np.prod(shape))
            return torch.from_numpy(normal(count, seed=0, chunk=chunk, draw=draw)).view(shape)

        x = noise(0, (1, 16, F, *source.shape[3:]))
        for i, step in enumerate(denoising_steps(stream)):
            v = networks["dit"](
                torch.cat([edited, x], 2),
                source[:, :, :end],
                torch.tensor([[0.0] * (end - F) + [step.timestep] * F]),
                embeds,
                mask=visible,
            )[:, :, -F:]
            x = x - step.sigma * v
            if step.sigma_next:
                x = (1 - step.sigma_next) * x + step.sigma_next * noise(i + 1, tuple(x.shape))
        edited = torch.cat([edited, x], 2)
    return networks["codec"].decode(edited)[0].permute(1, 2, 3, 0)


@pytest.mark.parametrize("codec", ["taehv", "wan"])
def test_streaming_equals_one_shot(codec: str, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue("micro_bundle" if codec == "taehv" else "micro_wan_bundle")
    count = 12 * 7 if codec == "taehv" else 12 * 7 - 3  # the window of 3 chunks wraps
    frames = clip(count, 48, 64)
    pixels = one_shot(bundle, frames)
    got = frames_of(edit(bundle, frames, mask_cache=MaskCachePolicy(mode="off")))
    assert len(pixels) == 12 * 7 - 3
    np.testing.assert_allclose(got[: len(pixels)], pixels.numpy() * 255, atol=0.6)
    assert got.std() > 5


def test_all_ones_equals_off_and_pieces_do_not_matter(micro_bundle: Path) -> None:
    frames = clip(50, 48, 64)
    off = edit(micro_bundle, frames, mask_cache=MaskCachePolicy(mode="off"))
    ones = edit(micro_bundle, frames, mask_cache=MaskCachePolicy(keep_ratio=1.0))
    pruned = edit(micro_bundle, frames)
    assert frames_of(off).tobytes() == frames_of(ones).tobytes()
    assert len(frames_of(off)) == 50
    assert max(c.num_kept for c in pruned[1:]) < 36
    assert (frames_of(pruned) != frames_of(off)).any()
    with StreamEditor.open(micro_bundle, threads=1) as editor:
        editor.set_prompt(PROMPT)
        pieces = [c for i in range(0, 50, 7) for c in editor.push(frames[i : i + 7])]
        pieces += editor.flush()
    assert frames_of(pieces).tobytes() == frames_of(pruned).tobytes()


def test_half_precision_runs(micro_bundle: Path) -> None:
    frames = clip(30, 48, 64)
    policy = MaskCachePolicy(mode="off")
    single = frames_of(edit(micro_bundle, frames, mask_cache=policy)).astype(int)
    half = frames_of(edit(micro_bundle, frames, mask_cache=policy, precision="fp16")).astype(int)
    assert half.shape == single.shape
    assert np.abs(half - single).mean() < 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("num_keep", [2, 5, 36])
def test_the_step_may_update_its_caches_in_place(
    micro_bundle: Path, precision: str, num_keep: int
) -> None:
    """Same bits as with outputs of their own: no operator reads what was overwritten."""
    manifest = read_manifest(micro_bundle)
    spec, tokens = manifest.graphs[precision]["dit_step"], manifest.stream.block_seq_length
    keep = np.sort(np.random.default_rng(0).permutation(tokens)[:num_keep]).astype(np.int32)
    row = np.full(tokens, -1, dtype=np.int32)
    row[keep] = np.arange(num_keep)
    known = {
        "keep_index": keep, "token_row": row, "write_index": tokens,
        "kv_length": tokens + num_keep, "timestep": 500.0, "sigma": 0.5, "sigma_next": 0.25,
    }  # fmt: skip
    results = []
    for in_place in (True, False):
        rng, backend = np.random.default_rng(1), OnnxBackend(threads=1)
        names = [t.name for t in (*spec.inputs, *spec.outputs)]
        binding = {n: spec.aliases.get(n, n) if in_place else n for n in names}
        made: set[str] = set()
        for tensor in (*spec.inputs, *spec.outputs):
            buffer = binding[tensor.name]
            if buffer not in made:
                made.add(buffer)
                shape = tuple(tokens if isinstance(d, str) else d for d in tensor.shape)
                backend.alloc(buffer, tensor.dtype, shape)
                if buffer in known:
                    backend.write(buffer, known[buffer])
                elif not buffer.endswith("_out"):
                    backend.write(buffer, rng.standard_normal(shape))
        backend.load("dit_step", spec, micro_bundle / spec.file, [binding]).run(num_keep=num_keep)
        results.append({t.name: backend.read(binding[t.name]).tobytes() for t in spec.outputs})
    assert results[0] == results[1]
