"""Memory: what this process holds, and what a GPU has left."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

from liveedit.errors import LiveEditError
from liveedit.runtime.cuda_device import cuda_api


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


def device_free_bytes() -> int:
    """What can still be allocated on the first GPU.

    Raises:
        BackendError: there is none, or its driver is too old.
    """
    free, _ = cuda_api()("cudaMemGetInfo")
    return int(free)
