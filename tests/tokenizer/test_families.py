"""Tokenizers with the parts of published families: the ids, offsets and texts of Hugging Face's library."""

import functools
import json
import pickle
import random
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from published_files import FAMILIES, TEXT, published_like

from llmfast.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

# Those that say of a text more than that it is to be split: rules of each kind.
WITH_RULES = [
    "olmo",
    "starcoder2",
    "falcon",
    "roberta",
    "roberta_prefix",
    "phi2",
    "qwen2",
    "clip",
    "nfkc_lower",
    "stripped",
]


@functools.cache
def theirs_of(family) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(published_like(family))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    @functools.cache
    def folder(family):
        path = tmp_path_factory.mktemp(family)
        (path / "tokenizer.json").write_text(published_like(family), encoding="utf-8")
        return path

    return folder


@pytest.fixture(scope="module")
def ours_of(folder_of):
    return functools.cache(lambda family: Tokenizer.load(folder_of(family)))


def texts(family, seed=0, count=40) -> list[str]:
    draw = random.Random(seed)
    added = [token.content for token in FAMILIES[family]["added"]]
    words = [*TEXT.split(" "), *added, *(f"{text} " for text in added), *(text.lower() for text in added)]
    words += [" ", "  ", "\n", "     ", "\t\t", "e\u0301", "\u212a", "name", "\u0301", "<", "_"]
    ranges = [(32, 127), (0x80, 0x3000), (0x3000, 0xD800), (0xE000, 0x1F700)]
    return [
        *("", " ", "a", "\n\n", "x  ", TEXT, TEXT + "\n", TEXT.strip()),
        *(" ".join(draw.choices(words, k=draw.randint(1, 14))) for _ in range(count)),
        *("".join(draw.choices(words, k=draw.randint(1, 14))) for _ in range(count)),
        *("".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randint(1, 30))) for _ in range(count)),
    ]


def assert_equal(ours, theirs, text):
    expected = theirs.encode(text, add_special_tokens=False)
    ids, offsets = ours.encode_with_offsets(text, allowed_special="all")
    assert ids == expected.ids, text
    assert offsets == expected.offsets, text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_offsets_and_texts(family, ours_of):
    for text in texts(family):
        assert_equal(ours_of(family), theirs_of(family), text)


@given(text=st.text(max_size=40), family=st.sampled_from(sorted(FAMILIES)))
@settings(max_examples=300, deadline=None)
def test_any_text(text, family, ours_of):
    assert_equal(ours_of(family), theirs_of(family), text)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_id_decodes_alike(family, ours_of):
    ours, theirs = ours_of(family), theirs_of(family)
    for number in theirs.get_vocab().values():
        assert ours.decode([number]) == theirs.decode([number], skip_special_tokens=False)
    assert ours.n_vocab == max(theirs.get_vocab().values()) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_files_are_equal(family, ours_of, folder_of, tmp_path):
    """What was loaded is written as it was, and gives equal ids in both libraries and in transformers."""
    ours = ours_of(family)
    ours.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder_of(family) / "tokenizer.json").read_bytes()
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for twin in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(ours))):
        assert twin.fingerprint == ours.fingerprint
        for text in texts(family, seed=1, count=10):
            ids = ours.encode(text, allowed_special="all")
            assert twin.encode(text, allowed_special="all") == ids
            assert auto.encode(text, add_special_tokens=False) == ids


# ---- Every method obeys the rules


def methods_of_text(ours):
    """Each public method that takes text, as a function from a text to ids."""
    return {
        "encode": lambda text: ours.encode(text, disallowed_special=()),
        "encode_ordinary": ours.encode_ordinary,
        "encode_to_numpy": lambda text: ours.encode_to_numpy(text, disallowed_special=()).tolist(),
        "encode_batch": lambda text: ours.encode_batch(["a", text], disallowed_special=())[1],
        "encode_ordinary_batch": lambda text: ours.encode_ordinary_batch([text, "a"])[0],
        "encode_documents": lambda text: documents(ours, text),
        "encode_iterable": lambda text: list(ours.encode_iterable(text[i : i + 3] for i in range(0, len(text), 3))),
        "encode_with_offsets": lambda text: ours.encode_with_offsets(text, disallowed_special=())[0],
        "_encode_only_native_bpe": ours._encode_only_native_bpe,
    }


