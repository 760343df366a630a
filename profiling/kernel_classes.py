"""Kernel names to the classes of the reports: what kind of work a kernel does."""

from __future__ import annotations

import re
from typing import Literal

KernelClass = Literal[
    "gemm", "attention", "convolution", "plugin", "elementwise", "copy", "memset", "graph"
]
CLASSES: tuple[KernelClass, ...] = (
    "gemm",
    "attention",
    "convolution",
    "plugin",
    "elementwise",
    "copy",
    "memset",
    "graph",
)

# The first match wins: fused attention kernels have "gemm" in their names, convolutions too.
_RULES: tuple[tuple[KernelClass, str], ...] = (
    ("plugin", r"liveedit|mask_?cache_?(gather|scatter)"),
    ("attention", r"fmha|flash|[_:](mha|attention)|^(mha|attention)|sdpa|softmax|gemm_mha"),
    (
        "convolution",
        r"conv(?!ert)|fprop|dgrad|wgrad|winograd|implicit_?gemm|depthwise|nchwtonhwc_?conv",
    ),
    (
        "gemm",
        r"gemm|gemv|matmul|(^|[:_])(add|b)?mm\b|cutlass|nvjet|xmma|cublas|mma_sync|splitk|s\d+16816",
    ),
    (
        "copy",
        r"memcpy|copy|reformat|permut|transpose|nhwcto|nchwto|shuffle|concat|slice|tensorscatter",
    ),
)
_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _RULES)


def kernel_class(name: str) -> KernelClass:
    """The class of a kernel by its (demangled or short) name. Unmatched names are elementwise."""
    for cls, pattern in _COMPILED:
        if pattern.search(name):
            return cls
    return "elementwise"
