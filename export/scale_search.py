"""Chooses, per activation tensor, how far to smooth and where to clip, from calibration rows.

What is minimised is the error of the layers' own outputs on the sampled rows, relative to their
size; what an edit then looks like is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from liveedit.export.calibration import Statistics, TensorRange
from liveedit.export.linears import constant, linears
from liveedit.export.quantize import Format, SiteScale, rounded, sites, weight_scale

Array = np.ndarray[Any, np.dtype[np.float32]]
ALPHAS: tuple[float | None, ...] = (None, 0.35, 0.5, 0.65, 0.8)
PERCENTILES = (100.0, 99.99, 99.9)
_LEAST = 1e-5


def smoothing_factor(amax: Array, weights: Sequence[Array], alpha: float) -> Array:
    """Per channel amax^alpha / weight^(1 - alpha), geometric mean 1 so that float16 holds it."""
    largest = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    exponent = alpha * np.log(np.maximum(amax, _LEAST))
    exponent -= (1 - alpha) * np.log(np.maximum(largest, _LEAST))
    return np.exp(np.clip(exponent - exponent.mean(), -6, 6)).astype(np.float32)


def clip_value(known: TensorRange, factor: Array | None, percentile: float) -> float:
    """The magnitude that becomes the largest number: of all that was seen, or of most rows."""
    inverse = np.float32(1) if factor is None else 1 / factor
    if percentile >= 100:
        return float((known.amax * inverse).max())
    return float(np.percentile(np.abs(known.rows * inverse), percentile))


def layer_error(
    rows: Array, weights: Sequence[Array], site: SiteScale, form: Format, real: np.dtype[Any]
) -> float:
    """Squared error of the outputs over their square, all layers that read the tensor together."""
    factor = np.ones(rows.shape[1], np.float32) if site.smooth is None else site.smooth
    step = rounded(site.scale, real)
    x = form.encode(rows / factor / step).astype(np.float32) * step
    error = size = 0.0
    for weight in weights:
        wide = weight * factor[:, None]
        columns = weight_scale(wide, form, real)
        exact = rows @ weight
        got = x @ (form.encode(wide / columns).astype(np.float32) * columns)
        error += float(np.square(got - exact).sum())
        size += float(np.square(exact).sum())
    return error / max(size, 1e-30)


def search_site(
    known: TensorRange, weights: Sequence[Array], form: Format, real: np.dtype[Any]
) -> tuple[SiteScale, float]:
    """The best way to quantise one tensor, and its error. Ties go to the simplest."""
    best: tuple[SiteScale, float] | None = None
    for alpha in ALPHAS:
        factor = None if alpha is None else smoothing_factor(known.amax, weights, alpha)
        for percentile in PERCENTILES:
            clip = max(clip_value(known, factor, percentile), _LEAST)
            site = SiteScale(clip / form.largest, factor, alpha)
            error = layer_error(known.rows, weights, site, form, real)
            if best is None or error < best[1] * 0.99:
                best = (site, error)
    assert best is not None
    return best


def search(
    model: ir.Model,
    names: Iterable[str],
    statistics: Statistics,
    form: Format,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, SiteScale]:
    """A scale for every tensor that the named linears read."""
    wanted, found = set(names), linears(model)
    out = {}
    groups = sites({n: layer for n, layer in found.items() if n in wanted})
    for number, (tensor, readers) in enumerate(groups.items(), start=1):
        real = readers[0].weight.dtype
        assert real is not None
        weights = [constant(r.weight) for r in readers]
        site, error = search_site(statistics.tensors[tensor], weights, form, real.numpy())
        out[tensor] = site
        progress(
            f"scale {number} of {len(groups)}: {readers[0].name}, alpha {site.alpha}, "
            f"error {error:.2e}"
        )
    return out
