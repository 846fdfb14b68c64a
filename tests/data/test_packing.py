"""Padded rows side by side in fewer rows."""

import itertools

import numpy as np
import pytest
import torch

from llmfast.data.packing import pack_rows


@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_found_again_in_its_own_part(seed):
    draw = np.random.default_rng(seed)
    lengths = torch.from_numpy(draw.integers(1, 20, 13))
    is_real = torch.arange(20) < lengths[:, None]
    tokens = torch.arange(1, 13 * 20 + 1).view(13, 20)
    packed = pack_rows(is_real)
    rows = tokens.take(packed.places)

    assert torch.equal(rows.take(packed.back)[is_real], tokens[is_real])
    assert packed.is_real.sum() == is_real.sum()
    assert len(rows) < 13
    edges = packed.cu_seqlens.tolist()
    assert (edges[0], edges[-1], len(edges)) == (0, rows.numel(), 27)
    parts = [rows.flatten()[first:last] for first, last in itertools.pairwise(edges)]
    real = [part for part, first in zip(parts, edges, strict=False) if len(part) and packed.is_real.flatten()[first]]
    assert sorted(part.tolist() for part in real) == [
        row[mask].tolist() for row, mask in zip(tokens, is_real, strict=True)
    ]


def test_full_rows_stay_as_they_are():
    packed = pack_rows(torch.ones(3, 4, dtype=torch.bool))
    assert torch.equal(packed.places, torch.arange(12).view(3, 4))
    assert packed.cu_seqlens.tolist() == [0, 4, 8, 12, 12, 12, 12]


def test_a_row_without_a_token_is_refused():
    with pytest.raises(ValueError, match="lengths must be from 1 to 4"):
        pack_rows(torch.tensor([[True, False, False, False], [False] * 4]))
