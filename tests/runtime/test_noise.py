"""Philox against the published known answers and a scalar rewrite; normals against statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from liveedit.runtime.noise import gaussian, normal, philox4x32

# Random123's known-answer vectors for philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def hexes(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """The paper's round written with Python integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k, q % 2**32, p >> 32 ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_the_published_known_answers(counter: str, key: str, output: str) -> None:
    words = np.array(hexes(counter), dtype=np.uint32)[:, None]
    k0, k1 = hexes(key)
    assert philox4x32(words, (k0, k1))[:, 0].tolist() == hexes(output)
    assert scalar_philox(hexes(counter), hexes(key)) == hexes(output)


def test_many_blocks_equal_the_scalar_rewrite() -> None:
    rng = np.random.default_rng(3)
    counter = rng.integers(0, 2**32, (4, 50), dtype=np.uint32)
    key = (0xDEADBEEF, 0x01234567)
    out = philox4x32(counter, key)
    for i in range(50):
        assert out[:, i].tolist() == scalar_philox(counter[:, i].tolist(), list(key))


def test_the_counter_layout() -> None:
    seed, chunk, draw = (5 << 32) + 9, (2 << 32) + 7, 3
    values = normal(11, seed=seed, chunk=chunk, draw=draw)
    for i in range(11):
        words = scalar_philox([i // 4, draw, 7, 2], [9, 5])
        first, second = words[:2] if i % 4 < 2 else words[2:]
        radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
        angle = 2 * math.pi * (second + 0.5) / 2**32
        expected = radius * (math.sin(angle) if i % 2 else math.cos(angle))
        assert values[i] == pytest.approx(expected, rel=1e-6)


def test_draws_do_not_depend_on_order_or_count() -> None:
    again = normal(1000, seed=1, chunk=4, draw=2)
    assert normal(7, seed=1, chunk=4, draw=2).tobytes() == again[:7].tobytes()
    others = [
        normal(1000, seed=1, chunk=4, draw=1),
        normal(1000, seed=1, chunk=5, draw=2),
        normal(1000, seed=2, chunk=4, draw=2),
        normal(1000, seed=1 + (1 << 32), chunk=4, draw=2),
    ]
    assert len({o.tobytes() for o in [again, *others]}) == 5


def test_the_values_are_standard_normal() -> None:
    values = normal(200_000, seed=0, chunk=0, draw=0).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**3).mean()) < 0.03
    assert abs((values**4).mean() - 3) < 0.1
    inside = [float((np.abs(values) < s).mean()) for s in (1, 2, 3)]
    assert inside == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.005)
    assert abs(np.corrcoef(values[0::2], values[1::2])[0, 1]) < 0.01


def test_the_ends_of_the_range_are_finite() -> None:
    words = np.array([[0, 2**32 - 1]] * 4, dtype=np.uint32)
    assert np.isfinite(gaussian(words)).all()
