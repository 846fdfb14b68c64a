"""Formats beside tokenizer.json, and the files beside it: read as their publishers do, written as they were."""

import base64
import json
import random

import pytest
import tiktoken
import tokenizers
from published_files import TEXT, published_like
from tokenizers import pre_tokenizers

from llmfast.tokenizer import Tokenizer, patterns
from llmfast.tokenizer.formats.tokenizer_files import BESIDE
from llmfast.tokenizer.huggingface import expressions

transformers = pytest.importorskip("transformers")

TEXTS = [TEXT, TEXT.strip(), "", " ", "a<think>b <|im_start|>c", "x  <tool_call>\n", "[INST] hi [/INST]</s>"]


def ids(tokenizer, text):
    return tokenizer.encode(text, allowed_special="all")


# ---- vocab.json and merges.txt, by the names of both publishers


@pytest.fixture
def split_files(tmp_path):
    """vocab.json and merges.txt of a vocabulary without added tokens, and the tokenizer that they came from."""
    theirs = tokenizers.Tokenizer.from_str(published_like("gpt2"))
    theirs.model.save(str(tmp_path))
    return tmp_path, theirs


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_both_pairs_of_names(names, split_files):
    folder, theirs = split_files
    (folder / "vocab.json").rename(folder / names[0])
    (folder / "merges.txt").rename(folder / names[1])
    plain = tokenizers.Tokenizer(theirs.model)
    plain.pre_tokenizer = theirs.pre_tokenizer
    for path in (folder, folder / names[0], folder / names[1]):
        ours = Tokenizer.load(path)
        assert all(ids(ours, text) == plain.encode(text).ids for text in TEXTS)
    (folder / names[1]).unlink()
    with pytest.raises(ValueError, match=f"there is no {names[1]} beside it"):
        Tokenizer.load(folder)


def test_added_tokens_and_special_tokens_map(split_files):
    """added_tokens.json names added tokens, and special_tokens_map.json says which of them are special."""
    folder, _ = split_files
    size = len(json.loads((folder / "vocab.json").read_text("utf-8")))
    added = {"<|im_start|>": size, "<think>": size + 1, "[PAD]": size + 2}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"eos_token": "<|im_start|>", "pad_token": {"content": "[PAD]", "lstrip": True}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    ours = Tokenizer.load(folder)
    assert ours.special_tokens_set == {"<|im_start|>", "[PAD]"}
    assert ours.encode("a<think>") == [*ours.encode("a"), size + 1]
    assert ours.encode("<|im_start|>", allowed_special="all") == [size]


def test_a_config_tells_the_family(split_files):
    folder, _ = split_files
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {
        "460": {"content": "<think>", "special": False}, "461": {"content": "<|im_start|>", "special": True},
    }}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(folder)
    assert ours._pat_str == patterns.QWEN2
    assert ours.encode("e\u0301") == ours.encode("é")
    assert ours.encode("<think>") == [460]
    assert ours.special_tokens_set == {"<|im_start|>"}

    (folder / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    ours = Tokenizer.load(folder)
    assert ours.encode("the") == ours.encode(" the")

    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BlubTokenizer"}))
    with pytest.raises(ValueError, match=r"'BlubTokenizer', .* load it with Tokenizer\.load\(path, pattern=\.\.\.\)"):
        Tokenizer.load(folder)
    assert Tokenizer.load(folder, pattern="qwen2")._pat_str == patterns.QWEN2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a b c"}}}'),
        ("added_tokens.json", '{"<x>": "y"}'),
        ("added_tokens.json", '{"<x>": 1180591620717411303424}'),
        ("special_tokens_map.json", "3"),
        ("vocab.json", "3"),
        ("vocab.json", '{"a": [[[]]]}'),
        ("merges.txt", "a b c\n"),
    ],
)
def test_damaged_files_are_named(name, content, split_files):
    folder, _ = split_files
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=r"\.json (is damaged|cannot be loaded): "):
        Tokenizer.load(folder)


def test_special_tokens_of_any_form_survive(tmp_path):
    """Also those that do not stand in angle brackets; and ordinary tokens that do."""
    specials = ["<|endoftext|>", "[CLS]", "END OF TEXT", "▁"]
    ours = Tokenizer.train([TEXT * 3, "<b><b><b>" * 9], 400, pattern="gpt2", special_tokens=specials)
    ours.save_vocab_and_merges(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.special_tokens_set == set(specials)
    assert again.fingerprint == ours.fingerprint
    for text in (TEXT, "a[CLS]<b> END OF TEXT▁<|endoftext|>"):
        assert ids(again, text) == ids(ours, text)


# ---- Mistral's and Meta's


def tekken_file(n_specials=20, **changes):
    trained = Tokenizer.train([TEXT * 3], 400, pattern="none", special_tokens=())
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in sorted(trained._mergeable_ranks.items(), key=lambda item: item[1])
    ]
    pattern = patterns.O200K.replace(patterns.CONTRACTIONS + "?", "").replace(r"\p{N}{1,3}", r"\p{N}")
    file = {
        "config": {
            "pattern": pattern, "num_vocab_tokens": 400, "default_vocab_size": 380 + n_specials,
            "default_num_special_tokens": n_specials, "version": "v3",
        },
        "vocab": vocabulary,
    }  # fmt: skip
    return file | changes, pattern, trained


