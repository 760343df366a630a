"""Memory of this process, and of a stream as its buffers and files predict it."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path

from liveedit.bundle import Manifest
from liveedit.errors import LiveEditError
from liveedit.runtime.mask_cache import MaskCachePolicy
from liveedit.runtime.null_backend import NullBackend
from liveedit.runtime.stream import StreamEditor


def status_bytes(key: str) -> int:
    """A size from /proc/self/status, e.g. ``VmRSS`` (now) or ``VmHWM`` (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LiveEditError(f"/proc/self/status has no {key}; memory is only measured on Linux")


def rss_bytes() -> int:
    """Resident memory now."""
    return status_bytes("VmRSS")


def release_free_memory() -> None:
    """Give freed memory back to the system, so that a later growth is a new one."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a stream must hold. Activations inside the engines are not predicted."""

    buffers_bytes: int
    kv_cache_bytes: int
    weights_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.buffers_bytes + self.weights_bytes


def predict(root: Path, manifest: Manifest, precision: str) -> Predicted:
    """Every persistent buffer at its exact size, and the weight files of one precision."""
    backend = NullBackend()
    off = MaskCachePolicy(mode="off")
    StreamEditor(root, manifest, backend, precision=precision, mask_cache=off).close()
    mine = {g.file for g in manifest.graphs[precision].values()}
    others = {g.file for graphs in manifest.graphs.values() for g in graphs.values()} - mine
    folders = {str(Path(file).parent) for file in mine}
    return Predicted(
        buffers_bytes=sum(backend.sizes.values()),
        kv_cache_bytes=sum(
            n for b, n in backend.sizes.items() if b.startswith(("k_cache_", "v_cache_"))
        ),
        weights_bytes=sum(
            entry.bytes
            for name, entry in manifest.files.items()
            if str(Path(name).parent) in folders and name not in others
        ),
    )
