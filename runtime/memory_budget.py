"""How many bytes a bundle asks for at run time, from its manifest alone."""

from __future__ import annotations

import math
from pathlib import PurePosixPath

from liveedit.bundle import DType, GraphSpec, Manifest, TensorSpec
from liveedit.runtime.rope import axis_dims

ITEM_BYTES: dict[DType, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
}
_PREFIXES = {
    "k_cache_": "kv_cache",
    "v_cache_": "kv_cache",
    "attn_store_": "stored_outputs",
    "cross_": "prompt",
    "text_embeds": "prompt",
    "input_ids": "prompt",
    "attention_mask": "prompt",
    "cache_": "codec_caches",
}


def tensor_bytes(tensor: TensorSpec, num_keep: int) -> int:
    """Size of one tensor when every dynamic dimension is ``num_keep``."""
    shape = (num_keep if isinstance(d, str) else d for d in tensor.shape)
    return ITEM_BYTES[tensor.dtype] * math.prod(shape)


def memory_budget(manifest: Manifest, precision: str) -> dict[str, int]:
    """Bytes by purpose, for one precision, with every token kept.

    Keys: ``weights`` (networks whose graphs share them count once), ``kv_cache``,
    ``stored_outputs`` (attention outputs that a pruned pass reuses), ``codec_caches``, ``prompt``
    (embeddings and cross-attention keys and values), ``io`` (all other inputs and outputs) and
    ``loop`` (what `Denoiser` keeps besides: latents on their way, numbers of a chunk). An output
    that is written into its input's buffer counts once, a codec cache twice. What the backend takes
    for its own work is not in it.
    """
    graphs = manifest.graphs[precision]
    budget = dict.fromkeys(
        ("weights", "kv_cache", "stored_outputs", "codec_caches", "prompt", "io", "loop"), 0
    )
    budget["weights"] = _weights(manifest, graphs)
    seen: set[tuple[str, str]] = set()
    for graph_name, graph in graphs.items():
        codec = graph_name.startswith(("encode_", "decode_"))
        for tensor in (*graph.inputs, *graph.outputs):
            # A codec's caches swap between two sets, which its first and next graph share.
            owner = "" if not codec else graph_name
            if codec and tensor.name.startswith("cache_"):
                owner = graph_name.split("_")[0]
            name = tensor.name if codec else graph.aliases.get(tensor.name, tensor.name)
            buffer = (owner, name)
            if buffer in seen:
                continue
            seen.add(buffer)
            purpose = next(
                (p for prefix, p in _PREFIXES.items() if tensor.name.startswith(prefix)), "io"
            )
            budget[purpose] += tensor_bytes(tensor, manifest.stream.block_seq_length)
    if "dit_step" in graphs:
        budget["loop"] = _loop_bytes(manifest, graphs["dit_step"])
    return budget


def _loop_bytes(manifest: Manifest, dit_step: GraphSpec) -> int:
    stream = manifest.stream
    tokens = stream.block_seq_length
    latent = sum(tensor_bytes(t, tokens) for t in dit_step.inputs if t.name == "noisy")
    kv = sum(t.name.startswith(("k_cache_", "v_cache_")) for t in dit_step.inputs)
    pairs = axis_dims(manifest.model.dit.head_dim)[0] // 2
    pixels = stream.num_frame_per_block * stream.latent_height * stream.latent_width
    return (
        4 * latent  # encoded, two of edited, the last good one
        + 4 * pixels  # importance
        + (4 + 4 + 1) * tokens  # every token and its row, which are kept
        + 8 * (kv + pairs + 8)  # addresses, frequencies, control numbers
        + 3 * 4 * len(stream.denoising_step_list)  # scalars of the passes but one
        + 36  # single numbers
    )


def _weights(manifest: Manifest, graphs: dict[str, GraphSpec]) -> int:
    """What the graphs say that they read; for those that do not say, the files of their folder.

    Weight files of networks that did say are left out: others may hold them in other bits.
    """
    stated: dict[str, int] = {}
    folders, silent = set(), set()
    for name, graph in graphs.items():
        if graph.weights_bytes is None:
            folders.add(PurePosixPath(graph.file).parent)
            silent.add(_network(name))
        else:
            kind = name.removesuffix("_first").removesuffix("_next")
            stated[kind] = max(stated.get(kind, 0), graph.weights_bytes)
    left_out = {f"{_network(name)}.weights" for name in graphs} - {f"{n}.weights" for n in silent}
    files = ((PurePosixPath(name), entry.bytes) for name, entry in manifest.files.items())
    rest = sum(size for f, size in files if f.parent in folders and f.name not in left_out)
    return sum(stated.values()) + rest


def _network(graph: str) -> str:
    """The weight file that a graph shares with its siblings."""
    if graph in ("dit_step", "prompt"):
        return "dit"
    return "codec" if graph.startswith(("encode_", "decode_")) else graph