def test_tekken(tmp_path):
    """Special tokens come first, and of the ordinary ones as many count as the size leaves room for."""
    file, pattern, trained = tekken_file(n_specials=22)
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    ours = Tokenizer.load(tmp_path)
    ranks = {token: rank for token, rank in trained._mergeable_ranks.items() if rank < 380}
    theirs = tiktoken.Encoding("tekken", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        assert ours.encode_ordinary(text) == [rank + 22 for rank in theirs.encode_ordinary(text)]
    assert ids(ours, "<s>[INST]</s><SPECIAL_21>") == [1, 3, 2, 21]
    assert ours.n_vocab == 402
    assert ours.eot_token == 2
    ours.save(tmp_path / "saved")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert all(other.encode(text).ids == ids(ours, text) for text in TEXTS)

    named = [{"rank": 0, "token_str": "<unk>", "is_control": True}, {"rank": 2, "token_str": "[END]"}]
    file, _, _ = tekken_file(special_tokens=named)
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    assert ids(Tokenizer.load(tmp_path), "<unk><SPECIAL_1>[END]") == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["vocab"].__setitem__(3, 5), "no 'rank' of type int"),
        (lambda file: file["vocab"][3].update(rank=2**70), "the rank of token 3 is a huge number"),
        (lambda file: file["vocab"][3].update(token_bytes="!"), "token 3 is '!', not base64"),
        (lambda file: file["vocab"][3].update(token_bytes=""), "token 3 is empty"),
        (lambda file: file["vocab"][3].update(token_bytes="AA=="), "token 3 repeats another"),
        (lambda file: file["config"].pop("pattern"), "no 'pattern' of type str"),
        (
            lambda file: file["config"].update(pattern="("),
            "is no regular expression|not a regular expression",
        ),
        (lambda file: file["config"].update(default_vocab_size=None), "default_vocab_size is None"),
    ],
)
def test_a_damaged_tekken_is_refused(change, message, tmp_path):
    file, _, _ = tekken_file()
    change(file)
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "tekken.json") in str(caught.value)


def test_metas_model_is_a_rank_file_and_no_sentencepiece(tmp_path):
    trained = Tokenizer.train([TEXT * 3], 400, pattern="llama3")
    trained.save_ranks(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=r"tokenizer\.model does not say how text is split: load it with"):
        Tokenizer.load(tmp_path)
    ours = Tokenizer.load(tmp_path, pattern="llama3", special_tokens={"<|endoftext|>": 399})
    assert ours.fingerprint == trained.fingerprint


def test_sentencepiece_is_refused_by_its_name(tmp_path):
    piece = b"\n\x0b\n\x05<unk>\x15\0\0\0\0\x18\x02"
    (tmp_path / "tokenizer.model").write_bytes(piece * 20)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(ValueError, match=r"tokenizer\.model is a sentencepiece model"):
            Tokenizer.load(path)


# ---- Damage that once gave other errors


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "content",
    [
        deep(100_000),
        '{"model": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
        '{"model": {"type": "BPE", "vocab": {"a": 1' + "0" * 30 + '}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 1' + "0" * 5000 + '}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": NaN}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": {"b": []}}, "merges": []}}',
        '{"model": {"type": ["BPE"], "vocab": {"a": 0}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [[["a"], "b"]]}}',
        '{"model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}, '
        '"added_tokens": [{"id": 0, "content": "\\ud800"}]}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": 3}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": [[]]}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "ignore_merges": 3}, '
        '"pre_tokenizer": {"type": "ByteLevel"}}',
    ],
)
def test_odd_types_and_numbers_name_the_file(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json (is damaged|cannot be loaded): "):
        Tokenizer.load(tmp_path)


# ---- What lies beside a tokenizer is kept


def test_files_beside_it_are_written_as_they_were(tmp_path):
    """The end, beginning and padding tokens, chat templates and generation defaults of the publisher."""
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
    files = {
        "tokenizer.json": published_like("qwen2"),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_start|>", "bos_token": None,
                "pad_token": "<|endoftext|>", "model_max_length": 32768, "padding_side": "left", "x": [1, {"y": 2}],
                "clean_up_tokenization_spaces": False,
            }
        ),
        "special_tokens_map.json": json.dumps({"eos_token": "<|im_start|>", "pad_token": "<|endoftext|>"}),
        "generation_config.json": json.dumps({"eos_token_id": [453, 452], "temperature": 0.6}),
        "chat_template.jinja": template,
    }  # fmt: skip
    (tmp_path / "first" / "additional_chat_templates").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "first" / name).write_text(content, encoding="utf-8")
    (tmp_path / "first" / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    Tokenizer.load(tmp_path / "first" / "tokenizer.json").save(tmp_path / "second")
    names = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()]
    for name in names:
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "second")
    assert (auto.eos_token, auto.pad_token, auto.padding_side) == ("<|im_start|>", "<|endoftext|>", "left")
    chat = [{"role": "user", "content": "hi"}]
    assert auto.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nhi"
    assert set(BESIDE) >= {name for name in files if name != "tokenizer.json"}


