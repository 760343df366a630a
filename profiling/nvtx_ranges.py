"""Ranges of domain `liveedit` for Nsight Systems and any other NVTX tool.

A range's text is its name and then its fields, e.g. ``pass kind=pruned step=1 kept=1404 kv=15444``;
`parse_text` reads it back. Without the `nvtx` package, or with no tool attached to the process, the
tracer is the runtime's null tracer, so an untraced stream pays nothing.

Under CUDA graphs a range surrounds the replay on the host; tools show the kernels inside when they
trace graph nodes. `liveedit profile nsys` asks for that.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any

from liveedit.runtime.tracing import NULL_TRACER, Tracer

DOMAIN = "liveedit"
STEADY = "steady"  # the range that `liveedit bench` opens after its warm-up chunks


class NvtxTracer:
    """Pushes and pops ranges of domain `liveedit` on the calling thread."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def range(self, name: str, **fields: int | str) -> AbstractContextManager[None]:
        return _Range(self._domain, format_text(name, **fields))


class _Range:
    def __init__(self, domain: Any, text: str) -> None:
        self._domain, self._text = domain, text

    def __enter__(self) -> None:
        self._domain.push_range(self._domain.get_event_attributes(message=self._text))

    def __exit__(self, *_: object) -> None:
        self._domain.pop_range()


def tracer() -> Tracer:
    """An NVTX tracer where a tool listens, else the null tracer."""
    try:
        nvtx: Any = importlib.import_module("nvtx")
    except ImportError:
        return NULL_TRACER
    domain = nvtx.get_domain(DOMAIN)
    # The package hands out a dummy when nothing is attached.
    if isinstance(domain, nvtx._lib.DummyDomain):
        return NULL_TRACER
    return NvtxTracer(domain)


def format_text(name: str, **fields: int | str) -> str:
    """``name`` and its fields, as the tool shows them."""
    return " ".join([name, *(f"{k}={v}" for k, v in fields.items())])


def parse_text(text: str) -> tuple[str, dict[str, str]]:
    """Name and fields of a range's text. Words without '=' belong to the name."""
    words = text.split(" ")
    fields = dict(w.split("=", 1) for w in words[1:] if "=" in w)
    name = " ".join([words[0], *(w for w in words[1:] if "=" not in w)])
    return name, fields
