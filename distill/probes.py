"""Linear readouts of a DiT's inner tokens: what their losses add to a run, and no editor keeps.

Telling a red cross from a red heart takes shapes, and the velocity alone teaches them slowly. These
losses ask outright for the shape of things, and for where the words mean.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from liveedit.config import DiTConfig
from liveedit.distill.batches import Batch, weighted_mean
from liveedit.distill.objects import SHAPES


class Probes(nn.Module):
    """Two readouts: which shape a token shows, in the middle of the network, and whether the words
    mean what is at a latent cell, before its last block.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.shape_after, self.place_after = config.num_layers // 2, config.num_layers - 1
        self.shape = nn.Linear(config.dim, len(SHAPES))
        self.place = nn.Linear(config.dim, 4)  # a token is 2 x 2 cells
        for readout in (self.shape, self.place):
            nn.init.zeros_(readout.weight)
            nn.init.zeros_(readout.bias)

    def losses(self, inner: list[Tensor], batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies of place and shape, means over clips; 0 for a clip without a known shape.

        Args:
            inner: tokens [B, T, dim] after each block; those of the clip come last.
            weight: [B, 1, F, h, w], how much a cell counts in the first.
        """
        _, _, frames, height, width = batch.mask.shape
        grid = (frames, height // 2, width // 2)

        def tokens(after: int) -> Tensor:
            x = inner[after - 1].float()
            return x[:, x.shape[1] - grid[0] * grid[1] * grid[2] :].unflatten(1, grid)

        meant = self.place(tokens(self.place_after)).unflatten(-1, (2, 2))
        meant = meant.transpose(3, 4).flatten(4, 5).flatten(2, 3).unsqueeze(1)  # [B, 1, F, h, w]
        error = F.binary_cross_entropy_with_logits(meant, batch.mask, reduction="none")
        place = weighted_mean(error, weight)

        known = batch.shapes >= 0
        share = F.one_hot(batch.shapes.clamp(min=0), len(SHAPES)) * known.unsqueeze(-1)
        share = share.float().unflatten(2, (grid[1], 2)).unflatten(4, (grid[2], 2)).mean((3, 5))
        said = self.shape(tokens(self.shape_after)).log_softmax(-1)
        lost = -(share * said).sum((1, 2, 3, 4)) / share.sum((1, 2, 3, 4)).clamp(min=1.0)
        return place, lost.mean()
