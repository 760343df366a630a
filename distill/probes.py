"""Linear readouts of an editor's inside: what their losses add to a run, and no editor keeps.

Telling a red cross from a red heart takes shapes, and "the red ring white" from "the white ring
red" the order of words: the velocity alone teaches them slowly. These losses ask outright for the
shape of things, for where the words mean, and for which colour the words want.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveedit.config import DiTConfig
from liveedit.distill.batches import Batch, weighted_mean
from liveedit.distill.objects import SHAPES
from liveedit.distill.palette import COLOURS


class Probes(nn.Module):
    """Three readouts: which shape a token shows, in the middle of the network; whether the words
    mean what is at a latent cell, before its last block; and of the text embeddings, which colour
    they ask for and which the thing has.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.shape_after, self.place_after = config.num_layers // 2, config.num_layers - 1
        self.shape = nn.Linear(config.dim, len(SHAPES))
        self.place = nn.Linear(config.dim, 4)  # a token is 2 x 2 cells
        self.asked = nn.Linear(config.text_dim, 2, bias=False)  # a softmax over words has no level
        self.words = nn.Linear(config.text_dim, 2 * (len(COLOURS) + 1))
        for weight in self.parameters():
            nn.init.zeros_(weight)

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

    def colours_lost(self, text_embeds: Tensor, colours: Tensor) -> Tensor:
        """Mean cross-entropy of the two colours, each read with one softmax over the words; 0 for
        an unknown one.

        Args:
            text_embeds: [B, text_len, text_dim], zero rows after each prompt.
            colours: [B, 2] as in `Batch.colours`.
        """
        embeds = text_embeds.float()
        padding = (embeds == 0).all(-1, keepdim=True)
        share = self.asked(embeds).masked_fill(padding, torch.finfo(embeds.dtype).min).softmax(1)
        read = self.words(embeds).unflatten(-1, (2, -1))  # [B, L, 2, names]
        said = (share.unsqueeze(-1) * read).sum(1)
        lost = F.cross_entropy(said.transpose(1, 2), colours.clamp(min=0), reduction="none")
        return (lost * (colours >= 0)).mean()
