"""Preference pairs: which records are read, what is left out and said of it, and which tokens are compared."""

import numpy as np
import pytest
from small_pairs import pair, prepared_pairs
from small_sft import small_tokenizer

from llmfast.data.batch import IGNORED
from llmfast.data.examples.preferences import CHOSEN, MISMATCHED, REJECTED, preference_pair

ASKED = {"role": "user", "content": "Hi"}
FILLER = [pair(number) for number in range(20)]


def answer(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "What"},
        {"prompt": [ASKED], "chosen": [answer("Hello")], "rejected": [answer("What")]},
        {"prompt": "Hi", "chosen": [answer("Hello")], "rejected": [answer("What")]},
        {"prompt": "Hi", "chosen": [ASKED, answer("Hello")], "rejected": [ASKED, answer("What")]},
        {"chosen": [ASKED, answer("Hello")], "rejected": [ASKED, answer("What")]},
        {"instruction": "Hi", "input": "", "output": "Hello", "chosen": "Hello", "rejected": "What"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What"},
    ],
    ids=["texts", "messages", "mixed", "whole", "implicit", "alpaca", "anthropic"],
)
def test_the_published_forms_are_read(record):
    found = preference_pair(record, "a.json")
    assert [message["role"] for message in found.chosen.messages] == ["user", "assistant"]
    assert [each.messages[0]["content"] for each in found] == ["Hi", "Hi"]
    assert [each.messages[1]["content"] for each in found] == ["Hello", "What"]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "Hi", "completion": "Hello"}, "has the columns prompt, completion: a pair has chosen and rejected"),
        ({"chosen": "Hello", "rejected": "What"}, "there is no prompt"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "What"}, "chosen is neither text nor a list"),
        ({"prompt": "Hi", "chosen": [ASKED], "rejected": [ASKED]}, "chosen does not end with an answer"),
    ],
)
def test_other_records_are_refused_with_their_place(record, sentence):
    with pytest.raises(ValueError, match=rf"^a\.json, record 7.*{sentence}"):
        preference_pair(record, "a.json, record 7")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"}, "with equal answers"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "  "}, "with an empty answer"),
        ({"prompt": "Hi", "chosen": None, "rejected": "Hello"}, "with an empty answer"),
        ({"prompt": "red " * 200, "chosen": "Hello", "rejected": "What"}, "with a prompt longer than data.max_tokens"),
        (
            {"prompt": "Hi", "chosen": "red " * 120 + "A", "rejected": "red " * 120 + "B"},
            "with answers that are equal once they are cut at data.max_tokens 100",
        ),
        (
            {"chosen": [ASKED, answer("Hello")], "rejected": [{**ASKED, "content": "Ho"}, answer("What")]},
            "with answers to different prompts",
        ),
    ],
    ids=["equal", "empty", "null", "long prompt", "cut equal", "prompts differ"],
)
def test_pairs_that_say_nothing_are_left_out_with_their_row(tmp_path, record, reason):
    """Trap: truncation that makes chosen = rejected, a loss of exactly log 2 without a gradient."""
    prepared, lines = prepared_pairs(tmp_path, [*FILLER[:3], record, *FILLER[3:]])
    assert len(prepared.train) + len(prepared.validation) == len(FILLER)
    (line,) = (line for line in lines if line.startswith("left out"))
    assert reason in line
    assert line.startswith("left out    1 with")
    assert "pairs.jsonl:4)" in line


def test_only_pairs_that_say_nothing_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="no example can be trained on: 2 with equal answers"):
        prepared_pairs(tmp_path, [{"prompt": "Hi", "chosen": "a", "rejected": "a"}] * 2)


def test_a_batch_has_both_answers_after_the_same_prompt_and_only_answers_are_targets(tmp_path):
    """Trap: log-probabilities shifted by one, so that an answer is scored by the token before it."""
    prepared, _ = prepared_pairs(tmp_path, FILLER)
    split, tokenizer = prepared.train, prepared.tokenizer
    batch = split.batch(np.arange(3))
    assert batch.tokens.shape == batch.targets.shape == batch.is_real.shape
    assert batch.tokens.shape[:2] == (3, 2)
    for row in range(3):
        for side in (CHOSEN, REJECTED):
            prompt, said = split.tokens(row, side)
            length = len(prompt) + len(said) - 1
            tokens, targets = batch.tokens[row, side].tolist(), batch.targets[row, side].tolist()
            assert tokens[:length] == (prompt + said)[:-1]
            assert targets[: len(prompt) - 1] == [IGNORED] * (len(prompt) - 1)
            assert targets[len(prompt) - 1 : length] == said
            assert set(targets[length:]) <= {IGNORED}
            assert batch.is_real[row, side].tolist() == [True] * length + [False] * (len(tokens) - length)
            assert tokenizer.decode(said).endswith("<|im_end|>")
        assert split.tokens(row, CHOSEN)[0] == split.tokens(row, REJECTED)[0]
        assert tokenizer.decode(split.tokens(row, CHOSEN)[1]).isupper() or "<|im_end|>" in tokenizer.decode(said)


def test_the_third_side_has_the_answer_of_another_pair(tmp_path):
    prepared, _ = prepared_pairs(tmp_path, FILLER, mismatched=True)
    split = prepared.train
    last = len(split) - 1
    batch = split.batch(np.array([0, last]))
    assert batch.tokens.shape[1] == 3
    for row, (place, other) in enumerate([(0, 1), (last, 0)]):
        prompt, said = split.tokens(place, CHOSEN)[0], split.tokens(other, CHOSEN)[1]
        assert split.tokens(place, MISMATCHED) == (prompt, said)
        length = len(prompt) + len(said) - 1
        assert batch.tokens[row, 2, :length].tolist() == (prompt + said)[:-1]
        assert batch.targets[row, 2, len(prompt) - 1 : length].tolist() == said
        assert int(batch.is_real[row, 2].sum()) == length


def test_prompts_are_on_one_side_whatever_their_answers(tmp_path):
    records = [{**record, "chosen": f"{record['chosen']} {copy}"} for record in FILLER for copy in "ABC"]
    prepared, _ = prepared_pairs(tmp_path, records)
    sides = [
        {tuple(split.tokens(place, CHOSEN)[0]) for place in range(len(split))}
        for split in (prepared.train, prepared.validation)
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == len(FILLER)
    assert small_tokenizer().n_vocab < prepared.tokenizer.n_vocab  # that of chatml
