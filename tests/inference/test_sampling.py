"""Sampling: the cuts keep what they say, greedy is the likeliest, a seed decides the rest."""

import pytest
import torch

from llmfast.inference.config import Sampling
from llmfast.inference.sampling import filtered_probabilities, sample

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, top_p=0.8), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(1.0, top_p=1e-9), [1, 0, 0, 0]),
        (Sampling(0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ],
)
def test_probabilities(sampling, expected):
    torch.testing.assert_close(filtered_probabilities(LOGITS, sampling), torch.tensor([expected], dtype=torch.float32))


def test_cuts_follow_each_row_whatever_its_order():
    logits = torch.stack([LOGITS[0], LOGITS[0].flip(0)])
    kept = filtered_probabilities(logits, Sampling(1.0, top_p=0.7)) > 0
    assert kept.tolist() == [[True, True, False, False], [False, False, True, True]]


def test_greedy_takes_the_likeliest():
    assert sample(torch.randn(5, 100, generator=torch.Generator().manual_seed(0)), Sampling(0)).shape == (5,)
    assert sample(LOGITS, Sampling(0)).item() == 0


def test_draws_have_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    draws = sample(LOGITS.expand(20_000, 4), Sampling(1.0), generator)
    share = torch.bincount(draws, minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.015, rtol=0)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Sampling(**wrong)
