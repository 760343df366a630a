"""Where to cut an activation off: the magnitude that becomes the largest eight-bit number.

Four rules. ``max`` keeps all that was ever seen; ``percentile`` cuts off the rarest values;
``mse`` takes the cut with the least squared error; ``entropy`` the one that keeps the most
information, as the distance (Kullback-Leibler) of the rounded distribution from the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from liveedit.errors import UsageError

Array = np.ndarray[Any, np.dtype[np.float32]]
RULES = ("max", "percentile", "mse", "entropy")
PERCENTILES = (99.99, 99.9)
_BINS = 2048
_LEVELS = 128  # magnitudes of an eight-bit number
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of the maximum, tried by mse
_SAMPLE = 65536  # values that mse looks at
_LEAST = 1e-5

Encode = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def check_rules(rules: tuple[str, ...]) -> tuple[str, ...]:
    """
    Raises:
        UsageError: none, or one that does not exist.
    """
    unknown = [r for r in rules if r not in RULES]
    if unknown or not rules:
        raise UsageError(
            f"no activation range {unknown[0] if unknown else ''!r}; "
            f"there are {', '.join(RULES)}, or several of them with commas"
        )
    return rules


def cuts(
    values: Array, largest: float, rules: tuple[str, ...], encode: Encode, top: float
) -> list[tuple[str, float]]:
    """The cut of every rule, by its name; equal ones once.

    Args:
        values: a sample of the tensor, any shape.
        largest: magnitude of the largest value ever seen, also outside the sample.
        encode: rounds values that were divided by their scale.
        top: the format's largest number.
    """
    magnitude = np.abs(values).ravel()
    found: list[tuple[str, float]] = []
    for rule in rules:
        if rule == "max":
            found.append((rule, largest))
        elif rule == "percentile":
            found += [(f"{p:g} %", float(np.percentile(magnitude, p))) for p in PERCENTILES]
        elif rule == "mse":
            found.append((rule, least_error_cut(values, largest, encode, top)))
        else:
            found.append((rule, entropy_cut(magnitude)))
    seen: set[float] = set()
    out = []
    for name, cut in found:
        cut = max(cut, _LEAST)
        if cut not in seen:
            seen.add(cut)
            out.append((name, cut))
    return out


def least_error_cut(values: Array, largest: float, encode: Encode, top: float) -> float:
    """The share of the maximum that rounds the values with the least squared error."""
    flat = values.ravel()
    flat = flat[:: max(1, flat.size // _SAMPLE)]
    best, least = largest, np.inf
    for share in (1.0, *_SHARES):
        step = max(share * largest, _LEAST) / top
        error = float(np.square(encode(flat / step).astype(np.float32) * step - flat).mean())
        if error < least:
            best, least = share * largest, error
    return best


def entropy_cut(magnitude: Array) -> float:
    """The cut whose rounded distribution is nearest to the true one.

    Magnitudes are counted in 2048 bins. For every cut, what lies beyond is counted into the last
    bin kept, the bins are merged to 128 levels, and each level is spread over those of its bins
    that held anything: the information lost is the divergence of that from the true counts.
    """
    top = float(magnitude.max(initial=0.0))
    if top <= 0:
        return _LEAST
    counts, edges = np.histogram(magnitude[magnitude > 0], _BINS, (0.0, top))
    counts = counts.astype(np.float64)
    beyond = counts[::-1].cumsum()[::-1]
    best, least = top, np.inf
    for kept in range(_LEVELS, _BINS + 1, _LEVELS // 8):
        inside = counts[:kept]
        true = inside.copy()
        true[-1] += beyond[kept] if kept < _BINS else 0.0
        starts = (np.arange(_LEVELS) * kept) // _LEVELS
        held = (inside > 0).astype(np.float64)
        merged, holders = np.add.reduceat(inside, starts), np.add.reduceat(held, starts)
        level = np.repeat(np.arange(_LEVELS), np.diff(np.append(starts, kept)))
        rounded = np.where(held > 0, (merged / np.maximum(holders, 1))[level], 0.0)
        lost = _divergence(true, rounded)
        if lost < least:
            best, least = float(edges[kept]), lost
    return best


def _divergence(true: np.ndarray[Any, Any], model: np.ndarray[Any, Any]) -> float:
    """Kullback-Leibler, nats. A count where the model has none is charged at a small share."""
    p, q = true / true.sum(), model / max(model.sum(), 1e-12)
    at = p > 0
    return float((p[at] * np.log(p[at] / np.maximum(q[at], 1e-9))).sum())
