"""Where activations are cut off, against distributions whose best cut is known."""

from __future__ import annotations

import numpy as np
import pytest

from liveedit.errors import UsageError
from liveedit.export.activation_range import check_rules, cuts, entropy_cut, least_error_cut
from liveedit.export.calibration import TensorRange
from liveedit.export.quantize import FORMATS
from liveedit.export.scale_search import search_site

INT8 = FORMATS["int8"]


def test_entropy_cuts_off_rare_outliers_and_keeps_even_values() -> None:
    rng = np.random.default_rng(0)
    even = np.abs(rng.uniform(-1, 1, 50_000)).astype(np.float32)
    assert entropy_cut(even) > 0.95
    spiked = np.concatenate([np.abs(rng.normal(0, 1, 100_000)), [60.0, 80.0]]).astype(np.float32)
    assert 3 < entropy_cut(spiked) < 8
    assert entropy_cut(np.zeros(9, np.float32)) > 0


def test_least_error_cut_is_the_best_of_its_grid() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([[9.0], rng.normal(0, 1, 60_000)]).astype(np.float32)
    cut = least_error_cut(values, 9.0, INT8.encode, 127)
    assert cut == pytest.approx(0.7 * 9, rel=0.2)

    def error(at: float) -> float:
        step = at / 127
        return float(np.square(INT8.encode(values / step) * step - values).mean())

    assert error(cut) <= min(error(s * 9.0) for s in (1.0, 0.8, 0.6, 0.5, 0.4)) * (1 + 1e-6)


def test_rules_are_named_and_equal_cuts_come_once() -> None:
    values = np.ones(1000, np.float32)
    found = cuts(values, 1.0, ("max", "percentile", "mse", "entropy"), INT8.encode, 127)
    assert found[0] == ("max", 1.0)
    assert len({cut for _, cut in found}) == len(found)
    with pytest.raises(UsageError, match="no activation range 'mean'; there are max, percentile"):
        check_rules(("max", "mean"))
    with pytest.raises(UsageError, match="no activation range"):
        check_rules(())


@pytest.mark.parametrize("rule", ["max", "percentile", "mse", "entropy"])
def test_a_rule_alone_is_obeyed(rule: str) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 1, (512, 16)).astype(np.float32)
    rows[7, 3] = 30
    known = TensorRange(np.abs(rows).max(axis=0), rows)
    weight = rng.normal(0, 1, (16, 8)).astype(np.float32)
    site, error = search_site(known, [weight], INT8, np.dtype(np.float32), (rule,))
    assert site.cut == rule or (rule == "percentile" and site.cut.endswith("%"))
    assert 0 < error < 0.2
    _, least = search_site(known, [weight], INT8, np.dtype(np.float32))
    assert least <= error * 1.01


def test_the_mean_row_goes_along_for_the_bias() -> None:
    rng = np.random.default_rng(3)
    rows = (rng.normal(2, 1, (256, 16))).astype(np.float32)
    known = TensorRange(np.abs(rows).max(axis=0), rows)
    site, _ = search_site(known, [np.eye(16, dtype=np.float32)], INT8, np.dtype(np.float32))
    assert site.mean is not None
    factor = 1 if site.smooth is None else site.smooth
    np.testing.assert_allclose(site.mean * factor, rows.mean(axis=0), rtol=1e-5)
