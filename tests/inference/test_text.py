"""The text of replies: whole characters, no beginning of a stop text, and the stream's sum is the reply."""

import random

import pytest
import torch

from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.text import ReplyText
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        ["the cat sat on the mat, the cat ran, \n\n and a naïve 雪 fox 🦊 too"] * 3, 300, allow_smaller=True
    )


def pushed(tokenizer, tokens, stop):
    reply = ReplyText(tokenizer, stop)
    parts = []
    for token in tokens:
        parts.append(reply.push(token))
        if reply.stopped_by is not None:
            break
    return [*parts, reply.finish()], reply


ALPHABET = ["a", "b", "ab", "é", "雪", "🦊", "\n", " the", "cat"]


def test_any_text_is_cut_before_the_first_stop_text(tokenizer):
    """Stop texts across tokens and inside them, that overlap, repeat themselves, or begin others."""
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices(ALPHABET, k=draw.randint(0, 12)))
        stop = ["".join(draw.choices(ALPHABET, k=draw.randint(1, 3))) for _ in range(draw.randint(0, 3))]
        tokens = [*text.encode()] if draw.random() < 0.5 else tokenizer.encode_ordinary(text)
        parts, reply = pushed(tokenizer, tokens, stop)
        places = [text.find(each) for each in stop if each in text]
        if not places:
            assert ("".join(parts), reply.text) == (text, text)
            assert reply.stopped_by is None
            continue
        assert reply.text == "".join(parts)
        # With tokens of several characters the first stop text to be complete ends it.
        ends = [text.find(each) + len(each) for each in stop if each in text]
        assert reply.stopped_by in stop
        assert text.startswith(reply.text + reply.stopped_by)
        if tokens and len(tokens) == len(text.encode()):
            assert len(reply.text) + len(reply.stopped_by) == min(ends)


def test_nothing_that_may_begin_a_stop_text_is_returned(tokenizer):
    parts, reply = pushed(tokenizer, [*b"aab aabaabX"], ["aabX"])
    assert parts == ["", "", "", "aab ", "", "", "", "", "aab", "", "", ""][: len(parts)] or "".join(parts) == "aab aab"
    assert reply.text == "aab aab"
    running = ""
    for part in parts:
        running += part
        assert not running.endswith(("aabX",))
    parts, reply = pushed(tokenizer, [*b"aaba"], ["aabX"])
    assert "".join(parts[:-1]) == "aab"  # the last a may begin it
    assert reply.text == "aaba"


def test_half_a_character_is_held_back_to_the_end(tokenizer):
    whole = "雪".encode()
    parts, reply = pushed(tokenizer, whole, [])
    assert parts == ["", "", "雪", ""]
    parts, reply = pushed(tokenizer, whole[:2], [])
    assert parts == ["", "", "\N{REPLACEMENT CHARACTER}"]
    assert reply.text == tokenizer.decode([*whole[:2]])


# --- through the engine -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tokenizer):
    shape = {"vocab_size": tokenizer.n_vocab, "width": 32, "layers": 1, "heads": 4, "context": 200}
    return Engine(Decoder(DecoderConfig(**shape), generator=torch.Generator().manual_seed(0)).eval(), tokenizer)


def test_the_sum_of_the_stream_is_the_reply(engine):
    for seed in range(20):
        sampling = Sampling(temperature=1.5, seed=seed, max_tokens=60, stop=["e", " t", "at"], min_tokens=seed)
        updates = list(engine.stream("the", sampling))
        ((reply,),) = engine.generate(["the"], sampling)
        assert "".join(update.text for update in updates) == reply.text
        assert [token for update in updates for token in update.tokens] == reply.tokens
        assert [each for update in updates for each in update.logprobs] == reply.logprobs
        assert [update.finish_reason for update in updates[:-1]] == [None] * (len(updates) - 1)
        assert updates[-1].finish_reason == reply.finish_reason
        whole = engine.tokenizer.decode(reply.tokens)
        if reply.finish_reason == "stop" and reply.stop_reason != engine.tokenizer.eot_token:
            assert whole.startswith(reply.text + reply.stop_reason)
            assert len(reply.tokens) >= seed
        elif reply.finish_reason == "length":
            assert whole == reply.text


def test_an_end_token_is_not_text(engine):
    end = engine.tokenizer.eot_token
    ((reply,),) = engine.generate(["the cat"], Sampling(seed=0, logit_bias={end: 100.0}))
    assert (reply.tokens, reply.text, reply.stop_reason) == ([end], "", end)


def test_a_special_token_in_a_prompt_is_ordinary_text(engine):
    """What people write never becomes a special token."""
    ((reply,),) = engine.generate(["<|endoftext|>"], Sampling(max_tokens=1))
    assert reply.prompt_tokens.count(engine.tokenizer.eot_token) == 1  # the first, which begins the document
