"""Gaussian noise from a counter: any chunk's draws can be made again, in any order.

Philox4x32-10 (Salmon et al., SC 2011) keyed by the seed; the counter is (block, draw, chunk low,
chunk high), and block i gives values 4i..4i+3. Words become normals by Box-Muller with a float64
interior, rounded once to float32, so that the host's and a device's mathematics libraries agree
but for the rarest rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten Philox rounds. counter: [4, n] uint32. Returns [4, n] uint32, new memory."""
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        product_0, product_1 = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0 = (product_1 >> SHIFT) ^ c1 ^ np.uint64(k0)
        c2 = (product_0 >> SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = product_1 & LOW, product_0 & LOW
        k0, k1 = (k0 + WEYL_0) & 0xFFFFFFFF, (k1 + WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def gaussian(words: Words) -> npt.NDArray[np.float32]:
    """Normals from words, by Box-Muller on pairs. words: [4, n] uint32. Returns [4n] float32."""
    # Half an odd multiple of 2^-32: never 0 and never 1, so the logarithm is finite.
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    angle = 2.0 * np.pi * uniform[1::2]
    out = np.empty((words.shape[1], 4), dtype=np.float32)
    out[:, 0::2] = (radius * np.cos(angle)).T
    out[:, 1::2] = (radius * np.sin(angle)).T
    return out.reshape(-1)


def normal(count: int, *, seed: int, chunk: int, draw: int) -> npt.NDArray[np.float32]:
    """[count] float32 standard normals, a pure function of its arguments.

    Draw 0 of a chunk is its initial latent; draw i re-noises before denoising pass i.
    ``seed`` and ``chunk`` are taken modulo 2^64.
    """
    blocks = -(-count // 4)
    counter = np.empty((4, blocks), dtype=np.uint32)
    counter[0] = np.arange(blocks, dtype=np.uint32)
    counter[1] = draw
    counter[2], counter[3] = chunk & 0xFFFFFFFF, (chunk >> 32) & 0xFFFFFFFF
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    return gaussian(philox4x32(counter, key))[:count]
