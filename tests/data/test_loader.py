"""The loader: an order decided by the seed, resumable anywhere by any number of ranks; packing; document masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfast.data import shards as shards_module
from llmfast.data.loader import IGNORED, Batch, Loader
from llmfast.data.order import shuffled
from llmfast.data.packing import best_fit
from llmfast.data.shards import ShardWriter, Share, TokenShards
from llmfast.data.windows import PackedWindows, StreamWindows

EOT = 0


def write(folder, lengths, *, vocab_size=70_000):
    """Documents of these lengths (with their end-of-text token), their tokens 1, 2, 3, ... throughout."""
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, vocab_size=vocab_size, eot_token=EOT, fingerprint="abc")
    next_token = 1
    for length in lengths:
        writer.add(np.array([*range(next_token, next_token + length - 1), EOT]), 1, length)
        next_token += length - 1
    writer.finish()
    return TokenShards(folder)


@pytest.fixture
def shards(tmp_path):
    return write(tmp_path, [2000])


def loader(shards, context=16, **options):
    return Loader(StreamWindows(shards, context), **({"seed": 0} | options))


# --- order ---------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 5000), seed=st.integers(0, 2**63))
@settings(max_examples=30, deadline=None)
def test_the_shuffle_is_a_permutation(count, seed):
    assert sorted(shuffled(np.arange(count), count, (seed, 0)).tolist()) == list(range(count))


def test_the_shuffle_looks_random():
    """Trap: a weak shuffle leaves neighbours together, and batches are of one kind of text."""
    n = 4096
    order = shuffled(np.arange(n), n, (1, 2))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06  # ~ 4 / sqrt(n)
    assert np.sum(np.diff(order) == 1) < 8
    assert np.sum(order == shuffled(np.arange(n), n, (1, 3))) < 10


def test_the_order_never_changes():
    """Trap: NumPy's generators may change from one version to the next, and a resumed run then repeats some data."""
    assert shuffled(np.arange(8), 8, (0, 0)).tolist() == [2, 1, 6, 0, 3, 4, 5, 7]
    assert shuffled(np.array([10**12 - 1]), 10**12, (5, 1)).tolist() == [663286966149]


# --- stream --------------------------------------------------------------------------------------------------


def test_targets_are_the_next_tokens(shards):
    batch = loader(shards).next(4)
    assert batch.tokens.shape == batch.targets.shape == (4, 16)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert (batch.targets == batch.tokens + 1).all()
    assert batch.cu_seqlens is None


def test_an_epoch_reads_every_window_once(shards):
    batches = loader(shards, seed=3)
    starts = [int(batches.next(1).tokens[0, 0]) for _ in range(batches.windows.count)]
    assert len(set(starts)) == batches.windows.count
    assert len({start % 16 for start in starts}) == 1  # one grid, shifted as a whole


def test_epochs_and_seeds_differ(shards):
    def order(seed, position=0):
        return loader(shards, seed=seed, position=position).next(8).tokens.tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, StreamWindows(shards, 16).count)


def test_a_loader_resumed_at_its_position_continues_exactly(shards):
    """Trap: a resumed run that starts the data over, or skips some, trains another model."""
    whole = loader(shards, seed=5)
    for _ in range(40):  # past the end of the first epoch
        position = whole.position
        batch = whole.next(8)
        again = loader(shards, seed=5, position=position).next(8)
        assert torch.equal(again.tokens, batch.tokens)
        assert torch.equal(again.targets, batch.targets)


def test_the_position_set_from_outside_beats_what_was_read_ahead(shards):
    batches = loader(shards)
    first = batches.next(4)
    batches.position = 0
    assert torch.equal(batches.next(4).tokens, first.tokens)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_each_batch_and_their_number_may_change(shards, ranks):
    """Trap: state per rank: a run resumed on other machines repeats or skips data."""
    one = loader(shards)
    one.next(12)
    several = [loader(shards, position=12, share=Share(rank, ranks)) for rank in range(ranks)]
    for _ in range(3):
        whole = one.next(12).tokens
        assert torch.equal(whole, torch.cat([each.next(12).tokens for each in several]))
    with pytest.raises(ValueError, match="batch of 7 rows cannot be shared equally"):
        several[0].next(7)


