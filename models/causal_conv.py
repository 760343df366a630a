"""Causal 3D convolutions of a streamed clip.

A clip is a batch of frames [T, C, H, W]; a step of a stream has one to four. The two past frames
come from a cache that starts as zeros, which is exactly the causal zero padding: nothing is padded
in time.

A convolution runs in one of two forms, which differ in rounding only: as the 3D one that its
weight describes or, after `FrameConv3d.fold_time_`, as a 2D one on three frames stacked along the
channels. Engines have more 2D kernels; stacking costs three copies of the frames.
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

    def past(self, x: Tensor, frames: int = 2) -> Tensor:
        """The ``frames`` before x [T, C, H, W]; the last ones of both together are kept."""
        past = self._take(x, frames)
        self._new.append(torch.cat([past, x])[-frames:])
        return past

    def skip(self, x: Tensor) -> None:
        """The layer is not reached in the first call; its cache of two frames stays zero.

        The sum of zeros is zero. Handed on as it is, input and output would be one tensor, and a
        builder keeps only one of the two names.
        """
        past = self._take(x, 2)
        self._new.append(past + past)

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
    """A 3D convolution on frames, without padding in time.

    Args of the constructor: kernel is (taps in time, side in space); space keeps its size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (1, 1),
        time_stride: int = 1,
    ) -> None:
        super().__init__()
        self.taps, side = kernel
        self.time_stride = time_stride
        self.padding = side // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.taps, side, side))
        self.bias = nn.Parameter(torch.empty(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        bound = (in_channels * self.taps * side * side) ** -0.5
        nn.init.uniform_(self.bias, -bound, bound)

    def fold_time_(self) -> None:
        """Turn [out, in, taps, k, k] into [out, taps * in, k, k]: the 2D form, from now on."""
        if self.weight.dim() == 5:
            folded = self.weight.detach().transpose(1, 2).flatten(1, 2).contiguous()
            self.weight = nn.Parameter(folded)

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        """[T, C, H, W] after ``past`` [P, C, H, W] -> [(P + T - taps) // time_stride + 1, ...]."""
        if self.weight.dim() == 4:
            out: Tensor = F.conv2d(
                self._stack(x, past), self.weight, self.bias, padding=self.padding
            )
            return out
        if past is not None:
            x = torch.cat([past, x])
        clip = F.conv3d(
            x.transpose(0, 1).unsqueeze(0),
            self.weight,
            self.bias,
            stride=(self.time_stride, 1, 1),
            padding=(0, self.padding, self.padding),
        )
        return clip.squeeze(0).transpose(0, 1)

    def _stack(self, x: Tensor, past: Tensor | None) -> Tensor:
        """[frames out, taps * C, H, W]: what each output frame sees, oldest first."""
        if past is None:
            assert self.taps == 1
            return x
        frames = [*torch.split(past, 1), *torch.split(x, 1)]
        starts = range(0, len(frames) - self.taps + 1, self.time_stride)
        return torch.cat([torch.cat(frames[i : i + self.taps], dim=1) for i in starts])


class CausalConv3d(FrameConv3d):
    """3 x 3 x 3; each frame sees itself and the two before. As many frames out as in."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 3))

    def step(self, x: Tensor, walk: CacheWalk) -> Tensor:
        out: Tensor = self(x, walk.past(x))
        return out
