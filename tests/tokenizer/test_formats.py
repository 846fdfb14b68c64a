"""Saved tokenizers give equal ids in tokenizers, transformers and tiktoken; damaged files are refused."""

import inspect
import json
import pickle
import random
import unicodedata

import pytest
import tiktoken
import tiktoken.load
import tokenizers
from shared_data import shared_data
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from llmfast.tokenizer import Tokenizer, patterns
from llmfast.tokenizer.huggingface import byte_text
from llmfast.tokenizer.training import PATTERNS

CODE = "\n".join(inspect.getsource(module) for module in (inspect, random, json.decoder))
TRICKY = (
    "Don't DON'T  we'Ll stop!\n\n\n  END\t\t… naïve café 1234567 ½²\r\n\r\n  x = y*2 // z;/\n/\u00a0\u3000 "
    "日本語・カタカナ゛ 한국어 مرحبا 👩‍👩‍👧 e\u0301 \n \n\nend<|endoftext|>   after<|end|> ſ'ſ \x85\u2028x\n  "
)
TEXTS = [
    TRICKY,
    TRICKY + "\n",
    TRICKY.strip(),
    "",
    " ",
    "\n\n",
    "a",
    *(TRICKY[i : i + 9] for i in range(len(TRICKY))),
]
SPECIALS = ("<|endoftext|>", "<|end|>")


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(request):
    return Tokenizer.train([CODE, TRICKY * 5], 900, pattern=request.param, special_tokens=SPECIALS)


def ids(tokenizer, text):
    return tokenizer.encode(text, allowed_special="all")


# ---- What we write, others read


def test_hugging_face_gives_equal_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "folder" / "tokenizer.json"))
    for text in TEXTS:
        assert theirs.encode(text).ids == ids(tokenizer, text), text
        assert theirs.decode(ids(tokenizer, text), skip_special_tokens=False) == text
    assert theirs.get_vocab_size() == tokenizer.n_vocab