def test_a_shorter_context_reads_the_same_tokens(shards):
    """The warm-up of the context changes the shape of rows, not the order of the data."""
    long, short = loader(shards), loader(shards)
    for _ in range(3):
        a, b = long.next(4), short.next(4, context=8)
        assert b.tokens.shape == (8, 8)
        assert torch.equal(a.tokens.view(8, 8), b.tokens)
    assert long.position == short.position
    with pytest.raises(ValueError, match="context of 5 does not divide the full one, 16"):
        short.next(4, context=5)


def test_shards_are_one_stream(tmp_path, monkeypatch):
    whole = write(tmp_path / "one", [50] * 40)
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 120)
    parts = write(tmp_path / "many", [50] * 40)
    assert len(parts.shards) > 10
    starts = np.arange(0, len(parts) - 30, 7)
    expected = [parts.read(start, 30).tolist() for start in starts]
    assert parts.read_windows(starts, 30).tolist() == expected
    assert parts.read_at(np.arange(len(parts))).tolist() == parts.read(0, len(parts)).tolist()
    a, b = (np.diff(np.sort(each.document_spans[0])) for each in (whole, parts))
    assert (a == 50).all()
    assert set(b) == {50, 51}  # the token that each shard begins with


def test_too_little_text_for_one_window_is_refused_with_the_numbers(shards):
    with pytest.raises(ValueError, match=r"2001 tokens; .* context of 1500 needs at least 3001"):
        StreamWindows(shards, 1500)


# --- packing -------------------------------------------------------------------------------------------------


def best_fit_one_by_one(lengths, capacity):
    """The definition: longest first, each into the bin with the least room that it fits in."""
    rooms, bins = [], {}
    for item in np.argsort(-np.array(lengths), kind="stable"):
        fits = [(room, index) for index, room in enumerate(rooms) if room >= lengths[item]]
        if not fits:
            rooms.append(capacity)
            fits = [(capacity, len(rooms) - 1)]
        index = min(fits)[1]
        rooms[index] -= lengths[item]
        bins[item] = index
    return sorted(rooms)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_packing_is_best_fit_decreasing(lengths):
    bins = best_fit(np.array(lengths), 20)
    used = np.bincount(bins, weights=lengths)
    assert used.min() > 0
    assert sorted(20 - used) == best_fit_one_by_one(lengths, 20)


def test_packed_rows_hold_every_token_of_every_document_once(tmp_path):
    """Trap: truncated documents, a loss on padding, targets from the next document."""
    lengths = [5, 3, 40, 16, 1, 9, 17, 8, 33, 2]
    shards = write(tmp_path, lengths)
    windows = PackedWindows(shards, 16)
    batches = Loader(windows, seed=1, document_masks=True)
    targets, ends = [], 0
    for _ in range(windows.count):
        batch = batches.next(1)
        wanted = batch.targets[batch.targets != IGNORED]
        targets += wanted[wanted != EOT].tolist()
        ends += int((wanted == EOT).sum())
        # Each document's input begins with the end-of-text token before it, or where a long one was cut.
        for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            inputs, outputs = batch.tokens[0, begin:end], batch.targets[0, begin:end]
            if (outputs != IGNORED).all():
                assert (inputs[1:] == outputs[:-1]).all()
            else:
                assert (outputs == IGNORED).all()
    assert sorted(targets) == list(range(1, sum(lengths) - len(lengths) + 1))
    assert ends == len(lengths)
    assert windows.padding == pytest.approx(1 - sum(lengths) / (16 * windows.count))


def test_a_stream_with_masks_begins_a_document_at_each_end_of_text(tmp_path):
    shards = write(tmp_path, [7, 30, 4, 11, 25, 3, 60])
    batch = Loader(StreamWindows(shards, 16), seed=2, document_masks=True).next(4)
    begins = torch.zeros(64, dtype=torch.bool)
    begins[batch.cu_seqlens[:-1].long()] = True
    expected = batch.tokens.flatten() == EOT
    expected[::16] = True
    assert torch.equal(begins, expected)
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens[-1] == 64


def test_a_batch_in_parts_keeps_its_masks(tmp_path):
    shards = write(tmp_path, [7, 30, 4, 11, 25, 3, 60])
    whole = Loader(StreamWindows(shards, 16), seed=2, document_masks=True).next(6)
    parts = whole.split(4)
    assert [len(part.tokens) for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([parts[0].cu_seqlens[:-1], parts[1].cu_seqlens + 64]), whole.cu_seqlens)
    assert all(isinstance(part, Batch) and part.cu_seqlens[0] == 0 for part in parts)
