"""Weights for benchmarks and tests: any size, made one tensor at a time, the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class RandomWeights(Mapping[str, Tensor]):
    """A state dict of a module that was never allocated.

    Matrices and convolutions are normal with standard deviation 1 / sqrt(fan in), norms and other
    vectors that scale are 1 plus a little, biases small: activations keep their size through the
    network. Each tensor depends on its name and the seed only.
    """

    def __init__(self, module: nn.Module, seed: int) -> None:
        self._shapes = {k: v.shape for k, v in module.state_dict().items()}
        self._seed = seed

    def __getitem__(self, key: str) -> Tensor:
        shape = self._shapes[key]
        digest = hashlib.sha256(f"{self._seed}:{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        noise = torch.randn(shape, generator=generator)
        if len(shape) >= 2 and not key.endswith(("gamma", "modulation")):
            return noise / max(1, shape[1:].numel()) ** 0.5
        if key.endswith(("weight", "gamma")):
            return 1 + 0.1 * noise
        return 0.02 * noise

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
