"""The loader's order: decided by the seed, resumable anywhere, every window once an epoch."""

import numpy as np
import pytest

from llmfast.data.loader import Batches
from llmfast.data.shards import ShardWriter, TokenShards


@pytest.fixture
def shards(tmp_path):
    writer = ShardWriter(tmp_path, vocab_size=5000, eot_token=0, fingerprint="abc")
    writer.add(np.arange(1, 2000), 1, 1)
    writer.finish()
    return TokenShards(tmp_path)


def test_targets_are_the_next_tokens(shards):
    tokens, targets = next(Batches(shards, context=16, batch_size=4, seed=0))
    assert tokens.shape == targets.shape == (4, 16)
    assert (targets == tokens + 1).all()


def test_an_epoch_reads_every_window_once(shards):
    batches = Batches(shards, context=16, batch_size=1, seed=3)
    starts = [int(next(batches)[0][0, 0]) for _ in range(batches.windows)]
    assert len(set(starts)) == batches.windows
    assert len({start % 16 for start in starts}) == 1  # one grid, shifted as a whole


def test_epochs_and_seeds_differ(shards):
    def order(seed, position=0):
        batches = Batches(shards, context=16, batch_size=8, seed=seed, position=position)
        return next(batches)[0].tolist()

    windows = Batches(shards, context=16, batch_size=8, seed=0).windows
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, windows)


def test_a_loader_resumed_at_its_position_continues_exactly(shards):
    """Trap: a resumed run that starts the data over, or skips some, trains another model."""
    whole = Batches(shards, context=16, batch_size=8, seed=5)
    for _ in range(40):  # past the end of the first epoch
        position = whole.position
        tokens, targets = next(whole)
        again = next(Batches(shards, context=16, batch_size=8, seed=5, position=position))
        assert (again[0] == tokens).all()
        assert (again[1] == targets).all()


def test_too_little_text_for_one_window_is_refused_with_the_numbers(shards):
    with pytest.raises(ValueError, match=r"2000 tokens; .* context of 1500 needs at least 3001"):
        Batches(shards, context=1500, batch_size=1, seed=0)
