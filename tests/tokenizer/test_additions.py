"""Tokens that are added to an encoding: a new object, saved and loaded again, and Hugging Face's ids."""

import copy
import json
import pickle

import pytest

from llmfast.inference.prompts import own_beginning
from llmfast.tokenizer import Encoding, Tokenizer, patterns
from llmfast.tokenizer.huggingface.contents import AROUND

tokenizers = pytest.importorskip("tokenizers")

from published_files import published_like  # noqa: E402 - which needs the library

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"he": 256}
TEXTS = ["<|start|>hello<|end|>", "a<think>b</think> c", "<think", "x<|endoftext|><think><|start|>", ""]


def encoding():
    return Encoding("small", pat_str=patterns.GPT2, mergeable_ranks=RANKS, special_tokens={"<|endoftext|>": 300})


def tokenizer():
    return Tokenizer.train(["low low low lower newest newest"], 262)


@pytest.mark.parametrize("make", [encoding, tokenizer])
def test_special_tokens(make):
    before = make()
    after = before.with_added_tokens(["<|start|>", "<|end|>"])
    assert type(after) is type(before)
    assert after.n_vocab == before.n_vocab + 2
    assert after.special_tokens_set == {*before.special_tokens_set, "<|start|>", "<|end|>"}
    assert before.special_tokens_set == make().special_tokens_set
    ids = after.encode(TEXTS[0], allowed_special="all")
    assert ids[0] == before.n_vocab
    assert ids[-1] == before.n_vocab + 1
    assert after.decode(ids) == TEXTS[0]
    with pytest.raises(ValueError, match="disallowed special token"):
        after.encode(TEXTS[0])
    assert after.encode_ordinary("hello") == before.encode_ordinary("hello")
    assert list(after.encode_iterable(["<|sta", "rt|>hello<|", "end|>"], allowed_special="all")) == ids
    assert pickle.loads(pickle.dumps(after)).encode(TEXTS[0], allowed_special="all") == ids


@pytest.mark.parametrize("make", [encoding, tokenizer])
def test_tokens_that_are_not_special(make):
    """They are ordinary text to the caller, and always found."""
    before = make()
    after = before.with_added_tokens(["<think>", "</think>"], special=False)
    assert type(after) is type(before)
    assert after.special_tokens_set == before.special_tokens_set
    think = before.n_vocab
    expected = [97, think, 98, think + 1, *before.encode(" c")]
    for ids in (
        after.encode(TEXTS[1]),
        after.encode_ordinary(TEXTS[1]),
        after.encode_batch([TEXTS[1]])[0],
        after.encode_documents([TEXTS[1]], append_eot=False)[0].tolist(),
        list(after.encode_iterable(["a<th", "ink>b</think> c"])),
    ):
        assert ids == expected
    assert after.count(TEXTS[1]) == len(expected)
    assert after.encode_with_offsets(TEXTS[1])[1][1] == (1, 8)
    assert after._encode_only_native_bpe(TEXTS[1]) == expected
    assert after.with_added_tokens(["<more>"]).encode(TEXTS[1]) == expected
    for twin in (pickle.loads(pickle.dumps(after)), copy.deepcopy(after), Tokenizer.of(after)):
        assert twin.encode(TEXTS[1]) == expected
        assert twin.rules == after.rules
    assert after.decode(expected) == TEXTS[1]


def test_hugging_face_gives_the_same_ids(tmp_path):
    after = tokenizer().with_added_tokens(["<|start|>", "<|end|>"]).with_added_tokens(["<think>"], special=False)
    after.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == after.fingerprint
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False)
        for ours in (after, loaded):
            ids, offsets = ours.encode_with_offsets(text, allowed_special="all")
            assert (ids, offsets) == (expected.ids, expected.offsets), text


def test_ids_can_be_chosen():
    after = encoding().with_added_tokens({"<|start|>": 298, "<|end|>": 400})
    assert [after.encode_single_token(text) for text in ("<|start|>", "<|end|>")] == [298, 400]
    assert after.n_vocab == 401


