"""Replies of a given form: whatever the model would rather say, the text matches."""

import json
import re

import pytest
import torch

from llmfast.inference.config import Constraint, EngineConfig, Sampling
from llmfast.inference.distribution import sampling_log_probs
from llmfast.inference.engine import Engine
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer

pytest.importorskip("llguidance")

AGES = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ages": AGES},
    "required": ["name", "ages"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine():
    text = '{"name": "red fox", "ages": [12, 3]} true false null 雪 the dog'
    tokenizer = Tokenizer.train([text] * 5, 290, allow_smaller=True)
    # The model has more tokens than the tokenizer, as padded vocabularies do.
    config = DecoderConfig(vocab_size=tokenizer.n_vocab + 9, width=32, layers=1, heads=4, context=300)
    return Engine(Decoder(config, generator=torch.Generator().manual_seed(0)).eval(), tokenizer)


@pytest.mark.parametrize("seed", range(6))
def test_json_of_a_schema(engine, seed):
    constraint = Constraint(json_schema=SCHEMA)
    (replies,) = engine.generate(["a dog"], Sampling(seed=seed, temperature=1.5, constraint=constraint), samples=2)
    for reply in replies:
        if reply.finish_reason == "length":  # white space may go on for as long as it likes
            continue
        found = json.loads(reply.text)
        assert set(found) == {"name", "ages"}
        assert len(found["name"]) <= 8
        assert all(0 <= age <= 99 for age in found["ages"])
        assert len(found["ages"]) <= 3


@pytest.mark.parametrize("expression", [r"(yes|no), (é|雪){2,3}", r"[0-9]{4}-[0-9]{2}", r"a*b"])
def test_text_of_an_expression(engine, expression):
    for options in ({"seed": 1}, {"temperature": 0, "logit_bias": {ord("b"): 3.0}}):
        ((reply,),) = engine.generate(
            ["x"], Sampling(constraint=Constraint(regex=expression), max_tokens=60, **options)
        )
        assert reply.finish_reason == "stop"
        assert re.fullmatch(expression, reply.text)


def test_an_open_end_is_the_end_token_or_more(engine):
    """Where the text may be complete or continue, the model decides by its end token."""
    end = engine.tokenizer.eot_token
    constraint = Constraint(regex="a+")
    ((reply,),) = engine.generate(["x"], Sampling(constraint=constraint, max_tokens=20, logit_bias={end: -50.0}))
    assert (reply.text, reply.finish_reason) == ("a" * 20, "length")
    ((reply,),) = engine.generate(["x"], Sampling(constraint=constraint, max_tokens=20, logit_bias={end: 50.0}))
    assert (reply.text, reply.stop_reason) == ("a", end)


def test_constraints_go_with_speculation_and_company(engine):
    sampling = Sampling(seed=4, constraint=Constraint(json_schema=SCHEMA), max_tokens=40)
    model, tokenizer = engine.runner.model, engine.tokenizer
    invariant = Engine(model, tokenizer, EngineConfig(batch_invariant=True))
    guessing = Engine(model, tokenizer, EngineConfig(batch_invariant=True, speculation=3))
    alone = invariant.generate(["a dog"], sampling)[0][0]
    together = guessing.generate(["a dog", "the", "x"], [sampling, Sampling(max_tokens=9), sampling])[0][0]
    assert alone.tokens == together.tokens
    tokens = torch.tensor([alone.prompt_tokens + alone.tokens])
    with torch.no_grad():
        logits = model(tokens)[0, len(alone.prompt_tokens) - 1 : -1]
    again = sampling_log_probs(logits, alone.tokens, sampling, matcher=engine.matcher(sampling, alone.ends))
    torch.testing.assert_close(again, torch.tensor(alone.sampling_logprobs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong", [Constraint(regex="(a"), Constraint(json_schema="{"), Constraint(json_schema={"type": "book"})]
)
def test_what_cannot_be_used_is_refused_in_a_sentence(engine, wrong):
    with pytest.raises(ValueError, match="constraint cannot be used: "):
        engine.submit("x", Sampling(constraint=wrong))
    assert not engine.has_work
    with pytest.raises(ValueError, match="constraint needs a tokenizer"):
        Engine(engine.runner.model).submit([1], Sampling(constraint=Constraint(regex="a")))
