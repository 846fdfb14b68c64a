"""Smear: each token's embedding takes up a learned share of the one before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Smear(nn.Module):
    """x_s + weight · x_(s−1), with a weight for each channel, 0 at first.

    What follows the last time this token stood here is copied by two attention heads in a row, of which the first only
    looks back by one (induction heads: Olsson et al. 2022, arXiv:2209.11895, who smear keys to the same end). A small
    model takes long to find the pair; with the token before in every embedding one head is enough, at the price of E
    weights and one multiplication a number. Embeddings smeared in this way: modded-nanogpt.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """``x`` (B, S, E) smeared; ``before`` is the embedding before each, 0 for the first token of a document."""
        return x + self.weight * before