def test_another_pattern_or_other_specials_are_written(tmp_path):
    """What the caller says in the place of the file is in the file that is saved."""
    (tmp_path / "tokenizer.json").write_text(published_like("qwen2"), encoding="utf-8")
    ours = Tokenizer.load(tmp_path, pattern="gpt2", special_tokens={"<|endoftext|>": 452, "<think>": 455})
    assert ours.special_tokens_set == {"<|endoftext|>", "<think>"}
    ours.save(tmp_path / "again")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == ours.fingerprint
    for text in TEXTS:
        assert ids(ours, text) == ids(again, text) == theirs.encode(text).ids


def test_tokens_that_later_ones_make(tmp_path):
    """A token of lower rank than those that it is made of: every pair that makes it is written."""
    draw = random.Random(0)
    for _ in range(20):
        alphabet = [bytes([byte]) for byte in range(256)]
        words = {bytes(draw.choices(b"abc", k=draw.randint(2, 6))) for _ in range(25)}
        tokens = draw.sample(sorted(words), len(words))
        ranks = {token: rank for rank, token in enumerate([*alphabet, *tokens])}
        ours = Tokenizer("shuffled", pat_str=patterns.GPT2, mergeable_ranks=ranks, special_tokens={})
        ours.save(tmp_path)
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        again = Tokenizer.load(tmp_path)
        for _ in range(40):
            text = "".join(draw.choices("abc ", weights=(4, 4, 4, 1), k=40))
            assert theirs.encode(text).ids == ours.encode(text) == again.encode(text)


# ---- Patterns by meaning


@pytest.mark.parametrize(
    ("spelling", "pattern"),
    [
        (patterns.LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)"), patterns.LLAMA3),
        (
            patterns.LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'(?i:ll|re|ve|[mtds]))"),
            patterns.LLAMA3,
        ),
        (patterns.LLAMA3.replace(r"\r", "\r").replace(r"\n", "\n"), patterns.LLAMA3),
        (patterns.QWEN2.replace(r"[^\r\n\p{L}\p{N}]", r"[^\p{N}\n\r\p{Letter}]"), patterns.QWEN2),
        (patterns.O200K.replace(r"\p{N}{1,3}", r"[\p{N}]{1,3}"), patterns.O200K),
        (patterns.GPT2_AS_PUBLISHED.replace("'s|'t", "'t|'s"), patterns.GPT2_AS_PUBLISHED),
    ],
)
def test_spellings_of_a_pattern(spelling, pattern, tmp_path):
    file = json.loads(published_like("gpt2"))
    step = {"type": "Split", "pattern": {"Regex": spelling}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, last]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    ours = Tokenizer.load(tmp_path)
    assert patterns.NATIVE[ours._pat_str] == patterns.NATIVE[pattern]
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert all(ids(ours, text) == theirs.encode(text).ids for text in TEXTS)


@pytest.mark.parametrize(
    "expression",
    [
        r"\p{N}{1,3}+",
        "a$",
        "^a",
        r"\w+",
        "(?i:ss)",
        r"[a&&b]",
        "(a)\\1",
        "(?i)a",
        "(?<x>a)",
        r"\h",
        "(?:a|ab)\\b",
    ],
)
def test_what_the_two_libraries_read_otherwise_goes_to_theirs(expression, tmp_path):
    assert not expressions.is_portable(expression)
    try:
        step = pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    except Exception:  # not an expression to Oniguruma either
        return
    check_split(step, tmp_path)


@pytest.mark.parametrize("expression", ["", "x|", "(a|)", "a(|b)", r"\w*", "(?=b)", "b?|a", "(?:)+"])
@pytest.mark.parametrize("behavior", ["isolated", "removed", "merged_with_next"])
def test_expressions_that_match_the_empty_text(expression, behavior, tmp_path):
    """Trap: where an expression matches the empty text, the character behind belongs to no piece and is lost."""
    check_split(pre_tokenizers.Split(tokenizers.Regex(expression), behavior), tmp_path)


def check_split(step, tmp_path):
    theirs = tokenizers.Tokenizer.from_str(published_like("gpt2"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([step, byte_level])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    for text in (*TEXTS, "1234567 ß SS a\na aa\n", "aaab&&ab"):
        assert ids(ours, text) == theirs.encode(text).ids


def test_a_pattern_spelled_otherwise_is_the_same_tokenizer(tmp_path):
    spelled = patterns.QWEN2.replace(r"[^\r\n\p{L}\p{N}]", r"[^\p{N}\n\r\p{L}]")
    ours = Tokenizer.train([TEXT * 3], 300, pattern=spelled)
    ours.save(tmp_path)
    assert ours._pat_str == patterns.QWEN2
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
