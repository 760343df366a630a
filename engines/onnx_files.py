"""Which files an ONNX graph is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx

from liveedit.bundle import GraphSpec, Manifest, verify_file
from liveedit.errors import BundleError


def external_files(model: onnx.ModelProto) -> list[str]:
    """Names of the external data files, relative to the graph's folder."""
    names = {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(names)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def verified_graph(
    root: Path, manifest: Manifest, spec: GraphSpec
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A graph without its weights, and the hash of every file it is made of.

    Raises:
        BundleError: a file is changed, missing, or not listed in the manifest.
    """
    path = verify_file(root, manifest, spec.file)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own type for a file that is not ONNX
        raise BundleError(f"{path} is not an ONNX file: {error}. Export it again.") from None
    hashes = {spec.file: manifest.files[spec.file].sha256}
    folder = PurePosixPath(spec.file).parent
    for name in external_files(model):
        file = str(folder / name)
        verify_file(root, manifest, file)
        hashes[file] = manifest.files[file].sha256
    return model, hashes
