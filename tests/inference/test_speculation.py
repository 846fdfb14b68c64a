"""Speculation saves steps and changes no reply; what is drawn has the distribution of the model."""

import itertools

import pytest
import torch

from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder


def decoder(seed=0, **options):
    config = DecoderConfig(**{"vocab_size": 50, "width": 32, "layers": 2, "heads": 4, "context": 64} | options)
    return Decoder(config, generator=torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def model():
    return decoder()


def slightly_changed(model):
    draft = decoder()
    draft.load_state_dict(model.state_dict())
    with torch.no_grad():
        draft.head.weight += 0.01 * torch.randn(draft.head.weight.shape, generator=torch.Generator().manual_seed(1))
    return draft


PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [7], list(range(30))]
SETTINGS = [
    Sampling(temperature=0, max_tokens=25),
    Sampling(seed=1, max_tokens=25),
    Sampling(seed=2, temperature=0.6, top_p=0.9, frequency_penalty=0.5, stop_tokens=[4, 5, 6], max_tokens=33),
]


@pytest.mark.parametrize("draft", ["lookup", "itself", "alike", "another"])
@pytest.mark.parametrize("blocks", [None, 12])
def test_replies_are_those_without_speculation(model, draft, blocks):
    """Also where blocks run out, and the cache of the draft model with them."""
    drafts = {"lookup": None, "itself": model, "alike": slightly_changed(model), "another": decoder(3, layers=1)}
    invariant = {"batch_invariant": True, "block_size": 8, "prefill_chunk": 16}
    plain = Engine(model, config=EngineConfig(**invariant)).generate(PROMPTS, SETTINGS, samples=2)
    config = EngineConfig(**invariant, speculation=3, cache_blocks=blocks)
    engine = Engine(model, config=config, draft=drafts[draft])
    found = engine.generate(PROMPTS, SETTINGS, samples=2)
    for (one, two), (first, second) in zip(plain, found, strict=True):
        assert (one.tokens, one.logprobs, one.finish_reason) == (first.tokens, first.logprobs, first.finish_reason)
        assert (two.tokens, two.sampling_logprobs) == (second.tokens, second.sampling_logprobs)
    statistics = engine.statistics()
    assert statistics.blocks_used == 0
    assert 0 <= statistics.accepted_tokens <= statistics.guessed_tokens
    if draft != "lookup":
        assert engine._guesser.blocks.used == 0


def test_a_model_that_guesses_for_itself_is_always_right(model):
    engine = Engine(model, config=EngineConfig(batch_invariant=True, speculation=4), draft=model)
    engine.generate([[3, 4]], Sampling(seed=5, max_tokens=31))
    statistics = engine.statistics()
    assert statistics.guessed_tokens == statistics.accepted_tokens == 24
    assert statistics.steps == 7  # the prompt with one token, then five tokens each


def test_what_repeats_itself_is_guessed_by_looking_up(model):
    with torch.no_grad():
        cycle = decoder()
        for parameter in cycle.blocks.parameters():
            parameter.zero_()  # the next token follows from the last alone, so that greedy text ends in a circle
    engine = Engine(cycle, config=EngineConfig(speculation=4))
    engine.generate([[3, 4]], Sampling(temperature=0, max_tokens=60))
    assert engine.statistics().accepted_tokens > 30
    assert engine.statistics().steps < 30


def chi_squared(counts, probabilities):
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


@torch.no_grad()
@pytest.mark.parametrize("speculation", [0, 2])
def test_pairs_of_tokens_have_the_probabilities_of_the_model(speculation):
    """χ² over 20,000 samples of two tokens. Seeds are fixed: the test passes or fails for good."""
    model = decoder(vocab_size=6, width=16, heads=2, layers=1, embedding_init="unit")
    config = EngineConfig(speculation=speculation, max_batch=500, prefill_chunk=4096)
    engine = Engine(model, config=config, draft=decoder(9, vocab_size=6, layers=1) if speculation else None)
    sampling = Sampling(temperature=1.5, min_p=0.02, max_tokens=2, seed=11)
    (replies,) = engine.generate([[1, 2]], sampling, samples=20_000)

    def probabilities(tokens):
        logits = model(torch.tensor([tokens]))[0, -1].double() / 1.5
        p = logits.softmax(-1)
        p = torch.where(p >= 0.02 * p.max(), p, 0)
        return p / p.sum()

    pairs = list(itertools.product(range(6), range(6)))
    first = probabilities([1, 2])
    exact = torch.stack([first[a] * probabilities([1, 2, a])[b] for a, b in pairs])
    counts = torch.zeros(36, dtype=torch.float64)
    for reply in replies:
        counts[pairs.index(tuple(reply.tokens))] += 1
    assert counts[exact == 0].sum() == 0
    possible = exact > 0
    degrees = int(possible.sum()) - 1
    # The 99.9 % quantile is at most this for 10 to 35 degrees of freedom.
    assert chi_squared(counts[possible], exact[possible]) < degrees + 4.2 * degrees**0.5 + 8


def test_a_draft_of_another_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match="draft has 60 tokens, and the model 50"):
        Engine(model, config=EngineConfig(speculation=2), draft=decoder(vocab_size=60))
    with pytest.raises(ValueError, match="set speculation"):
        Engine(model, draft=model)
