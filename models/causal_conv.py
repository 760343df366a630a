"""Causal 3D convolutions of a streamed clip, run as 2D ones.

A step of a stream has at most four frames, so a clip is a batch of frames [T, C, H, W] and a
3D convolution is one 2D convolution over three frames stacked along the channels. The two past
frames come from a cache that starts as zeros, which is exactly the causal zero padding: nothing
is padded in time, and engines get 2D convolutions, for which they have the better kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CacheWalk:
    """Hands each causal layer its past frames, in execution order, and collects the new ones."""

    def __init__(self, caches: Sequence[Tensor] | None, first: bool) -> None:
        self.first = first
        self._old: Iterator[Tensor] | None = None if caches is None else iter(caches)
        self._new: list[Tensor] = []

    def extend(self, x: Tensor, frames: int = 2) -> Tensor:
        """[T, C, H, W] -> [frames + T, C, H, W]; the last ``frames`` of it are kept."""
        x = torch.cat([self._take(x, frames), x])
        self._new.append(x[-frames:])
        return x

    def skip(self, x: Tensor) -> None:
        """The layer is not reached in the first call; its cache of two frames stays zero."""
        self._new.append(self._take(x, 2))

    def start(self, x: Tensor) -> None:
        """The layer is not reached in the first call, but ``x`` [1, C, H, W] is its past.

        The sum with a cache of zeros is x. It keeps the cache an input of the graph: builders
        drop inputs that nothing reads.
        """
        self._new.append(x + self._take(x, 1))

    def finish(self) -> list[Tensor]:
        assert self._old is None or next(self._old, None) is None, "more caches than layers"
        return self._new

    def _take(self, x: Tensor, frames: int) -> Tensor:
        if self._old is None:
            return x.new_zeros(frames, *x.shape[1:])
        return next(self._old)


class FrameConv3d(nn.Module):
    """A 3D convolution without padding in time, run as a 2D one on stacked frames.

    Args of the constructor: kernel [time, space]; space is 1 or 3 and is padded to keep the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (1, 1),
        time_stride: int = 1,
    ) -> None:
        super().__init__()
        self.taps, space = kernel
        self.time_stride = time_stride
        self.padding = space // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.taps, space, space))
        self.bias = nn.Parameter(torch.empty(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        bound = (in_channels * self.taps * space * space) ** -0.5
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[T, C, H, W] -> [(T - taps) // time_stride + 1, out_channels, H, W]."""
        out: Tensor = F.conv2d(self._stack(x), self.kernel(), self.bias, padding=self.padding)
        return out

    def _stack(self, x: Tensor) -> Tensor:
        """[T, C, H, W] -> [frames out, taps * C, H, W]: what each output frame sees."""
        T, _, H, W = x.shape
        if self.taps == 1:
            return x
        if T == self.taps:  # one output frame: a view
            return x.reshape(1, -1, H, W)
        starts = T - self.taps + 1
        taps = [x[t : t + starts : self.time_stride] for t in range(self.taps)]
        return torch.cat(taps, dim=1)

    def kernel(self) -> Tensor:
        """[out_channels, taps * in_channels, k, k], taps slowest, also after ``fold_time_``."""
        if self.weight.dim() == 4:
            return self.weight
        return self.weight.transpose(1, 2).flatten(1, 2)


class CausalConv3d(FrameConv3d):
    """3 x 3 x 3, sees the current and two past frames. As many frames out as in."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 3))

    def step(self, x: Tensor, walk: CacheWalk) -> Tensor:
        out: Tensor = self(walk.extend(x))
        return out
