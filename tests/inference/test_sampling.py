"""Sampling: every setting does what it says, and log-probabilities can be computed again from the settings."""

import dataclasses

import pytest
import torch
from llmfast.kernels import batch_invariant, linear_cross_entropy

from llmfast.inference.config import Constraint, EngineConfig, Sampling
from llmfast.inference.distribution import distribution, draw, sampling_log_probs
from llmfast.inference.engine import Engine
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


@pytest.fixture(scope="module")
def model():
    config = DecoderConfig(vocab_size=60, width=32, layers=2, heads=4, context=64, embedding_init="unit")
    model = Decoder(config, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(0.3)  # neither flat nor certain
    return model


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_p=0.8), [0.625, 0.375, 0, 0]),
        (Sampling(top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(top_p=1e-9), [1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.9), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(top_k=3, top_p=0.8), [0.625, 0.375, 0, 0]),
        (Sampling(min_p=0.31), [0.625, 0.375, 0, 0]),
        (Sampling(min_p=0.29), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(min_p=0.05, top_k=1), [1, 0, 0, 0]),
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ],
)
def test_distributions(sampling, expected):
    found = distribution(LOGITS, sampling).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))
    many = distribution(torch.cat([LOGITS, LOGITS.flip(1), LOGITS]), sampling).softmax(-1)
    assert torch.equal(many, torch.cat([found, found.flip(1), found]))


def test_top_p_of_a_flat_distribution_keeps_as_many_as_it_takes():
    """Only the largest logits are sorted at first, which are not always enough."""
    logits = 1e-4 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    kept = distribution(logits, Sampling(top_p=0.9)).isfinite()
    assert 4490 <= int(kept.sum()) <= 4510
    assert logits[kept].min() > logits[~kept].max()


def test_draws_have_the_probabilities():
    count = 100_000
    draws = draw(LOGITS[:1].expand(count, -1), [(0, sample, sample % 7) for sample in range(count)])
    expected = LOGITS[0].softmax(-1).double() * count
    chi_squared = float(((torch.bincount(draws, minlength=4) - expected) ** 2 / expected).sum())
    assert chi_squared < 16.3  # exceeded by one in a thousand, with 3 degrees of freedom


def test_noise_is_that_of_seed_sample_and_position():
    places = [(seed, sample, position) for seed in (0, 1, 2**63) for sample in (0, 1) for position in (0, 1, 2)]
    draws = draw(torch.zeros(len(places), 1000), places).tolist()
    assert draws == [int(draw(torch.zeros(1, 1000), [place])) for place in places]
    assert len(set(draws)) == len(draws)


def test_a_large_vocabulary_is_drawn_from_in_parts():
    logits = torch.randn(3, 2**17 + 1, generator=torch.Generator().manual_seed(0))
    places = [(0, sample, 5) for sample in range(3)]
    assert draw(logits, places).tolist() == [int(draw(logits[[row]], [places[row]])) for row in range(3)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": 0}, {"top_p": 0.0},
        {"top_p": 1.5}, {"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0}, {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")}, {"logit_bias": {3: float("nan")}}, {"logit_bias": {-1: 1.0}}, {"seed": -1},
        {"stop": [""]}, {"max_tokens": 0}, {"min_tokens": -1}, {"logprobs": -1}, {"prompt_logprobs": -2},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Sampling(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"block_size": 0}, {"cache_blocks": 0}, {"memory": 0}, {"cache_dtype": "int3"}, {"max_batch": 0},
     {"prefill_chunk": 0}, {"speculation": -1}],
)  # fmt: skip
def test_engine_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        EngineConfig(**wrong)


def test_min_tokens_beyond_max_tokens_and_half_constraints_are_refused():
    with pytest.raises(ValueError, match="min_tokens must be from 0 to max_tokens, got 5"):
        Sampling(min_tokens=5, max_tokens=4)
    with pytest.raises(ValueError, match="either json_schema or regex"):
        Constraint()
    with pytest.raises(ValueError, match="leave out min_tokens"):
        Sampling(min_tokens=1, constraint=Constraint(regex="a"))


# --- through the engine -----------------------------------------------------------------------------------------------


def reply_of(model, **options):
    ((reply,),) = Engine(model).generate([[1, 2, 3]], Sampling(**{"max_tokens": 30} | options))
    return reply


@torch.no_grad()
def next_logits(model, tokens):
    return model(torch.tensor([tokens]))[0, -1]


def by_hand(model, change, count=30):
    """Greedy tokens where ``change(logits, prompt, reply)`` is applied at each place."""
    tokens = [1, 2, 3]
    for _ in range(count):
        tokens.append(int(change(next_logits(model, tokens).clone(), tokens[:3], tokens[3:]).argmax()))
    return tokens[3:]