def documents(ours, text):
    ids, offsets = ours.encode_documents(["a", text, text.encode(), "a"], append_eot=False)
    rows = [ids[start:stop].tolist() for start, stop in pairwise(offsets)]
    assert rows[1] == rows[2]
    assert rows[0] == rows[3]
    return rows[1]


# What takes no text, or no text that is to be encoded, or is checked below.
OTHERS = {
    "decode", "decode_batch", "decode_bytes", "decode_bytes_batch", "decode_single_token_bytes",
    "decode_tokens_bytes", "decode_with_offsets", "stream_decoder", "default_config", "encode_single_token",
    "is_special_token", "token_byte_values", "with_files", "load", "save", "save_ranks", "save_vocab_and_merges",
    "of", "of_characters", "of_contents", "to_tiktoken", "to_transformers", "train", "from_pretrained",
    "with_added_tokens", "count", "encode_with_unstable",
}  # fmt: skip


@pytest.mark.parametrize("family", WITH_RULES)
def test_every_method_obeys_the_rules(family, ours_of):
    """A tokenizer with rules has them in its engine, so that no method that is added later can leave them out."""
    ours, theirs = ours_of(family), theirs_of(family)
    methods = methods_of_text(ours)
    public = {name for name in dir(Tokenizer) if not name.startswith("_") and callable(getattr(Tokenizer, name))}
    assert public - OTHERS == {name for name in methods if not name.startswith("_")}
    theirs.encode_special_tokens = True
    try:
        for text in texts(family, seed=2, count=8):
            expected = theirs.encode(text, add_special_tokens=False).ids
            for name, method in methods.items():
                assert method(text) == expected, (name, text)
            assert ours.count(text) == len(expected)
            stable, _ = ours.encode_with_unstable(text, disallowed_special=())
            assert stable == expected[: len(stable)]
    finally:
        theirs.encode_special_tokens = False


def test_added_tokens_that_are_not_special_are_ordinary_text(ours_of):
    ours = ours_of("qwen2")
    think = ours.encode_single_token("<think>")
    assert ours.special_tokens_set == {"<|endoftext|>", "<|im_start|>"}
    assert ours.encode("a<think>b") == [*ours.encode("a"), think, *ours.encode("b")]
    assert not ours.is_special_token(think)
    with pytest.raises(ValueError, match=r"disallowed special token '<\|im_start\|>'"):
        ours.encode("<think><|im_start|>")
    as_text = ours.encode("<think><|im_start|>", disallowed_special=())
    assert as_text[0] == think
    assert ours.encode_single_token("<|im_start|>") not in as_text


# ---- Vocabularies that the engine cannot merge by itself


def changed(family, change) -> tokenizers.Tokenizer:
    file = json.loads(published_like(family))
    change(file)
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def swap(merges):
    merges[20], merges[50] = merges[50], merges[20]


def several_ways(file):
    """Lists every pair that makes a token, in the place of its first."""
    vocabulary = file["model"]["vocab"]
    merges = []
    for merge in file["model"]["merges"]:
        made = "".join(merge)
        pairs = ((made[:i], made[i:]) for i in range(1, len(made)))
        merges += [[left, right] for left, right in pairs if left in vocabulary and right in vocabulary]
    file["model"]["merges"] = merges


def without_alphabet(file):
    """Leaves out bytes that the text which it was trained on has not, as trainers do that are not told otherwise."""
    used = {character for merge in file["model"]["merges"] for part in merge for character in part}
    for text in [text for text in file["model"]["vocab"] if len(text) == 1 and text not in used]:
        del file["model"]["vocab"][text]


