"""Documents that repeat an earlier one: equal ones always, similar ones from a similarity on, the first is kept."""

import doctest
import json
import random

import pytest

from llmfast.cli import main
from llmfast.data import duplicates as module
from llmfast.data.duplicates import duplicates
from llmfast.data.reading.corpus import Document

WORDS = [f"word{number}" for number in range(500)]


def text_of(seed: int, count: int = 200) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def found_in(texts: list[str], **options) -> list[str | None]:
    return [each.of for each in duplicates([Document(str(i), t) for i, t in enumerate(texts)], **options)]


def test_the_example_is_true():
    assert doctest.testmod(module).failed == 0


def test_similar_texts_are_found_and_others_are_not():
    pytest.importorskip("datasketch")
    words = text_of(0)
    one_changed = [*words[:100], "other", *words[101:]]  # 5 of 196 n-grams: a Jaccard similarity of 0.95
    half = words[:100] + text_of(1, 100)  # one of 0.33
    texts = [" ".join(each) for each in (words, one_changed, half, text_of(2), words)]
    assert found_in(texts) == [None, "0", None, None, "0"]
    assert found_in(texts, similarity=1) == [None, None, None, None, "0"]


def test_case_and_punctuation_make_no_difference_and_scripts_without_spaces_have_words():
    pytest.importorskip("datasketch")
    assert found_in(["The red, red fox runs.", "the red red fox runs"]) == [None, "0"]
    long = "春眠不覚暁処処聞啼鳥夜来風雨声花落知多少"
    assert found_in([long, long[:-1] + "い", "国破山河在城春草木深感時花濺涙恨別鳥驚心"]) == [None, "0", None]


def test_texts_without_words_are_compared_whole():
    """Trap: two drawings, or two empty sets of n-grams, taken for one."""
    pytest.importorskip("datasketch")
    assert found_in(["+--+", "****", "+--+"]) == [None, None, "0"]


def test_a_repeated_duplicate_names_the_document_that_is_kept():
    pytest.importorskip("datasketch")
    words = text_of(0)
    changed = " ".join([*words[:100], "other", *words[101:]])
    assert found_in([" ".join(words), changed, changed]) == [None, "0", "0"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"similarity": 0}, "similarity must be"),
        ({"similarity": 1.1}, "similarity must be"),
        ({"ngram": 0}, "ngram must be"),
    ],
)
def test_settings_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        duplicates([], **options)


def test_the_command_writes_what_can_be_prepared(tmp_path, capsys):
    pytest.importorskip("datasketch")
    words = text_of(0)
    texts = [" ".join(words), " ".join([*words[:-1], "x"]), "entirely different", " ".join(words)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    command = ["data", "dedup", str(tmp_path / "out"), "--sources", str(source), "--column", "body"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "4 read, 2 kept" in said
    assert "1 equal, 1 similar" in said
    kept = [json.loads(line) for line in (tmp_path / "out" / "documents.jsonl").read_text().splitlines()]
    assert [each["text"] for each in kept] == [texts[0], texts[2]]
    left_out = [json.loads(line) for line in (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()]
    assert [each["of"] for each in left_out] == [kept[0]["name"]] * 2
    assert 0.8 <= left_out[0]["similarity"] < left_out[1]["similarity"] == 1
    assert main(command) == 2
    assert "out exists already" in capsys.readouterr().err
