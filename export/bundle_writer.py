"""Writes a bundle: every graph in every precision, each weight once, hashed, atomically."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from liveedit import __version__
from liveedit.bundle import MANIFEST, GraphSpec, Manifest, file_entries, write_manifest
from liveedit.config import ModelConfig, StreamConfig
from liveedit.errors import LiveEditError, UsageError, disk_full
from liveedit.export.graphs import PRECISIONS, codec_spec, graphs, trace_graph
from liveedit.export.weights import WeightFile, half_storage, save, weight_bytes

Progress = Callable[[str], None]


def write_bundle(
    out: Path,
    model: ModelConfig,
    stream: StreamConfig,
    weights: Mapping[str, Mapping[str, Tensor]],
    tokenizer: bytes,
    *,
    precisions: Sequence[str] = ("fp32",),
    half_weights: bool = False,
    with_data: bool = True,
    notes: dict[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress = lambda message: None,
) -> Manifest:
    """Export every graph and write the bundle directory ``out``.

    Args:
        weights: "dit", "codec" and "text_encoder" -> state dict with checkpoint keys. A network
            that is absent is left out of the bundle with its graphs.
        tokenizer: content of tokenizer.json.
        half_weights: store the fp32 graphs' weights as float16 (they still compute in float32);
            fp16 graphs then share them.
        with_data: False writes graphs whose weight files are absent, for structure checks.
        overwrite: replace an existing bundle.

    Raises:
        UsageError: unknown precision, or ``out`` exists and is not to be replaced.
        LiveEditError: the disk is full. Nothing is left under ``out`` in any error.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UsageError(
                f"no precision {precision!r}; there are {', '.join(PRECISIONS)}. INT8 and FP8 are "
                "made from an fp16 or fp32 bundle."
            )
    if out.exists() and not (overwrite and (out / MANIFEST).is_file()):
        raise UsageError(
            f"{out} exists. Choose another directory"
            + ("" if overwrite else ", or add --overwrite to replace a bundle there")
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        manifest = _write(
            root, model, stream, weights, tokenizer, precisions, half_weights, with_data, progress
        )
        manifest = replace(manifest, notes=dict(notes or {}))
        write_manifest(root, manifest)
        os.chmod(root, 0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(root, out)
    except OSError as error:
        if not disk_full(error):
            raise
        raise LiveEditError(
            f"the disk of {out.parent} is full; nothing was written. Free space and export again."
        ) from None
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return manifest


def _write(
    root: Path,
    model: ModelConfig,
    stream: StreamConfig,
    weights: Mapping[str, Mapping[str, Tensor]],
    tokenizer: bytes,
    precisions: Sequence[str],
    half_weights: bool,
    with_data: bool,
    progress: Progress,
) -> Manifest:
    (root / "tokenizer.json").write_bytes(tokenizer)
    folder = root / "graphs"
    folder.mkdir()
    written: dict[str, dict[str, GraphSpec]] = {precision: {} for precision in precisions}
    files: dict[str, WeightFile] = {}
    for precision in precisions:
        for name, graph in graphs(model, stream).items():
            if graph.weights not in weights:
                continue
            if graph.weights not in files:
                files[graph.weights] = WeightFile(folder / f"{graph.weights}.weights")
            progress(f"{precision}: tracing {name}")
            traced, spec = trace_graph(graph, precision, weights[graph.weights])
            if half_weights and precision == "fp32":
                half_storage(traced)
            progress(f"{precision}: writing {name}")
            file = f"graphs/{name}.{precision}.onnx"
            save(traced, root / file, files[graph.weights], with_data=with_data)
            written[precision][name] = replace(spec, file=file, weights_bytes=weight_bytes(traced))
    for weight_file in files.values():
        weight_file.close()
        if not with_data:
            weight_file.path.unlink()
    paths = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    progress("hashing")
    return Manifest(
        written_by={
            "liveedit": __version__,
            "torch": version("torch"),
            "onnx": version("onnx"),
            "onnxscript": version("onnxscript"),
        },
        model=model,
        stream=stream,
        codec=codec_spec(model),
        graphs=written,
        files=file_entries(root, paths),
    )