@pytest.mark.parametrize("make", [encoding, tokenizer])
@pytest.mark.parametrize("special", [True, False])
def test_what_cannot_be_added_is_named(make, special):
    before = make()
    for tokens, message in [
        ([""], r"tokens\[0\] is empty"),
        (["\ud800"], r"tokens\[0\] is '\\ud800', which no UTF-8 writes"),
        (["<a>", "<a>"], r"tokens\[1\] is '<a>', which is a token already"),
        (["<|endoftext|>"], "which is a token already"),
        (["h"], "which is a token already"),
        ({"<a>": 97}, "the id of token '<a>' is 97, which is another token's"),
        ({"<a>": 500, "<b>": 500}, "the id of token '<b>' is 500, which is another token's"),
        ({"<a>": -1}, "the id of token '<a>' must be at least 0, got -1"),
        ({"<a>": 2**24}, "16777216"),
    ]:
        with pytest.raises(ValueError, match=message):
            before.with_added_tokens(tokens, special=special)
    for tokens in ("<a>", b"<a>", None, 3, [b"<a>"], [None], {"<a>": "1"}):
        with pytest.raises(TypeError):
            before.with_added_tokens(tokens, special=special)


def published(**parts):
    """A file with a beginning of its own, and limits."""
    limits = {
        "truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 12}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<|begin_of_text|>",
        },
    }  # fmt: skip
    file = json.loads(published_like("llama3"))
    begin = next(token["id"] for token in file["added_tokens"] if token["content"] == "<|begin_of_text|>")
    file["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = [begin]
    return file | limits | parts


@pytest.mark.parametrize("special", [True, False])
def test_what_a_file_does_to_whole_texts_stays(tmp_path, special):
    """Trap: a tokenizer that is written anew loses its post-processor, and prompts their first token."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(published()))
    before = Tokenizer.load(tmp_path)
    after = before.with_added_tokens(["<|start|>"], special=special)
    assert own_beginning(after) == own_beginning(before) == [before.encode_single_token("<|begin_of_text|>")]
    for twin in (after, pickle.loads(pickle.dumps(after)), Tokenizer.of(after), after.with_files({})):
        assert twin.post_processor == before.post_processor
        twin.save(tmp_path / "saved")
        written = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
        assert {name: written[name] for name in AROUND} == {name: published()[name] for name in AROUND}
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    theirs.no_padding()
    text = "<|start|> x y z"
    first, *rest = theirs.encode(text).ids
    assert [first] == own_beginning(after)
    assert rest == after.encode(text, allowed_special="all")[: len(rest)]
    assert Tokenizer.load(tmp_path / "saved").encode_with_offsets(text, allowed_special="all") == (
        after.encode_with_offsets(text, allowed_special="all")
    )


def test_other_special_tokens_than_a_post_processor_adds(tmp_path):
    """It cannot add what is no token any more: that is said, and the rest is kept."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(published()))
    begin = Tokenizer.load(path).encode_single_token("<|begin_of_text|>")
    kept = Tokenizer.load(path, special_tokens={"<|begin_of_text|>": begin, "<|x|>": 2000})
    assert own_beginning(kept) == [begin]
    for specials in ({"<|x|>": 2000}, {"<|begin_of_text|>": 2000}):
        with pytest.warns(UserWarning, match=r"adds '<\|begin_of_text\|>' with the id \d+, which the special_tokens"):
            changed = Tokenizer.load(path, special_tokens=specials)
        assert changed.post_processor is None
        changed.save(tmp_path / "saved")
        assert (
            json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] == published()["truncation"]
        )


@pytest.mark.parametrize(
    ("post_processor", "message"),
    [
        (3, "it has no 'type'"),
        ({"type": "TemplateProcessing"}, "it has no 'single'"),
        ({"type": "TemplateProcessing", "single": [3], "special_tokens": {}}, "it has no 'SpecialToken'"),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}], "special_tokens": {}}, "no 'a'"),
        ({"type": "RobertaProcessing", "cls": ["a"], "sep": ["b", 1]}, "'cls' is a list of 1"),
        ({"type": "RobertaProcessing", "cls": ["a", "b"], "sep": ["b", 1]}, "the id of 'cls' .* is 'b'"),
    ],
)
def test_a_damaged_post_processor_is_refused(tmp_path, post_processor, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(published(post_processor=post_processor)))
    with pytest.raises(ValueError, match=message) as refused:
        Tokenizer.load(path)
    assert str(path) in str(refused.value)
