"""Chooses, per activation tensor, how far to smooth and where to clip, from calibration rows.

What is minimised is the error of the layers' own outputs on the sampled rows, relative to their
size; what an edit then looks like is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from liveedit.export.activation_range import RULES, cuts
from liveedit.export.calibration import Statistics, TensorRange
from liveedit.export.linears import constant, linears
from liveedit.export.quantize import Format, SiteScale, rounded, sites, weight_scale

Array = np.ndarray[Any, np.dtype[np.float32]]
ALPHAS: tuple[float | None, ...] = (None, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_REFINED = 2  # of the best alphas with the maximum, tried with every other cut
_ROWS = 384  # judged per tensor
_LEAST = 1e-5


def smoothing_factor(amax: Array, weights: Sequence[Array], alpha: float) -> Array:
    """Per channel amax^alpha / weight^(1 - alpha), geometric mean 1 so that float16 holds it."""
    largest = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    exponent = alpha * np.log(np.maximum(amax, _LEAST))
    exponent -= (1 - alpha) * np.log(np.maximum(largest, _LEAST))
    return np.exp(np.clip(exponent - exponent.mean(), -6, 6)).astype(np.float32)


class SiteTrial:
    """The layers that read one tensor, with their exact outputs on some of its rows."""

    def __init__(
        self, known: TensorRange, weights: Sequence[Array], form: Format, real: np.dtype[Any]
    ) -> None:
        self.known, self.weights, self.form, self.real = known, weights, form, real
        self.rows = known.rows[:: -(-len(known.rows) // _ROWS)]
        self._exact = [self.rows @ w for w in weights]
        self._size = max(sum(float(np.square(y).sum()) for y in self._exact), 1e-30)
        self._coded: dict[float | None, list[Array]] = {}

    def factor(self, alpha: float | None) -> Array | None:
        return None if alpha is None else smoothing_factor(self.known.amax, self.weights, alpha)

    def largest(self, factor: Array | None) -> float:
        """The largest magnitude ever seen, after the division."""
        amax = self.known.amax if factor is None else self.known.amax / factor
        return max(float(amax.max()), _LEAST)

    def error(self, site: SiteScale) -> float:
        """Squared error of the outputs over their square, all layers that read it together."""
        divided = self.rows if site.smooth is None else self.rows / site.smooth
        step = rounded(site.scale, self.real)
        x = self.form.encode(divided / step).astype(np.float32) * step
        if site.alpha not in self._coded:
            self._coded[site.alpha] = [self._round(w, site.smooth) for w in self.weights]
        coded = self._coded[site.alpha]
        error = 0.0
        for weight, exact in zip(coded, self._exact, strict=True):
            lost = x @ weight - exact
            # The mean error goes into the bias.
            error += float(np.square(lost - lost.mean(axis=0)).sum())
        return error / self._size

    def _round(self, weight: Array, factor: Array | None) -> Array:
        wide = weight if factor is None else weight * factor[:, None]
        columns = weight_scale(wide, self.form, self.real)
        return self.form.encode(wide / columns).astype(np.float32) * columns

    def with_means(self, site: SiteScale) -> SiteScale:
        """The site with what its mean row becomes: see `quantize.SiteScale`."""
        rows = self.known.rows
        divided = rows if site.smooth is None else rows / site.smooth
        step = rounded(site.scale, self.real)
        coded = self.form.encode(divided / step).astype(np.float32) * step
        return SiteScale(
            scale=site.scale,
            smooth=site.smooth,
            alpha=site.alpha,
            cut=site.cut,
            mean=divided.mean(axis=0),
            coded_mean=coded.mean(axis=0),
        )


def search_site(
    known: TensorRange,
    weights: Sequence[Array],
    form: Format,
    real: np.dtype[Any],
    rules: tuple[str, ...] = RULES,
) -> tuple[SiteScale, float]:
    """The best way to quantise one tensor, and its error. Ties go to the simplest."""
    trial = SiteTrial(known, weights, form, real)
    wide = []
    for alpha in ALPHAS:
        factor = trial.factor(alpha)
        site = SiteScale(trial.largest(factor) / form.largest, factor, alpha, "max")
        wide.append((site, trial.error(site)))
    tried = wide if "max" in rules else []
    for site, _ in sorted(wide, key=lambda w: w[1])[:_REFINED]:
        divided = known.rows if site.smooth is None else known.rows / site.smooth
        for name, cut in cuts(
            divided, trial.largest(site.smooth), rules, form.encode, form.largest
        ):
            if name != "max":
                cut_site = SiteScale(cut / form.largest, site.smooth, site.alpha, name)
                tried.append((cut_site, trial.error(cut_site)))
    best = tried[0]
    for other in tried[1:]:
        if other[1] < best[1] * 0.99:
            best = other
    return trial.with_means(best[0]), best[1]


def search(
    model: ir.Model,
    names: Iterable[str],
    statistics: Statistics,
    form: Format,
    progress: Callable[[str], None] = lambda message: None,
    rules: tuple[str, ...] = RULES,
) -> dict[str, SiteScale]:
    """A scale for every tensor that the named linears read."""
    wanted, found = set(names), linears(model)
    out = {}
    groups = sites({n: layer for n, layer in found.items() if n in wanted})
    for number, (tensor, readers) in enumerate(groups.items(), start=1):
        real = readers[0].weight.dtype
        assert real is not None
        weights = [constant(r.weight) for r in readers]
        site, error = search_site(statistics.tensors[tensor], weights, form, real.numpy(), rules)
        out[tensor] = site
        progress(
            f"scale {number} of {len(groups)}: {readers[0].name}, alpha {site.alpha}, "
            f"cut {site.cut}, error {error:.2e}"
        )
    return out
