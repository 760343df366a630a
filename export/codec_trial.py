"""A codec's graphs in ONNX Runtime as one stream, straight from memory or from a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from liveedit.bundle import Manifest
from liveedit.errors import BackendError
from liveedit.runtime.backend import Array, Frames

CODEC_GRAPHS = ("encode_first", "encode_next", "decode_first", "decode_next")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def load_codec(root: Path, manifest: Manifest, precision: str) -> dict[str, ir.Model]:
    """Fresh copies of the codec's graphs; weights stay in their file until they are read."""
    specs = manifest.graphs[precision]
    return {n: ir.load(root / specs[n].file) for n in CODEC_GRAPHS if n in specs}


class CodecTrial:
    """Encodes and decodes whole clips. ``seen`` is given every output ``amax:...``."""

    def __init__(
        self,
        models: Mapping[str, ir.Model],
        folder: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        seen: Callable[[str, float], None] = lambda name, value: None,
    ) -> None:
        self._spec, self._seen = manifest.codec, seen
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
        self._sessions = {}
        for name, model in models.items():
            try:
                self._sessions[name] = ort.InferenceSession(
                    ir.to_proto(model).SerializeToString(),
                    sess_options=options,
                    providers=["CPUExecutionProvider"],
                )
            except Exception as error:  # onnxruntime raises a class per status, without a base
                raise BackendError(
                    f"ONNX Runtime {ort.__version__} cannot load the changed {name}: {error}"
                ) from error

    def encode(self, frames: Frames) -> list[Array]:
        """uint8 [n, H, W, 3] to latents [1, 16, 1, h, w]; frames that fill no group are left."""
        first, size = self._spec.encode_first_frames, self._spec.encode_next_frames
        ends = range(first, len(frames) + 1, size)
        groups = [frames[max(0, e - size) if e > first else 0 : e] for e in ends]
        return self._stream("encode", "frames", [pixels(g) for g in groups])

    def decode(self, latents: list[Array]) -> Array:
        """Latents to frames [n, H, W, 3], float32 in [0, 1]."""
        parts = self._stream("decode", "latent", latents)
        return np.concatenate([p[0].transpose(1, 2, 3, 0).astype(np.float32) for p in parts])

    def _stream(self, half: str, name: str, values: list[Array]) -> list[Array]:
        out: list[Array] = []
        caches: dict[str, Array] = {}
        for value in values:
            first = f"{half}_first"
            graph = first if not out and first in self._sessions else f"{half}_next"
            session = self._sessions[graph]
            feeds: dict[str, Any] = {}
            for tensor in session.get_inputs():
                dtype = _TYPES[tensor.type]
                if tensor.name == name:
                    feeds[name] = value.astype(dtype)
                else:
                    zeros = np.zeros(tuple(tensor.shape), dtype)
                    feeds[tensor.name] = caches.get(f"{tensor.name}_out", zeros)
            names = [o.name for o in session.get_outputs()]
            made = dict(zip(names, session.run(names, feeds), strict=True))
            caches = {n: v for n, v in made.items() if n.startswith("cache_")}
            for probe in (n for n in names if n.startswith("amax:")):
                self._seen(probe.removeprefix("amax:"), float(made[probe]))
            out.append(made["latent" if half == "encode" else "frames"])
        return out


def pixels(frames: Frames) -> Array:
    """uint8 [n, H, W, 3] to float32 [1, 3, n, H, W] in [0, 1]."""
    return (frames.transpose(3, 0, 1, 2)[None] / np.float32(255)).astype(np.float32)