def test_transformers_gives_equal_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    for theirs in (tokenizer.to_transformers(), transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert all(theirs.encode(text) == ids(tokenizer, text) for text in TEXTS)
        assert theirs.eos_token_id == tokenizer.eot_token
        assert theirs.decode(ids(tokenizer, TRICKY)) == TRICKY


def test_tiktoken_gives_equal_ids(tokenizer, tmp_path):
    tokenizer.save_ranks(tmp_path / "x.tiktoken")
    assert tiktoken.load.load_tiktoken_bpe(str(tmp_path / "x.tiktoken")) == tokenizer._mergeable_ranks
    theirs = tokenizer.to_tiktoken()
    for text in TEXTS:
        assert ids(theirs, text) == ids(tokenizer, text), text


def test_loading_gives_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.eot_token == tokenizer.eot_token
        assert all(ids(loaded, text) == ids(tokenizer, text) for text in TEXTS)
    assert pickle.loads(pickle.dumps(loaded)).fingerprint == tokenizer.fingerprint


def test_rank_files_with_pattern_and_specials(tmp_path):
    tokenizer = Tokenizer.train([CODE], 500)
    path = tmp_path / "mine.tiktoken"
    tokenizer.save_ranks(path)
    with pytest.raises(ValueError, match=r"mine\.tiktoken does not say how text is split"):
        Tokenizer.load(path)
    loaded = Tokenizer.load(path, pattern="cl100k", special_tokens={"<|endoftext|>": 499})
    assert loaded.fingerprint == tokenizer.fingerprint


def test_the_fingerprint_tells_all_differences():
    def fingerprint(**changes):
        arguments = {"pattern": "gpt2", "special_tokens": ["<a>", "<b>"], "vocab_size": 300}
        return Tokenizer.train([CODE], **{**arguments, **changes}).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert len(first) == 64
    assert int(first, 16)
    others = [{"pattern": "llama3"}, {"special_tokens": ["<b>", "<a>"]}, {"vocab_size": 301}]
    assert len({first, *(fingerprint(**change) for change in others)}) == 4


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_published_vocabularies_survive_hugging_faces_format(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
    published = tiktoken.get_encoding(name)
    tokenizer = Tokenizer(
        name,
        pat_str=published._pat_str,
        mergeable_ranks=published._mergeable_ranks,
        special_tokens=published._special_tokens,
    )
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = shared_data("text/multilingual.txt").read_text("utf-8")[:200_000] + CODE
    assert theirs.encode(text).ids == published.encode(text, allowed_special="all")
    assert all(theirs.encode(one).ids == published.encode(one, allowed_special="all") for one in TEXTS)


# ---- What others write, we read


def hugging_face_tokenizer(pattern=None, specials_first=True, **model):
    """A byte-level BPE as Hugging Face's library trains it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(**model))
    steps = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|endoftext|>"] if specials_first else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CODE, TRICKY * 5], trainer)
    return tokenizer


def assert_reads(theirs, tmp_path):
    theirs.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    for text in TEXTS:
        assert ids(loaded, text) == theirs.encode(text, add_special_tokens=False).ids, text
    return loaded


@pytest.mark.parametrize("pattern", [None, patterns.LLAMA3, patterns.QWEN2, patterns.O200K, r"\s+|\S+", r"[a-z]+"])
def test_reads_tokenizers_trained_there(pattern, tmp_path):
    loaded = assert_reads(hugging_face_tokenizer(pattern), tmp_path)
    assert loaded.eot_token == 0  # its special tokens come first


@pytest.mark.parametrize("pattern", [patterns.CL100K, r" ?[a-z]+"])
def test_reads_patterns_whose_matches_alone_count(pattern, tmp_path):
    """How cl100k_base is often published; what does not match is dropped, as tiktoken does."""
    theirs = hugging_face_tokenizer(pattern)
    split = pre_tokenizers.Split(Regex(pattern.replace("++$", "++\\z")), "removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    theirs.add_special_tokens(["<|end|>"])
    loaded = assert_reads(theirs, tmp_path)
    loaded.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == loaded.fingerprint
    rewritten = tokenizers.Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert all(rewritten.encode(text).ids == ids(loaded, text) for text in TEXTS)


@pytest.mark.parametrize("pattern", [r"[a-z]+", r"\p{L}+|\p{N}", r"(?i:the|of) "])
def test_a_pattern_of_ones_own_survives_everywhere(pattern, tmp_path):
    tokenizer = Tokenizer.train([CODE, TRICKY * 5], 700, pattern=pattern, special_tokens=SPECIALS)
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert pattern in json.dumps(json.loads(theirs.to_str())["pre_tokenizer"]).replace("\\\\", "\\")
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    for text in TEXTS:
        assert tokenizer.decode(ids(tokenizer, text)) == text
        assert theirs.encode(text).ids == ids(tokenizer, text), text
        assert ids(tokenizer.to_tiktoken(), text) == ids(tokenizer, text)


def test_reads_the_llama_family(tmp_path):
    """Added tokens behind the vocabulary and outside of it, ignore_merges, every way to make a token listed."""
    theirs = hugging_face_tokenizer(patterns.LLAMA3, specials_first=False)
    theirs.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|end|>"])
    file = json.loads(theirs.to_str())
    vocabulary = file["model"]["vocab"]
    ways = [
        ((text[:i], text[i:]), rank)
        for text, rank in vocabulary.items()
        for i in range(1, len(text))
        if text[:i] in vocabulary and text[i:] in vocabulary
    ]
    ways.sort(key=lambda way: (way[1], vocabulary[way[0][0]], vocabulary[way[0][1]]))
    assert len(ways) > len(file["model"]["merges"])
    file["model"] |= {"merges": [list(pair) for pair, _ in ways], "ignore_merges": True}
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [800], "tokens": ["<|begin_of_text|>"]}
        },
    }
    loaded = assert_reads(tokenizers.Tokenizer.from_str(json.dumps(file)), tmp_path)
    assert loaded.eot_token == 801


def test_reads_the_qwen_family(tmp_path):
    """Text is normalized first, through every method; added tokens that are not special count as special."""
    theirs = hugging_face_tokenizer(patterns.QWEN2, specials_first=False)
    theirs.normalizer = normalizers.NFC()
    theirs.add_special_tokens(["<|endoftext|>"])
    theirs.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    loaded = assert_reads(theirs, tmp_path)
    apart = unicodedata.normalize("NFD", "déjà vu<tool_call>\u0338 한국어 " + TRICKY)
    expected = theirs.encode(apart).ids
    assert ids(loaded, apart) == expected
    assert loaded.encode_to_numpy(apart, allowed_special="all").tolist() == expected
    assert loaded.encode_batch([apart], allowed_special="all") == [expected]

    plain = apart.replace("<", "")
    expected = theirs.encode(plain).ids
    assert loaded.encode_ordinary(plain) == expected
    assert loaded.encode_ordinary_batch([plain]) == [expected]
    assert loaded.encode_documents([plain, plain.encode()], append_eot=False)[0].tolist() == expected * 2
    assert list(loaded.encode_iterable(plain)) == expected
    assert loaded.count(plain) == len(expected)
    stable, completions = loaded.encode_with_unstable(plain)
    assert stable == expected[: len(stable)]
    assert completions or stable == expected

    loaded.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert ids(again, apart) == ids(loaded, apart)
    assert again.fingerprint == loaded.fingerprint
    assert ids(pickle.loads(pickle.dumps(loaded)), apart) == ids(loaded, apart)
    assert (
        loaded.fingerprint
        != Tokenizer(
            "x",
            pat_str=loaded._pat_str,
            mergeable_ranks=loaded._mergeable_ranks,
            special_tokens=loaded._special_tokens,
        ).fingerprint
    )


def test_reads_vocab_and_merges(tmp_path):
    theirs = hugging_face_tokenizer()
    theirs.model.save(str(tmp_path))
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt"):
        loaded = Tokenizer.load(path)
        assert all(ids(loaded, text) == theirs.encode(text).ids for text in TEXTS)


def test_writes_vocab_and_merges(tmp_path):
    for pattern in ("gpt2", "qwen2"):
        tokenizer = Tokenizer.train([CODE], 800, pattern=pattern, special_tokens=("<|endoftext|>", "<s>", "</s>"))
        tokenizer.save_vocab_and_merges(tmp_path / pattern)
        loaded = Tokenizer.load(tmp_path / pattern, pattern=pattern)
        assert loaded.fingerprint == tokenizer.fingerprint
        files = [str(tmp_path / pattern / name) for name in ("vocab.json", "merges.txt")]
        theirs = tokenizers.Tokenizer(models.BPE.from_file(*files))
        theirs.pre_tokenizer = tokenizers.Tokenizer.from_str(tokenizer._to_json()).pre_tokenizer
        theirs.add_special_tokens(["<|endoftext|>", "<s>", "</s>"])
        assert all(theirs.encode(text).ids == ids(tokenizer, text) for text in TEXTS)
    unmade = Tokenizer(
        "unmade",
        pat_str=patterns.GPT2,
        mergeable_ranks={bytes([byte]): byte for byte in range(256)} | {b"qqq": 256},
        special_tokens={},
    )
    with pytest.raises(ValueError, match=r"no merge makes token 256, .* save tokenizer\.json instead"):
        unmade.save_vocab_and_merges(tmp_path / "unmade")
    assert not (tmp_path / "unmade").exists()


def test_an_added_token_that_is_an_ordinary_one_too(tmp_path):
    """Hugging Face gives it the id that its text has already, a byte's own or a merge's."""
    theirs = hugging_face_tokenizer(specials_first=False)
    word = max((token for token in theirs.get_vocab() if token.isascii()), key=len)
    theirs.add_special_tokens(["q", word, "<|end|>"])
    loaded = assert_reads(theirs, tmp_path)
    assert loaded.encode_ordinary(word) == theirs.encode(word).ids == [loaded.encode_single_token(word)]
    assert loaded.is_special_token(loaded.encode_single_token(word))
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == loaded.fingerprint


# ---- Damage


@pytest.fixture
def saved(tmp_path):
    Tokenizer.train([CODE], 400).save(tmp_path)
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("model"), "no 'model' of type dict"),
        (lambda file: file["model"].pop("vocab"), "no 'vocab' of type dict"),
        (lambda file: file["model"].pop("merges"), "no 'merges' of type list"),
        (lambda file: file["model"].update(type="WordPiece"), "its model is 'WordPiece'"),
        (lambda file: file["model"].update(dropout=0.1), "dropout=0.1"),
        (lambda file: file["model"]["vocab"].pop("a"), "but the vocabulary has no 'a'"),
        (lambda file: file["model"].update(vocab={}, merges=[]), "its vocabulary has no token"),
        (lambda file: file["model"]["vocab"].update({"in": "x"}), "the id of token 'in' is 'x'"),
        (lambda file: file["model"]["vocab"].update({"in": True}), "the id of token 'in' is True"),
        (lambda file: file["model"]["vocab"].update({"in": 7}), "tokens .* and .* both have the id 7"),
        (lambda file: file["model"]["vocab"].update({"in": 2**70}), "the id of token 'in' is a huge number"),
        (lambda file: file["model"]["vocab"].update({"in": 1 << 24}), "the largest id is 16777215"),
        (lambda file: file["model"].update(vocab=[["a", 0.0]], type=None), "its model is 'Unigram'"),
        (
            lambda file: file.update(model={"vocab": {"a": 0}, "max_input_chars_per_word": 9, "unk_token": "a"}),
            "its model is 'WordPiece'",
        ),
        (lambda file: file.update(model={"vocab": {"a": 0}, "unk_token": "a"}), "its model is 'WordLevel'"),
        (
            lambda file: (file.update(pre_tokenizer=None), file["model"].update(byte_fallback=True)),
            "a BPE over characters with byte_fallback, as converted from sentencepiece",
        ),
        (
            lambda file: (file.update(pre_tokenizer=None), file["model"].update(end_of_word_suffix="</w>")),
            "a BPE over characters with end_of_word_suffix='</w>'",
        ),
        (lambda file: file["model"]["merges"].append("q q"), "the vocabulary has no 'qq'"),
        (lambda file: file["model"]["merges"].append("q"), "is 'q', not two tokens"),
        (lambda file: file["model"]["merges"].append(3), "is 3, not two tokens"),
        (lambda file: file.update(normalizer={"type": "Uppercase"}), "Hugging Face's library refuses it"),
        (lambda file: file.update(normalizer=3), "no 'type' of type str"),
        (
            lambda file: file.update(normalizer={"type": "Sequence", "normalizers": 3}),
            "no 'normalizers' of type",
        ),
        (lambda file: file.update(pre_tokenizer=None), "not byte-level: its pre-tokenizer has no step"),
        (
            lambda file: file.update(pre_tokenizer={"type": "Metaspace"}),
            "its pre-tokenizer is Metaspace, without",
        ),
        (
            lambda file: file.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [file["pre_tokenizer"]] * 2}),
            "turns text into bytes 2 times",
        ),
        (lambda file: file["added_tokens"][0].update(lstrip=1), "'lstrip' is 1, not of type bool"),
        (lambda file: file["added_tokens"][0].update(id=None), "id of added token '<|endoftext|>' is None"),
        (lambda file: file["added_tokens"][0].update(id=2**70), "id of added token .* is a huge number"),
        (lambda file: file.update(added_tokens={}), "'added_tokens' is a dict of 0, not a list"),
        (lambda file: file.update(added_tokens=[[]]), "no 'content' of type str"),
        (lambda file: file.update(decoder=[1]), "no 'type' of type str"),
        (lambda file: file.update(post_processor="x"), "no 'type' of type str"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(saved, change, message):
    file = json.loads(saved.read_text("utf-8"))
    change(file)
    saved.write_text(json.dumps(file), "utf-8")
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as caught:
        Tokenizer.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b'{"model": 3}', b"\xff\xfe", b'{"model": {}}'])
def test_what_is_no_tokenizer_json_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json (is damaged|cannot be loaded): "):
        Tokenizer.load(saved)


def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 40):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            Tokenizer.load(saved)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"YQ== 999\n", "line 301 repeats token b'a'"),
        (b"!!!! 999\n", "line 301 is '!!!! 999', not a token in base64 and its rank"),
        (b"cXF4 x\n", "line 301"),
        (b"cXF4\n", "line 301"),
        (b"cXF4 5\n", "5"),
        (b"cXF4 -1\n", "-1"),
    ],
)
def test_a_damaged_rank_file_is_refused(line, message, tmp_path):
    path = tmp_path / "damaged.tiktoken"
    Tokenizer.train([CODE], 300, special_tokens=()).save_ranks(path)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path, pattern="gpt2")
    assert str(path) in str(caught.value)
    path.write_bytes(path.read_bytes()[300:])
    with pytest.raises(ValueError, match="is damaged"):
        Tokenizer.load(path, pattern="gpt2")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json, vocab\.json, tekken\.json or"):
        Tokenizer.load(tmp_path)


def test_a_special_token_written_like_another_token_is_refused(tmp_path):
    tokenizer = Tokenizer.train([CODE], 300, special_tokens=["Ġ"])
    with pytest.raises(ValueError, match="special token 'Ġ' is written like token 32"):
        tokenizer.save(tmp_path)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Tokenizer.train([CODE], 350).save(saved.parent)
    assert saved.read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_byte_characters():
    assert all(byte_text.token_bytes(byte_text.token_text(bytes([byte]))) == bytes([byte]) for byte in range(256))
    assert byte_text.token_text(b" caf\xc3\xa9\n") == "ĠcafÃ©Ċ"