CHANGES = {
    "merges in another order": lambda file: swap(file["model"]["merges"]),
    "a pair missing": lambda file: file["model"]["merges"].pop(3),
    "every pair": several_ways,
    "pairs in the reverse order": lambda file: file["model"]["merges"].reverse(),
    "a token that no merge makes": lambda file: file["model"]["vocab"].update({"qqqq": 900}),
    "a token that only a whole piece is": lambda file: (
        file["model"]["vocab"].update({"Ġqqqq": 900}),
        file["model"].update(ignore_merges=True),
    ),
    "a token that is no byte text": lambda file: file["model"]["vocab"].update({"日本": 900}),
    "an empty token": lambda file: file["model"]["vocab"].update({"": 900}),
    "never used bytes missing": lambda file: [file["model"]["vocab"].pop(text) for text in "ÀÁõö÷øùúûüýþÿ"],
    "used bytes missing": without_alphabet,
    "an unknown token": lambda file: (
        without_alphabet(file),
        file["model"]["vocab"].update({"<unk>": 900}),
        file["model"].update(unk_token="<unk>"),
    ),
    "an unknown token, fused": lambda file: (
        without_alphabet(file),
        file["model"]["vocab"].update({"<unk>": 900}),
        file["model"].update(unk_token="<unk>", fuse_unk=True),
    ),
    "a far id": lambda file: file["model"]["vocab"].update({"x": 9_000_000}),
    "no decoder": lambda file: file.update(decoder=None),
    "another decoder": lambda file: file.update(
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
            ],
        }
    ),
    "byte fallback that never acts": lambda file: file["model"].update(byte_fallback=True),
    "no dropout": lambda file: file["model"].update(dropout=0.0),
    "an added token that is bytes": lambda file: file["added_tokens"].append(
        {"id": 0, "content": "é", **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)}
    ),
    "two names of one id": lambda file: (
        file["model"]["vocab"].update({"<|end|>": 700, file["added_tokens"][0]["content"]: 700}),
        file["added_tokens"].append({**file["added_tokens"][0], "content": "<|end|>"}),
    ),
    "ids that the file gets wrong": lambda file: file["added_tokens"][0].update(id=12345),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_unusual_vocabularies(family, change, tmp_path):
    theirs = changed(family, CHANGES[change])
    file = json.loads(published_like(family))
    CHANGES[change](file)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    ours = Tokenizer.load(tmp_path)
    for text in [*texts(family, seed=3, count=12), "qqqq", " qqqq", "q qqqq!", "日本", "<|end|>é"]:
        assert_equal(ours, theirs, text)
    twin = pickle.loads(pickle.dumps(ours))
    assert twin.encode(TEXT) == ours.encode(TEXT)
    ids, _ = ours.encode_documents([TEXT, TEXT], append_eot=False)
    assert ids.tolist() == ours.encode(TEXT) * 2


def test_the_engine_merges_what_it_can(ours_of):
    """Published families merge in the engine, all but CLIP's, whose words end in a suffix, and words that Metaspace
    changes when they are bytes already."""
    libraries = {family for family in FAMILIES if (rules := ours_of(family).rules) and rules.model}
    assert libraries == {"clip", "metaspace_behind"}


def test_of_two_names_for_an_id_one_is_written(tmp_path):
    """As o200k_harmony has: a tokenizer.json has one name for an id."""
    ours = Tokenizer.train([TEXT * 3], 300, special_tokens=["<|end|>"])
    twice = Tokenizer(
        "twice",
        pat_str=ours._pat_str,
        mergeable_ranks=ours._mergeable_ranks,
        special_tokens={"<|end|>": 299, "<|reserved_299|>": 299},
    )
    with pytest.warns(UserWarning, match="'<|reserved_299|>' is left out"):
        twice.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.load(tmp_path)
    for text in ("a<|end|>b", "a<|reserved_299|>b"):
        assert_equal(again, theirs, text)
    assert again.encode("<|end|>", allowed_special="all") == [299]
