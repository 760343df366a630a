"""The bundle: a directory of graphs and a manifest that pins every byte of it.

    bundle.json            this manifest, itself hashed
    graphs/*.onnx          one graph per name and precision; weights beside them, each once
    tokenizer.json         the prompt tokenizer
    engines/<key>/*.plan   TensorRT plans built from the graphs

Everything that runs a bundle opens it here, and nothing is opened before its hash is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from liveedit.config import ModelConfig, StreamConfig, from_dict, to_dict
from liveedit.errors import BundleError, UsageError

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
DType = Literal["float32", "float16", "bfloat16", "int32", "int64", "uint8"]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One graph input or output. A string in ``shape`` names a dynamic dimension."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One ONNX file. ``aliases`` maps an output to the input whose buffer it writes in place.

    ``weights_bytes``: of the initializers that it reads; None if it was written without saying.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    weights_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """How the codec's step graphs map frames to latents.

    The first latent takes ``encode_first_frames`` pixel frames, every later one
    ``encode_next_frames``. Each decode call gives 4 frames (the first call of a codec with a
    ``decode_first`` graph gives 1); ``decode_first_trim`` frames of the first call are dropped.
    ``encode_delay`` pixel frames pass between the last frame a latent shows and the last it reads.
    """

    encode_first_frames: int
    encode_next_frames: int
    decode_first_trim: int
    encode_delay: int


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a bundle that is not a tensor."""

    schema: int = SCHEMA_VERSION
    written_by: dict[str, str]
    model: ModelConfig
    stream: StreamConfig
    codec: CodecSpec
    pixel_range: tuple[float, ...] = (0.0, 1.0)
    graphs: dict[str, dict[str, GraphSpec]]  # precision -> graph name -> graph
    tokenizer: str = "tokenizer.json"
    files: dict[str, FileEntry]  # relative path -> hash and size; plans too
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)  # key -> what it depends on
    notes: dict[str, str] = field(default_factory=dict)  # provenance, licence, verdicts


def refusal(manifest: Manifest, precision: str) -> str:
    """Why `liveedit quantize` refused this precision or a part of it, if it is there all the same.

    Empty for one that passed or was never judged.
    """
    verdicts = (
        text
        for name, text in sorted(manifest.notes.items())
        if name.startswith(f"{precision}.") and name.endswith(".verdict")
    )
    return "; ".join(text for text in verdicts if text.startswith("refused"))


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical(data: Any) -> bytes:
    """The bytes that are hashed: sorted keys, no spaces."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside ``path`` and rename, so that the final name never holds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``root/bundle.json`` with a hash of its own content."""
    data = to_dict(manifest)
    data["sha256"] = hashlib.sha256(canonical(data)).hexdigest()
    write_atomic(root / MANIFEST, _text(data))


def _text(data: Any) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


def file_entries(root: Path, paths: list[str]) -> dict[str, FileEntry]:
    """Hash and size of files below ``root``."""
    return {
        p: FileEntry(sha256=sha256_file(root / p), bytes=(root / p).stat().st_size) for p in paths
    }


def read_manifest(root: Path) -> Manifest:
    """Read and check ``root/bundle.json``. No other file is opened.

    Raises:
        BundleError: missing, unreadable, changed, of another schema, or inconsistent.
    """
    path = root / MANIFEST
    try:
        read = path.read_bytes()
        raw = json.loads(read)
    except FileNotFoundError:
        raise BundleError(
            f"no bundle at {root}: {MANIFEST} is missing. Make one with: liveedit export"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again.") from None
    if not isinstance(raw, dict):
        raise BundleError(f"{path} is not a manifest. Export the bundle again.")
    if raw.get("schema") != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema {raw.get('schema')!r}; this version reads {SCHEMA_VERSION}. "
            "Export the bundle again."
        )
    try:
        as_written = _text(raw) == read  # the content hash cannot see spacing or a repeated key
        stated = raw.pop("sha256", None)
        actual = hashlib.sha256(canonical(raw)).hexdigest()
    except ValueError as error:
        raise BundleError(f"{path} holds a value that is not JSON: {error}") from None
    if stated != actual or not as_written:
        raise BundleError(
            f"{path} was changed after it was written (its sha256 is {actual[:12]}, it states "
            f"{str(stated)[:12]}). Export the bundle again."
        )
    try:
        manifest = from_dict(Manifest, raw, MANIFEST)
    except UsageError as error:
        raise BundleError(f"{path}: {error}") from None
    for name in (*manifest.files, manifest.tokenizer):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{path} names {name!r}, which lies outside the bundle")
    return manifest


def verify_file(root: Path, manifest: Manifest, name: str) -> Path:
    """The path of one listed file, after its size and hash were checked.

    Raises:
        BundleError: not listed, missing, or different from what the manifest states.
    """
    entry = manifest.files.get(name)
    path = root / name
    if entry is None:
        raise BundleError(f"{name} is not listed in {root / MANIFEST}; it will not be loaded")
    if not path.is_file():
        raise BundleError(f"{path} is missing. Export the bundle again.")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(f"{path} has {size} bytes; the manifest states {entry.bytes}")
    actual = sha256_file(path)
    if actual != entry.sha256:
        raise BundleError(
            f"{path} was changed: its sha256 is {actual[:12]}, the manifest states "
            f"{entry.sha256[:12]}. Export the bundle again."
        )
    return path


def add_files(root: Path, manifest: Manifest, paths: list[str], **changes: Any) -> Manifest:
    """A manifest that also lists ``paths``, written to ``root``."""
    updated = replace(manifest, files={**manifest.files, **file_entries(root, paths)}, **changes)
    write_manifest(root, updated)
    return updated
