"""Evaluation: every token once, in bits per byte, the same however it is cut into windows."""

import math

import numpy as np
import pytest
import torch

from llmfast.data.shards import ShardWriter, TokenShards
from llmfast.evaluation.perplexity import bytes_of_tokens, evaluate
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


@pytest.fixture
def model():
    config = DecoderConfig(vocab_size=50, width=16, layers=1, heads=2, context=8)
    return Decoder(config, generator=torch.Generator().manual_seed(0))


def shards_of(folder, count):
    writer = ShardWriter(folder, vocab_size=50, eot_token=0, fingerprint="x")
    tokens = np.random.default_rng(0).integers(1, 50, count)
    tokens[-1] = 0  # the end of the one document
    writer.add(tokens, 1, 3 * count)
    writer.finish()
    return TokenShards(folder)


@pytest.mark.parametrize("count", [3, 8, 9, 100])
@pytest.mark.parametrize("stride", [None, 4, 1])
def test_every_token_is_predicted_once_with_all_the_context_there_is(tmp_path, model, count, stride):
    shards = shards_of(tmp_path, count)
    tokens = torch.from_numpy(shards.read(0, len(shards)).astype(np.int64))
    stride_here = stride or 8
    nats = 0.0
    for target in range(1, len(tokens)):  # the definition, one token at a time
        if target <= 8:
            start = 0
        else:
            start = math.ceil((target - 8) / stride_here) * stride_here
        logits = model(tokens[None, start:target])[0, -1]
        nats -= logits.log_softmax(-1)[tokens[target]].item()
    result = evaluate(model, shards, stride=stride)
    assert result.tokens == count
    assert result.loss == pytest.approx(nats / count, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) * (count + 1) / (3 * count), rel=1e-6)


def test_a_part_is_spread_over_the_whole(tmp_path, model):
    """Trap: the first documents by name, all of one kind, taken for a sample."""
    shards = shards_of(tmp_path, 100)
    part = evaluate(model, shards, max_tokens=24)
    tokens = torch.from_numpy(shards.read(0, len(shards)).astype(np.int64))
    windows = [tokens[start : start + 9] for start in (0, 32, 64)]  # of 13 windows the 1st, 5th and 9th
    losses = [model(window[None, :-1], window[None, 1:]).item() for window in windows]
    assert part.tokens == 24
    assert part.loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert evaluate(model, shards, max_tokens=1000).tokens == 100


def test_a_part_counts_the_bytes_of_its_own_tokens(tmp_path, model):
    """Trap: bytes per token of the whole split, where the tokens of the part are shorter or longer."""
    shards = shards_of(tmp_path, 100)
    sizes = np.arange(50) % 7
    part = evaluate(model, shards, max_tokens=24, token_bytes=sizes)
    tokens = shards.read(0, len(shards))
    scored = sum(sizes[tokens[start + 1 : start + 9]].sum() for start in (0, 32, 64))
    assert part.bits_per_byte == pytest.approx(part.loss * 24 / math.log(2) / scored, rel=1e-6)


def test_the_bytes_of_each_token():
    tokenizer = Tokenizer.train(["déjà vu déjà vu"] * 3, 270, allow_smaller=True)
    counts, text = bytes_of_tokens(tokenizer), "déjà lu, et vu"
    assert counts[tokenizer.encode_ordinary(text)].sum() == len(text.encode())
    assert counts[tokenizer.eot_token] == 0


def test_a_stride_beyond_the_context_would_leave_tokens_out(tmp_path, model):
    with pytest.raises(ValueError, match="stride must be from 1 to the model's context 8, got 9"):
        evaluate(model, shards_of(tmp_path, 20), stride=9)
