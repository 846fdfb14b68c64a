"""Rollouts: the tokens that were sampled, their log-probabilities, and that training says the same of them."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from llmfast.kernels import batch_invariant
from small_policy import new_policy_run, policy_trainer, sorter

from llmfast.alignment.policy.log_probabilities import token_log_probabilities
from llmfast.alignment.policy.source import Sampler
from llmfast.alignment.rewards import build
from llmfast.alignment.rollouts.rollout import Rollout, rollout_columns
from llmfast.alignment.rollouts.sample import check_sampling, prompt_seed, sample_rollouts
from llmfast.alignment.rollouts.tools import TOOLS
from llmfast.data.batch import IGNORED
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.models.folder import load_model

pytestmark = pytest.mark.xdist_group("sorter")  # made once
PLAIN = {"plain": Sampling(), "cool": Sampling(temperature=0.7), "cut": Sampling(temperature=0.7, top_p=0.8)}
PLAIN |= {"few": Sampling(top_k=3), "floor": Sampling(temperature=1.3, min_p=0.05)}


def opened(invariant=False):
    start = sorter(steps=10, width=16, layers=1)
    model, tokenizer = load_model(start / "run")
    return model, tokenizer, Engine(model, tokenizer, EngineConfig(batch_invariant=invariant, max_batch=8))


def answers(engine, tokenizer, sampling, *, prompts=("31", "20415"), samples=3, **options):
    sampling = dataclasses.replace(sampling, max_tokens=6)
    ids = [[tokenizer.eot_token, *tokenizer.encode_ordinary(text)] for text in prompts]
    return sample_rollouts(engine, ids, sampling, samples, [prompt_seed(0, n) for n in range(len(ids))], **options)


@pytest.mark.parametrize("invariant", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_training_computes_the_log_probabilities_of_sampling(name, invariant):
    """Traps: a temperature on one side only; top-p renormalized in one place; log-probabilities shifted by one."""
    model, tokenizer, engine = opened(invariant)
    sampling = PLAIN[name]
    rollouts = [each for group in answers(engine, tokenizer, sampling) for each in group]
    columns = rollout_columns(rollouts, tokenizer.eot_token)
    for setting, wanted in ((sampling, columns["old"]), (Sampling(), None)):
        with torch.no_grad(), batch_invariant(model) if invariant else torch.no_grad():
            found = model(
                columns["tokens"],
                of_states=lambda states, setting=setting: token_log_probabilities(
                    model, states, columns["targets"], setting
                ),
            ).result
        if wanted is None:  # the plain ones, which a rollout has as well
            wanted = torch.zeros_like(found)
            for row, each in enumerate(rollouts):
                start = len(each.prompt) - 1
                wanted[row, start : start + len(each.tokens)] = torch.tensor(each.logprobs)
        if invariant:
            assert torch.equal(found, wanted)
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (columns["old"] <= 0).all()
    assert (columns["old"] < 0).any()


def test_log_probabilities_have_the_gradient_of_the_distribution_that_is_sampled():
    model, tokenizer, engine = opened()
    sampling = PLAIN["cut"]
    rollouts = [each for group in answers(engine, tokenizer, sampling) for each in group]
    columns = rollout_columns(rollouts, tokenizer.eot_token)
    states = model.hidden(columns["tokens"]).states.detach().requires_grad_()
    found = token_log_probabilities(model, states, columns["targets"], sampling)
    (gradient,) = torch.autograd.grad(found.sum(), states)
    counted = columns["targets"] != IGNORED
    logits = (states @ model.head.weight.T)[..., : model.config.vocab_size][counted] / 0.7
    ordered, order = logits.sort(dim=-1, descending=True)
    p = ordered.softmax(-1)
    cut = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, p.cumsum(-1) - p >= 0.8)
    log_p = logits.masked_fill(cut, -torch.inf).log_softmax(-1)
    wanted = log_p.gather(-1, columns["targets"][counted][:, None])
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), states)
    torch.testing.assert_close(found[counted], wanted[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-3, atol=1e-4)


def test_a_token_that_was_drawn_stays_possible_once_the_policy_has_changed():
    """Trap: a cut of the new policy removes the token, whose log-probability is then −∞ and its gradient NaN."""
    model, tokenizer, _ = opened()
    tokens = torch.tensor([[tokenizer.eot_token, 50, 51]])
    targets = torch.tensor([[50, 51, 52]])
    states = model.hidden(tokens).states.detach().requires_grad_()
    found = token_log_probabilities(model, states, targets, Sampling(top_k=1))
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


def test_the_end_token_is_sampled_and_trained():
    """Traps: a sampled end token that is dropped; an end token at the length limit that was never sampled."""
    _, tokenizer, engine = opened()
    found = [each for group in answers(engine, tokenizer, Sampling(), samples=40) for each in group]
    ended = [each for each in found if each.tokens[-1] in engine.ends]
    cut = [each for each in found if each.tokens[-1] not in engine.ends]
    assert ended
    assert cut
    for each in found:
        assert all(each.mask)
        assert len(each.mask) == len(each.tokens) == len(each.logprobs) == len(each.sampling_logprobs)
    assert all(not each.is_truncated and tokenizer.decode(each.tokens[:-1]) == each.text for each in ended)
    assert all(each.is_truncated and len(each.tokens) == 6 for each in cut)
    columns = rollout_columns(found, tokenizer.eot_token)
    for row, each in enumerate(found):
        targets = columns["targets"][row]
        assert targets[targets != IGNORED].tolist() == each.tokens
        assert columns["tokens"][row, : len(each.prompt) + len(each.tokens)].tolist() == each.prompt + each.tokens


def test_noise_depends_on_seed_prompt_and_sample_alone():
    _, tokenizer, engine = opened()
    together = answers(engine, tokenizer, Sampling())
    engine.weights_changed()
    alone = answers(engine, tokenizer, Sampling(), prompts=("31",), samples=3)
    fewer = answers(engine, tokenizer, Sampling(), samples=2)
    assert [each.tokens for each in alone[0]] == [each.tokens for each in together[0]]
    assert [[each.tokens for each in group[:2]] for group in together] == [[e.tokens for e in group] for group in fewer]
    assert len({tuple(each.tokens) for each in together[0]}) > 1


def test_samples_of_a_prompt_share_its_keys_and_values():
    _, tokenizer, engine = opened()
    answers(engine, tokenizer, Sampling(), prompts=("314159",), samples=8)
    assert engine.statistics().prompt_tokens <= 7


class Scripted:
    """An engine that says what it is told to."""

    def __init__(self, tokenizer, replies):
        self.tokenizer, self.replies, self.ends = tokenizer, list(replies), {tokenizer.eot_token}
        self.asked = []

    def generate(self, prompts, sampling, samples=1):
        self.asked.append([list(prompt) for prompt in prompts])
        found = []
        for _ in prompts:
            text, stop = self.replies.pop(0)
            ids = self.tokenizer.encode_ordinary(text) + ([self.tokenizer.eot_token] if stop is None else [])
            reason = self.tokenizer.eot_token if stop is None else stop
            found.append(
                [
                    SimpleNamespace(
                        tokens=ids, logprobs=[-1.0] * len(ids), sampling_logprobs=[-2.0] * len(ids),
                        finish_reason="length" if stop == "cut" else "stop", stop_reason=reason,
                    )
                ]
            )  # fmt: skip
        return found


def test_what_a_tool_says_enters_as_tokens_that_nobody_sampled():
    """Text is never encoded again: what was sampled stays as it was, token by token."""
    _, tokenizer, _ = opened()
    engine = Scripted(tokenizer, [("x =", "="), (" <<6*7=", "="), ("ok", None)])
    ((rollout,),) = sample_rollouts(
        engine, [[tokenizer.eot_token]], Sampling(max_tokens=40), 1, [5], tool=TOOLS["calculator"]
    )
    assert rollout.text == "x = <<6*7=42>>ok"
    asked = tokenizer.encode_ordinary
    assert engine.asked[1] == [[tokenizer.eot_token, *asked("x =")]]
    assert engine.asked[2] == [[tokenizer.eot_token, *asked("x = <<6*7=42>>")]]
    tool = [token for token, sampled in zip(rollout.tokens, rollout.mask, strict=True) if not sampled]
    assert tokenizer.decode(tool) == "42>>"
    assert rollout.tokens[-1] == tokenizer.eot_token
    assert not rollout.is_truncated
    columns = rollout_columns([rollout], tokenizer.eot_token)
    trained = columns["targets"][0]
    assert trained[trained != IGNORED].tolist() == [t for t, m in zip(rollout.tokens, rollout.mask, strict=True) if m]
    assert (columns["old"][0][trained == IGNORED] == 0).all()


def test_a_tool_answers_errors_and_keeps_to_the_length():
    _, tokenizer, _ = opened()
    engine = Scripted(tokenizer, [("<<1/0=", "="), ("", "cut")])
    ((rollout,),) = sample_rollouts(engine, [[1]], Sampling(max_tokens=20), 1, [5], tool=TOOLS["calculator"])
    assert rollout.text == "<<1/0=error>>"
    engine = Scripted(tokenizer, [("<<1+1=", "=")])
    ((rollout,),) = sample_rollouts(engine, [[1]], Sampling(max_tokens=7), 1, [5], tool=TOOLS["calculator"])
    assert len(rollout.tokens) == 7
    assert rollout.is_truncated


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(repetition_penalty=1.1), Sampling(logit_bias={1: 2.0})]
)
def test_sampling_that_training_could_not_follow_is_refused(sampling):
    with pytest.raises(ValueError, match="rollouts"):
        check_sampling(sampling)


def test_older_weights_are_forgotten(tmp_path):
    """Trap: keys and values of finished answers, found again by a prefix, that are of older weights."""
    session = new_policy_run(tmp_path, "grpo", sorter(steps=10, width=16, layers=1), rollouts={"batch_invariant": True})
    trainer = session.trainer
    for _ in range(4):
        assert trainer.step().figures["sampler_gap"] == 0.0


def test_rewards_get_the_prompt_the_tokens_the_text_and_the_answer(tmp_path):
    seen = []

    def spy(prompt, tokens, text, answer):
        seen.append((prompt, tokens, text, answer))
        return 1.0

    session = new_policy_run(tmp_path, "grpo", sorter(steps=10, width=16, layers=1))
    build.BY_NAME["spy"] = spy
    try:
        session.config.rewards = {"spy": 1.0}
        trainer = policy_trainer(session)
        sampler = Sampler(session.config, session.task.prepared, trainer)
        record = session.task.prepared.train[0]
        rollouts, worth = sampler([record], [3], 2)
    finally:
        del build.BY_NAME["spy"]
    tokenizer = session.task.tokenizer
    assert worth["reward"].tolist() == [1.0, 1.0]
    for (prompt, tokens, text, answer), rollout in zip(seen, rollouts, strict=True):
        assert prompt == tokenizer.decode(record.tokens)
        assert prompt.tokens == record.tokens
        assert (tokens, text, answer) == (rollout.tokens, rollout.text, record.answer)


def test_columns_of_a_single_row():
    made = Rollout([7, 8])
    made.add([1, 2], [-0.5, -0.25], [-1.0, -2.0])
    made.add_result([3])
    made.add([4], [-0.125], [-3.0])
    columns = rollout_columns([made], 0, width=8)
    assert columns["tokens"].tolist() == [[7, 8, 1, 2, 3, 4, 0, 0]]
    assert columns["targets"].tolist() == [[IGNORED, 1, 2, IGNORED, 4, IGNORED, IGNORED, IGNORED]]
    assert columns["old"].tolist() == [[0, -0.5, -0.25, 0, -0.125, 0, 0, 0]]
    assert columns["is_real"].sum() == 6
    assert columns["lengths"].tolist() == [6]
    assert made.sampled == 3
