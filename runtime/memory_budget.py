"""How many bytes a bundle asks for at run time, from its manifest alone."""

from __future__ import annotations

import math
from pathlib import PurePosixPath

from liveedit.bundle import DType, Manifest, TensorSpec

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

    Keys: ``weights`` (the graph files), ``kv_cache``, ``stored_outputs`` (attention outputs that a
    pruned pass reuses), ``codec_caches``, ``prompt`` (embeddings and cross-attention keys and
    values) and ``io`` (all other inputs and outputs). An output that is written into its input's
    buffer counts once, a codec cache twice. What the backend takes for its own work is not in it.
    """
    graphs = manifest.graphs[precision]
    budget = dict.fromkeys(
        ("weights", "kv_cache", "stored_outputs", "codec_caches", "prompt", "io"), 0
    )
    folders = {PurePosixPath(g.file).parent for g in graphs.values()}
    budget["weights"] = sum(
        entry.bytes
        for name, entry in manifest.files.items()
        if PurePosixPath(name).parent in folders
    )
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
    return budget