def test_penalties_are_those_of_vllm_and_openai(model):
    def repetition(logits, prompt, reply):
        for token in {*prompt, *reply}:
            logits[token] = logits[token] / 1.7 if logits[token] > 0 else logits[token] * 1.7
        return logits

    def presence_and_frequency(logits, prompt, reply):
        for token in set(reply):
            logits[token] -= 0.5 + 0.25 * reply.count(token)
        return logits

    plain = reply_of(model, temperature=0).tokens
    found = reply_of(model, temperature=0, repetition_penalty=1.7).tokens
    assert plain != found == by_hand(model, repetition)
    found = reply_of(model, temperature=0, presence_penalty=0.5, frequency_penalty=0.25).tokens
    assert plain != found == by_hand(model, presence_and_frequency)


def test_transformers_penalizes_repetition_alike(model):
    from transformers import RepetitionPenaltyLogitsProcessor

    from llmfast.inference.controls import Controls

    logits = next_logits(model, [1, 2, 3])
    controls = Controls(Sampling(repetition_penalty=1.4), [1, 2, 3, 2])
    for token in (5, 5, 9):
        controls.advance(token)
    theirs = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([[1, 2, 3, 2, 5, 5, 9]]), logits[None].clone())
    torch.testing.assert_close(controls.apply(logits), theirs[0])


def test_bias_decides_what_is_drawn(model):
    forbidden = set(reply_of(model, seed=0).tokens)
    reply = reply_of(model, seed=0, logit_bias=dict.fromkeys(forbidden, -100.0))
    assert not forbidden & set(reply.tokens)
    assert set(reply_of(model, seed=0, logit_bias={7: 100.0}).tokens) == {7}
    assert reply_of(model, temperature=0, logit_bias={7: -float("inf"), 8: 100.0}).tokens == [8] * 30


def test_stop_tokens_end_the_reply_and_count(model):
    plain = reply_of(model, seed=3)
    stop = plain.tokens[6]
    at = plain.tokens.index(stop)
    absent = min(set(range(60)) - set(plain.tokens))
    reply = reply_of(model, seed=3, stop_tokens=[stop, absent])
    assert (reply.tokens, reply.finish_reason, reply.stop_reason) == (plain.tokens[: at + 1], "stop", stop)
    assert len(reply.logprobs) == at + 1
    later = reply_of(model, seed=3, stop_tokens=[stop], min_tokens=at + 5)
    assert stop not in later.tokens[: at + 4]


def test_the_ends_of_the_model_are_obeyed_or_ignored(model):
    stop = reply_of(model, seed=3).tokens[4]
    engine = Engine(model, ends=[stop])
    sampling = Sampling(seed=3, max_tokens=30)
    ((reply,),) = engine.generate([[1, 2, 3]], sampling)
    assert reply.finish_reason == "stop"
    ((reply,),) = engine.generate([[1, 2, 3]], dataclasses.replace(sampling, ignore_end=True))
    assert len(reply.tokens) == 30


SETTINGS = {
    "plain": Sampling(),
    "temperature": Sampling(temperature=0.7),
    "top_p": Sampling(temperature=1.2, top_p=0.7),
    "cuts": Sampling(top_k=20, top_p=0.9, min_p=0.02),
    "penalties": Sampling(repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.3, top_p=0.95),
    "bias": Sampling(logit_bias={4: 2.0, 7: -3.0}, stop_tokens=[9], min_tokens=8),
    "greedy": Sampling(temperature=0),
}


@pytest.mark.numeric
@pytest.mark.parametrize("name", SETTINGS)
def test_log_probabilities_of_rollouts_are_those_that_training_computes_to_the_bit(model, name):
    """The plain ones without logits, those of the distribution drawn from by the stored settings."""
    sampling = dataclasses.replace(SETTINGS[name], seed=2, max_tokens=25)
    engine = Engine(model, config=EngineConfig(batch_invariant=True, block_size=4))
    prompts = [[1, 2, 3], [5] * 9]
    for prompt, samples in zip(prompts, engine.generate(prompts, sampling, samples=2), strict=True):
        for reply in samples:
            tokens = torch.tensor([prompt + reply.tokens])
            with batch_invariant(model):
                states = model.hidden(tokens).states[:, len(prompt) - 1 : -1]
                targets = tokens[:, len(prompt) :]
                losses = linear_cross_entropy(states, model.head.weight, targets, reduction="none")
                logits = model(tokens)[0, len(prompt) - 1 : -1]
                found = sampling_log_probs(logits, reply.tokens, sampling, prompt=prompt, ends=reply.ends)
            assert (-losses[0]).tolist() == reply.logprobs
            assert found.tolist() == reply.sampling_logprobs
            if name == "plain":
                assert reply.sampling_logprobs == reply.logprobs
            elif name != "greedy":
                found.sum().backward()
                assert model.head.weight.grad.abs().max() > 0
                model.zero_grad()
