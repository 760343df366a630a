"""FLOPs and bytes of every part of the editor, from its shapes alone.

One multiply-accumulate counts 2 FLOPs. Bytes are compulsory traffic: each input, weight and output
crosses the memory bus once, which is what a perfectly fused kernel would move. Nothing here needs a
graph, torch or a GPU; `onnx_flops` counts the exported graphs and must agree within 1 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from liveedit.config import DiTConfig, StreamConfig, TextEncoderConfig

Kind = Literal["gemm", "attention", "convolution", "pointwise", "copy"]
Pruning = Literal["self_attention", "block"]

# Passes over [tokens, dim] activations that no GEMM can absorb, per block: three norms read and
# write (6), q and k are normalised and rotated (4), the cross-attention query is normalised (2),
# v goes to the cache (1). Residual adds and gates ride in GEMM epilogues.
POINTWISE_PASSES_PER_BLOCK = 13


@dataclass(frozen=True, kw_only=True)
class Work:
    """One class of work. ``flops`` and ``bytes`` are totals, not rates."""

    name: str
    kind: Kind
    flops: float
    bytes: float = 0.0

    def __mul__(self, times: float) -> Work:
        return replace(self, flops=self.flops * times, bytes=self.bytes * times)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bytes per element: weights and GEMM inputs, activations, the KV cache."""

    weight: float = 2.0
    gemm_input: float = 2.0
    activation: float = 2.0
    kv_cache: float = 2.0


HALF = Widths()
EIGHT_BIT = Widths(weight=1.0, gemm_input=1.0)
SINGLE = Widths(weight=4.0, gemm_input=4.0, activation=4.0, kv_cache=4.0)


def gemm(name: str, m: float, k: float, n: float, widths: Widths = HALF, count: int = 1) -> Work:
    """``count`` products [m, k] x [k, n]."""
    moved = k * n * widths.weight + m * k * widths.gemm_input + m * n * widths.activation
    return Work(name=name, kind="gemm", flops=2.0 * m * k * n * count, bytes=moved * count)


def attention(
    name: str, q: float, k: float, width: int, widths: Widths = HALF, count: int = 1
) -> Work:
    """``count`` attentions of ``q`` queries over ``k`` keys, all heads together ``width`` wide."""
    moved = 2.0 * q * width * widths.activation + 2.0 * k * width * widths.kv_cache
    return Work(name=name, kind="attention", flops=4.0 * q * k * width * count, bytes=moved * count)


def dit_pass(
    dit: DiTConfig,
    *,
    tokens: int,
    keys: int,
    kept: int | None = None,
    kept_keys: int | None = None,
    pruning: Pruning = "self_attention",
    widths: Widths = HALF,
) -> list[Work]:
    """One pass of the DiT over one chunk.

    Args:
        tokens: tokens of the chunk, L.
        keys: keys that a full pass attends to, the chunk's own included.
        kept: kept tokens of a pruned pass; None for a full pass.
        kept_keys: keys that a pruned pass attends to; default: the dropped tokens' keys are out of
            view, as in the stream (`keys - tokens + kept`).
        pruning: which part runs on the kept tokens only.
    """
    d, n = dit.dim, dit.num_layers
    q = tokens if kept is None else kept
    rest = q if pruning == "block" else tokens  # cross-attention and FFN
    visible = keys
    if kept is not None:
        visible = keys - tokens + kept if kept_keys is None else kept_keys
    work = [
        gemm("qkvo", q, d, d, widths, 4 * n),
        attention("self_attention", q, visible, d, widths, n),
        gemm("cross_projection", rest, d, d, widths, 2 * n),
        attention("cross_attention", rest, dit.text_len, d, widths, n),
        _sum("ffn", gemm("", rest, d, dit.ffn_dim, widths, n),
             gemm("", rest, dit.ffn_dim, d, widths, n)),
        embedding(dit, tokens, widths),
        Work(
            name="pointwise",
            kind="pointwise",
            flops=0.0,
            bytes=_pointwise_rows(q, rest) * d * widths.activation * n,
        ),
    ]  # fmt: skip
    if kept is not None:
        work.append(mask_traffic(dit, tokens, kept, widths))
    return work


def _pointwise_rows(q: float, rest: float) -> float:
    """Rows touched per block: 7 passes belong to self-attention, the others to what follows."""
    return 7 * q + (POINTWISE_PASSES_PER_BLOCK - 7) * rest


def embedding(dit: DiTConfig, tokens: int, widths: Widths = HALF) -> Work:
    """Patch embedding, time MLP and head, which run once per pass."""
    d = dit.dim
    return _sum(
        "embedding",
        gemm("", tokens, dit.in_channels * 4, d, widths),
        gemm("", 1, dit.freq_dim, d, widths),
        gemm("", 1, d, d, widths),
        gemm("", 1, d, 6 * d, widths),
        gemm("", tokens, d, dit.latent_channels * 4, widths),
    )


def mask_traffic(dit: DiTConfig, tokens: int, kept: int, widths: Widths = HALF) -> Work:
    """Gather of the kept rows, scatter of their outputs, fill of the dropped ones."""
    rows = 4 * kept + 2 * (tokens - kept)
    return Work(
        name="gather_scatter",
        kind="copy",
        flops=0.0,
        bytes=float(rows) * dit.dim * widths.activation * dit.num_layers,
    )


