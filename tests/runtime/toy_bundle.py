"""A bundle of small ONNX graphs that obey the contract, and the same networks in numpy.

The networks are linear maps around a real attention with rotary keys, so a mistake of the loop
shows in the numbers; the numpy form has no cache, no slots and no buckets.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from bundle_factory import Codec, make_manifest
from onnx import numpy_helper, parser

from liveedit.bundle import Manifest, TensorSpec, file_entries, write_manifest
from liveedit.config import StreamConfig

Array = npt.NDArray[np.float32]
TYPES = {"float32": "float", "int32": "int32", "int64": "int64"}


def weights(model_dim: int, blocks: int) -> dict[str, Array]:
    rng = np.random.default_rng(7)

    def matrix(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    w = {"w_in": matrix(128, model_dim), "w_out": matrix(model_dim, 64)}
    for i in range(blocks):
        w |= {f"w{n}_{i:02}": matrix(model_dim, model_dim) for n in "qkvo"}
        w |= {f"wc{n}_{i:02}": matrix(8, model_dim) for n in "kv"}
    w |= {"table": matrix(16, 8), "w_encode": matrix(3, 16), "w_decode": matrix(16, 12)}
    w["w_out"] *= 0.3
    w["w_decode"] *= 0.1  # most pixels inside [0, 1]
    return w


def save(path: Path, body: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
         constants: dict[str, npt.NDArray[np.generic]]) -> None:  # fmt: skip
    def values(specs: tuple[TensorSpec, ...]) -> str:
        return ", ".join(
            f"{TYPES[t.dtype]}[{', '.join(map(str, t.shape))}] {t.name}" for t in specs
        )

    text = f'<ir_version: 10, opset_import: ["" : 24]> g ({values(inputs)}) => ({values(outputs)})'
    model = parser.parse_model(text + " {" + body + "}")
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def dit_step_body(blocks: int) -> str:
    body = """
        both = Concat <axis = 1> (noisy, source)
        patches = Reshape (both, patch_shape)
        ordered = Transpose <perm = [0, 2, 3, 5, 1, 4, 6]> (patches)
        flat = Reshape (ordered, token_shape)
        x_00 = MatMul (flat, w_in)
        time = Mul (timestep, thousandth)
        boost = Add (time, unit)
        zero_token = Sub (keep_index, keep_index)
        safe_keep = Max (keep_index, zero_token)
        cos = Gather <axis = 1> (rope_cos, safe_keep)
        sin = Gather <axis = 1> (rope_sin, safe_keep)
        minus_one = Sub (zero_i32, one_i32)
        is_kept = Greater (token_row, minus_one)
        safe_row = Max (token_row, zero_i32)
        kept_column = Unsqueeze (is_kept, axis_1)
        length = Cast <to = 7> (kv_length)
    """
    for i in range(blocks):
        n, m = f"{i:02}", f"{i + 1:02}"
        body += f"""
        h_{n} = Mul (x_{n}, boost)
        hk_{n} = Gather <axis = 1> (h_{n}, safe_keep)
        """
        for p in "qkv":
            body += f"""
            flat_{p}_{n} = MatMul (hk_{n}, w{p}_{n})
            split_{p}_{n} = Reshape (flat_{p}_{n}, head_shape)
            {p}_{n} = Transpose <perm = [0, 2, 1, 3]> (split_{p}_{n})
            """
        for p in "qk":
            body += f"turned_{p}_{n} = RotaryEmbedding <interleaved = 1> ({p}_{n}, cos, sin)\n"
        body += f"""
        k_cache_{n}_out = TensorScatter <axis = 2> (k_cache_{n}, turned_k_{n}, write_index)
        v_cache_{n}_out = TensorScatter <axis = 2> (v_cache_{n}, v_{n}, write_index)
        heads_{n} = Attention (turned_q_{n}, k_cache_{n}_out, v_cache_{n}_out, , , , length)
        back_{n} = Transpose <perm = [0, 2, 1, 3]> (heads_{n})
        merged_{n} = Reshape (back_{n}, merge_shape)
        out_{n} = MatMul (merged_{n}, wo_{n})
        rows_{n} = Gather <axis = 1> (out_{n}, safe_row)
        attn_store_{n}_out = Where (kept_column, rows_{n}, attn_store_{n})
        y_{n} = Add (x_{n}, attn_store_{n}_out)
        ck_{n} = ReduceMean <keepdims = 0> (cross_k_{n}, axis_2)
        cv_{n} = ReduceMean <keepdims = 0> (cross_v_{n}, axis_2)
        cross_{n} = Mul (ck_{n}, cv_{n})
        text_{n} = Reshape (cross_{n}, text_shape)
        x_{m} = Add (y_{n}, text_{n})
        """
    return (
        body
        + f"""
        v_flat = MatMul (x_{blocks:02}, w_out)
        v_patches = Reshape (v_flat, out_shape)
        v_ordered = Transpose <perm = [0, 4, 1, 2, 5, 3, 6]> (v_patches)
        velocity = Reshape (v_ordered, latent_shape)
        scaled = Mul (velocity, sigma)
        x0 = Sub (noisy, scaled)
        keep_share = Sub (unit, sigma_next)
        clean_part = Mul (x0, keep_share)
        noise_part = Mul (noise, sigma_next)
        next_latent = Add (clean_part, noise_part)
    """
    )


def make_bundle(
    root: Path, *, codec: Codec = "taehv", stream: StreamConfig | None = None
) -> Manifest:
    """Write the graphs and a manifest that lists them."""
    manifest = make_manifest(root, codec=codec, stream=stream)
    model, stream = manifest.model, manifest.stream
    dit, graphs = model.dit, manifest.graphs["fp32"]
    w = weights(dit.dim, dit.num_layers)
    F, h, wd = stream.num_frame_per_block, stream.latent_height, stream.latent_width
    half_h, half_w, heads, d = h // 2, wd // 2, dit.num_heads, dit.head_dim

    def write(name: str, body: str, **constants: npt.NDArray[np.generic]) -> None:
        spec = graphs[name]
        save(root / spec.file, body, spec.inputs, spec.outputs, constants)

    write(
        "text_encoder",
        """
        rows = Gather (table, input_ids)
        mask = Cast <to = 1> (attention_mask)
        column = Unsqueeze (mask, last_axis)
        text_embeds = Mul (rows, column)
        """,
        table=w["table"],
        last_axis=ints(2),
    )
    write(
        "prompt",
        "".join(
            f"""
            flat_{p}_{i:02} = MatMul (text_embeds, wc{p}_{i:02})
            split_{p}_{i:02} = Reshape (flat_{p}_{i:02}, shape)
            cross_{p}_{i:02} = Transpose <perm = [0, 2, 1, 3]> (split_{p}_{i:02})
            """
            for i in range(dit.num_layers)
            for p in "kv"
        ),
        shape=ints(1, dit.text_len, heads, d),
        **{n: v for n, v in w.items() if n.startswith("wc")},
    )
    write(
        "dit_step",
        dit_step_body(dit.num_layers),
        patch_shape=ints(1, 32, F, half_h, 2, half_w, 2),
        token_shape=ints(1, F * half_h * half_w, 128),
        head_shape=ints(1, -1, heads, d),
        merge_shape=ints(1, -1, dit.dim),
        text_shape=ints(1, 1, dit.dim),
        out_shape=ints(1, F, half_h, half_w, 16, 2, 2),
        latent_shape=ints(1, 16, F, h, wd),
        axis_1=ints(1),
        axis_2=ints(2),
        thousandth=np.float32([1e-3]),
        unit=np.float32([1.0]),
        zero_i32=np.int32([0]),
        one_i32=np.int32([1]),
        **{
            n: v
            for n, v in w.items()
            if n[:2] in ("w_", "wq", "wk", "wv", "wo") and "code" not in n
        },
    )
    H, W = stream.height_px, stream.width_px
    for name in graphs:
        if name.startswith("encode"):
            # The cache is written from the frames alone: nothing orders it after its reader.
            write(
                name,
                """
                seen = Concat <axis = 2> (cache_00, frames)
                mean = ReduceMean <keepdims = 0> (seen, time)
                blocks = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (mean)
                last = Transpose <perm = [0, 2, 3, 1]> (blocks)
                mapped = MatMul (last, w_encode)
                first = Transpose <perm = [0, 3, 1, 2]> (mapped)
                latent = Unsqueeze (first, time)
                cache_00_out = Slice (frames, from, to, time)
                """,
                time=ints(2),
                w_encode=w["w_encode"],
                **{"from": ints(-1), "to": ints(2**31)},
            )
        if name.startswith("decode"):
            count = 1 if name == "decode_first" else 4
            write(
                name,
                """
                cache_00_out = Identity (latent)
                old = Mul (cache_00, half)
                sum = Add (latent, old)
                last = Transpose <perm = [0, 2, 3, 4, 1]> (sum)
                mapped = MatMul (last, w_decode)
                split = Reshape (mapped, split_shape)
                turned = Transpose <perm = [0, 3, 4, 1, 2]> (split)
                squeezed = Reshape (turned, small_shape)
                large = Resize <mode = "nearest", nearest_mode = "floor",
                    coordinate_transformation_mode = "asymmetric"> (squeezed, , , sizes)
                frames_all = Reshape (large, frame_shape)
                shifted = Add (frames_all, half)
                frames = Clip (shifted, low, high)
                """,
                half=np.float32([0.5]),
                w_decode=w["w_decode"][:, : 3 * count],
                split_shape=ints(1, h, wd, 3, count),
                small_shape=ints(1, 3 * count, h, wd),
                sizes=ints(1, 3 * count, H, W),
                frame_shape=ints(1, 3, count, H, W),
                low=np.array(0, dtype=np.float32),
                high=np.array(1, dtype=np.float32),
            )
    files = [manifest.tokenizer, *(g.file for g in graphs.values())]
    manifest = replace(manifest, files=file_entries(root, files))
    write_manifest(root, manifest)
    return manifest