def prompt_graph(dit: DiTConfig, widths: Widths = HALF) -> Work:
    """The text MLP and the keys and values of all cross-attentions, once per prompt."""
    d, t = dit.dim, dit.text_len
    return _sum(
        "prompt",
        gemm("", t, dit.text_dim, d, widths),
        gemm("", t, d, d, widths),
        gemm("", t, d, d, widths, 2 * dit.num_layers),
    )


def text_encoder(text: TextEncoderConfig, text_len: int, widths: Widths = HALF) -> Work:
    """The UMT5 encoder, once per prompt. Embedding look-ups count no FLOPs."""
    n = text.num_layers
    return _sum(
        "text_encoder",
        gemm("", text_len, text.dim, text.dim_attn, widths, 3 * n),
        gemm("", text_len, text.dim_attn, text.dim, widths, n),
        attention("", text_len, text_len, text.dim_attn, widths, n),
        gemm("", text_len, text.dim, text.ffn_dim, widths, 2 * n),
        gemm("", text_len, text.ffn_dim, text.dim, widths, n),
    )


def text_encoder_bytes(text: TextEncoderConfig, width: float = 2.0) -> float:
    """Size of the encoder's weights, the vocabulary included."""
    per_layer = 4 * text.dim * text.dim_attn + 3 * text.dim * text.ffn_dim
    return width * (text.vocab_size * text.dim + text.num_layers * per_layer)


def kv_cache_bytes(dit: DiTConfig, stream: StreamConfig, width: float = 2.0) -> float:
    """Keys and values of all blocks."""
    return 2.0 * dit.num_layers * stream.kv_cache_length * dit.dim * width


def dit_parameters(dit: DiTConfig) -> int:
    """Parameters of the DiT, biases, norms and modulation tables included."""
    d, f = dit.dim, dit.ffn_dim

    def linear(i: int, o: int) -> int:
        return i * o + o

    block = 8 * linear(d, d) + linear(d, f) + linear(f, d) + 4 * d + 2 * d + 6 * d
    return (
        dit.num_layers * block
        + linear(dit.in_channels * 4, d)
        + linear(dit.text_dim, d)
        + linear(d, d)
        + linear(dit.freq_dim, d)
        + linear(d, d)
        + linear(d, 6 * d)
        + 2 * d
        + linear(d, dit.latent_channels * 4)
    )


@dataclass(frozen=True, kw_only=True)
class MaskCache:
    """Which passes of a steady-state chunk run pruned, and how."""

    keep: float = 1.0  # kept share of the chunk's tokens
    mode: Literal["off", "released", "paper"] = "released"
    pruning: Pruning = "self_attention"

    def pruned_passes(self, num_denoising: int) -> int:
        """`released` prunes passes 1 and 2, `paper` every denoising pass; the clean pass is full.

        The reference table's "passes 2-5" also prunes the last pass; see `chunk_work`.
        """
        if self.mode == "off" or self.keep >= 1.0:
            return 0
        return min(2, max(0, num_denoising - 1)) if self.mode == "released" else num_denoising


def chunk_work(
    dit: DiTConfig,
    stream: StreamConfig,
    *,
    mask: MaskCache | None = None,
    pruned_passes: int | None = None,
    shortened_keys: bool = True,
    widths: Widths = HALF,
) -> list[Work]:
    """All DiT passes of one steady-state chunk (denoising passes and the clean pass).

    Args:
        pruned_passes: overrides how many of the passes are pruned.
        shortened_keys: a pruned pass does not see the dropped tokens' keys (what the stream does).
            False keeps the key count of a full pass, as the closed formula does.
    """
    mask = mask or MaskCache(mode="off")
    passes = len(stream.denoising_step_list) + 1
    pruned = mask.pruned_passes(passes - 1) if pruned_passes is None else pruned_passes
    tokens, keys = stream.block_seq_length, stream.kv_cache_length
    full = dit_pass(dit, tokens=tokens, keys=keys, widths=widths)
    total = [w * (passes - pruned) for w in full]
    if pruned:
        kept = max(1, round(mask.keep * tokens))
        total += [
            w * pruned
            for w in dit_pass(
                dit,
                tokens=tokens,
                keys=keys,
                kept=kept,
                kept_keys=None if shortened_keys else keys,
                pruning=mask.pruning,
                widths=widths,
            )
        ]
    return merge(total)


def merge(work: Iterable[Work]) -> list[Work]:
    """Sum entries of the same name, in order of first appearance."""
    out: dict[str, Work] = {}
    for w in work:
        out[w.name] = w if w.name not in out else _sum(w.name, out[w.name], w)
    return list(out.values())


def total_flops(work: Iterable[Work]) -> float:
    return sum(w.flops for w in work)


def video_frames_per_chunk(stream: StreamConfig) -> int:
    """Pixel frames of a steady-state chunk."""
    return 4 * stream.num_frame_per_block


def _sum(name: str, *parts: Work) -> Work:
    return Work(
        name=name,
        kind=parts[0].kind,
        flops=sum(p.flops for p in parts),
        bytes=sum(p.bytes for p in parts),
    )
