"""transformers' tokenizers with our engine inside: the results of transformers' own, whatever is asked for."""

import copy
import functools
import gc
import pickle
import random
import weakref

import pytest
import tokenizers
import torch
from shared_data import shared_data
from tokenizers import AddedToken, pre_tokenizers, processors

from llmfast.tokenizer import Tokenizer, get_encoding, speed_up
from llmfast.tokenizer.transformers_backend import is_sped_up

transformers = pytest.importorskip("transformers")

TEXT = "the cat sat on the mat, and the dog's naïve café 日本語 12345 🙂👩‍👩‍👧\n\n  def main():\n\treturn 'x' ½ "
WORDS = [
    *TEXT.split(" "),
    " ",
    "  ",
    "\n",
    "<|endoftext|>",
    "<|im_start|>",
    "<tool>",
    "<pad>",
    " <mask> ",
    "e\u0301",
    "ﬁ",
]
CHAT = [
    {"role": "system", "content": "You are a cat."},
    {"role": "user", "content": "the mat <|im_start|>?"},
    {"role": "assistant", "content": "sat on"},
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts(seed: int, count: int = 40) -> list[str]:
    draw = random.Random(seed)
    return ["", "a", TEXT, *(" ".join(draw.choices(WORDS, k=draw.randint(0, 60))) for _ in range(count))]


@functools.cache
def file(family: str) -> str:
    """A tokenizer.json like those that the family publishes."""
    patterns = {"gpt2": "gpt2", "llama3": "llama3", "qwen": "qwen2"}
    trained = Tokenizer.train([TEXT * 20], 320, pattern=patterns[family], special_tokens=("<|endoftext|>",))
    theirs = tokenizers.Tokenizer.from_str(trained._to_json())
    theirs.add_special_tokens(["<|im_start|>", "<pad>", AddedToken("<mask>", lstrip=True, special=True)])
    theirs.add_tokens([AddedToken("<tool>", normalized=False)])
    if family == "gpt2":
        theirs.post_processor = processors.ByteLevel(trim_offsets=False)
    if family == "llama3":  # a token before each text, and one behind pairs
        start = ("<|im_start|>", theirs.token_to_id("<|im_start|>"))
        end = ("<|endoftext|>", theirs.token_to_id("<|endoftext|>"))
        template = processors.TemplateProcessing(
            single=f"{start[0]}:1 $A:3 {end[0]}:2", pair="$A $B:1", special_tokens=[start, end]
        )
        theirs.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    if family == "qwen":
        theirs.normalizer = tokenizers.normalizers.NFC()
    return theirs.to_str()


def pair_of(family: str, **options):
    """A tokenizer of transformers, and the same with our engine."""

    def made():
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(file(family)),
            **{
                "eos_token": "<|endoftext|>",
                "pad_token": "<pad>",
                "chat_template": TEMPLATE,
                "model_max_length": 1000,
                "clean_up_tokenization_spaces": False,
            }
            | options,
        )

    return speed_up(made()), made()


def counted(monkeypatch, tokenizer):
    """The names of the methods of Hugging Face's library that the engine calls from now on."""
    calls = []
    backend = tokenizer.backend_tokenizer.llmfast
    original = type(backend).original
    monkeypatch.setattr(type(backend), "original", lambda self, name: calls.append(name) or original(self, name))
    return calls


FAMILIES = ["gpt2", "llama3", "qwen"]
CALLS = {
    "plain": {},
    "no specials": {"add_special_tokens": False, "return_token_type_ids": True},
    "padded": {"padding": True},
    "to a length": {"padding": "max_length", "max_length": 70},
    "to a multiple": {"padding": True, "pad_to_multiple_of": 16},
    "to the left": {"padding": True, "padding_side": "left"},
    "cut": {"truncation": True, "max_length": 9},
    "cut and padded": {"truncation": True, "padding": "max_length", "max_length": 12, "return_tensors": "pt"},
    "to nothing": {"truncation": True, "max_length": 1},
    "overflowing": {"truncation": True, "max_length": 9, "stride": 2, "return_overflowing_tokens": True},
    "tensors": {"padding": True, "return_tensors": "np"},
    "offsets": {"return_offsets_mapping": True},
    "offsets, padded": {
        "return_offsets_mapping": True,
        "padding": True,
        "truncation": True,
        "max_length": 20,
    },
    "everything": {
        "return_special_tokens_mask": True,
        "return_token_type_ids": True,
        "return_length": True,
        "padding": True,
    },
    "no mask": {"return_attention_mask": False},
    "specials as text": {"split_special_tokens": True},
}


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    for name in theirs:
        if isinstance(theirs[name], torch.Tensor):
            assert torch.equal(ours[name], theirs[name])
        elif hasattr(theirs[name], "tolist"):
            assert ours[name].tolist() == theirs[name].tolist()
        else:
            assert ours[name] == theirs[name], name


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_calls(family, options):
    ours, theirs = pair_of(family)
    assert_same(ours(texts(1), **options), theirs(texts(1), **options))
    for text in texts(2, count=8):
        assert_same(ours(text, **options), theirs(text, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_and_words(family):
    ours, theirs = pair_of(family)
    one, other = texts(3), texts(4)
    assert_same(ours(one, other, padding=True), theirs(one, other, padding=True))
    words = [text.split(" ") for text in one[1:]]
    assert_same(ours(words, is_split_into_words=True), theirs(words, is_split_into_words=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_from_characters_to_tokens_and_back(family):
    """These are asked of what was encoded before, when the tokenizer may have been used otherwise since."""
    ours, theirs = pair_of(family)
    ours_encoded, theirs_encoded = (
        tokenizer([TEXT, "the cat"], padding="max_length", truncation=True, max_length=12)
        for tokenizer in (ours, theirs)
    )
    ours("the dog", padding="max_length", max_length=7)
    for i in range(2):
        assert ours_encoded.is_fast
        assert ours_encoded.tokens(i) == theirs_encoded.tokens(i)
        assert ours_encoded.word_ids(i) == theirs_encoded.word_ids(i)
        assert ours_encoded.sequence_ids(i) == theirs_encoded.sequence_ids(i)
        assert ours_encoded[i].ids == theirs_encoded[i].ids
        assert len(ours_encoded[i].overflowing) == len(theirs_encoded[i].overflowing)
        for at in range(7):
            assert ours_encoded.char_to_token(i, at) == theirs_encoded.char_to_token(i, at)
            assert ours_encoded.token_to_chars(i, at) == theirs_encoded.token_to_chars(i, at)
    again = pickle.loads(pickle.dumps(ours_encoded))
    assert again.tokens(0) == theirs_encoded.tokens(0)
    assert copy.deepcopy(ours_encoded).word_ids(0) == theirs_encoded.word_ids(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding(family):
    ours, theirs = pair_of(family)
    draw = random.Random(5)
    for _ in range(60):
        ids = draw.choices([*range(len(theirs)), 5000], k=draw.randint(0, 30))
        for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
            assert ours.decode(ids, **options) == theirs.decode(ids, **options)
            assert ours.batch_decode([ids, ids[:3]], **options) == theirs.batch_decode([ids, ids[:3]], **options)
    encoded = theirs(texts(6), return_tensors="np", padding=True)["input_ids"]
    assert ours.batch_decode(encoded, skip_special_tokens=True) == theirs.batch_decode(
        encoded, skip_special_tokens=True
    )
    assert ours.decode(7) == theirs.decode(7)
    assert ours.convert_ids_to_tokens([1, 300]) == theirs.convert_ids_to_tokens([1, 300])
    assert ours.tokenize(TEXT) == theirs.tokenize(TEXT)


@pytest.mark.parametrize("family", FAMILIES)
def test_chats(family):
    ours, theirs = pair_of(family)
    for options in (
        {"tokenize": False},
        {"tokenize": True, "return_dict": False},
        {"add_generation_prompt": True, "return_dict": True},
        {"return_tensors": "pt", "return_dict": True, "padding": True},
    ):
        assert_equal = ours.apply_chat_template(CHAT, **options), theirs.apply_chat_template(CHAT, **options)
        if options.get("return_dict"):
            assert_same(*assert_equal)
        else:
            assert assert_equal[0] == assert_equal[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_files(family, tmp_path):
    """What is saved is what transformers saves, and loads there and here."""
    ours, theirs = pair_of(family)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert_same(speed_up(loaded)(texts(7)), theirs(texts(7)))
    assert is_sped_up(loaded)
    assert not is_sped_up(theirs)
    direct = Tokenizer.load(tmp_path / "ours")
    for text in texts(8):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert direct.encode(text, allowed_special="all") == expected


def test_tokens_that_are_added_later():
    ours, theirs = pair_of("gpt2")
    for tokenizer in (ours, theirs):
        assert tokenizer(TEXT)["input_ids"]
        assert tokenizer.add_tokens(["café", AddedToken(" the", single_word=True)]) == 2
        assert tokenizer.add_special_tokens({"bos_token": "<s>"}) == 1
        tokenizer.add_bos_token = True
        tokenizer.update_post_processor()
    text = f"<s>{TEXT}the them <s>"
    assert_same(ours(text), theirs(text))
    assert ours(text)["input_ids"][:2] == [ours.bos_token_id] * 2
    ids = theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)  # "é" in an added token is taken for a byte there


def test_copies_and_collators():
    ours, theirs = pair_of("llama3")
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert is_sped_up(twin)
        assert_same(twin(texts(9), padding=True), theirs(texts(9), padding=True))
    batches = []
    for tokenizer in (ours, theirs):
        torch.manual_seed(0)
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=8)
        batches.append(collator([tokenizer(text) for text in texts(10)]))
    assert_same(*batches)


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_published_vocabularies(name, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
    ours = Tokenizer.of(get_encoding(name)).to_transformers(pad_token="<|endoftext|>", padding_side="left")
    text = shared_data("text/multilingual.txt").read_text("utf-8")[:100_000]
    assert ours(text)["input_ids"] == get_encoding(name).encode(text, disallowed_special=())
    assert ours.decode(ours(text)["input_ids"]) == text
    assert ours(["a", TEXT], padding=True)["input_ids"][0][0] == ours.pad_token_id == ours.eos_token_id


def test_what_is_not_byte_level_is_refused():
    other = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    stock = transformers.PreTrainedTokenizerFast(tokenizer_object=other)
    with pytest.raises(ValueError, match="its model is 'WordPiece', not byte-level 'BPE'"):
        speed_up(stock)
    assert stock("a")["input_ids"] == [1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_decode_stream_takes_the_tokenizer(family, skip_special_tokens):
    """Trap: Hugging Face's function takes an object of its own class only."""
    ours, theirs = pair_of(family)
    ids = theirs(f"{TEXT}<|endoftext|>naïve 日本語🙂")["input_ids"]
    steps = []
    for tokenizer in (ours, theirs):
        stream = tokenizers.decoders.DecodeStream(skip_special_tokens=skip_special_tokens)
        steps.append([stream.step(tokenizer.backend_tokenizer, token) for token in ids])
    assert steps[0] == steps[1]
    assert isinstance(ours.backend_tokenizer, tokenizers.Tokenizer)


TRIMMING = {
    "trimmed": processors.ByteLevel(trim_offsets=True, add_prefix_space=False),
    "trimmed, prefix": processors.ByteLevel(trim_offsets=True, add_prefix_space=True),
    "untrimmed": processors.ByteLevel(trim_offsets=False),
    "none": None,
}


@pytest.mark.parametrize("trimming", TRIMMING)
@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_are_ours(family, trimming, monkeypatch):
    """Of all options; Hugging Face's library is not asked for them."""
    ours, theirs = pair_of(family)
    if TRIMMING[trimming] is not None:
        for tokenizer in (ours, theirs):
            tokenizer.backend_tokenizer.post_processor = TRIMMING[trimming]
    calls = counted(monkeypatch, ours)
    for options in (
        {},
        {"padding": True},
        {"truncation": True, "max_length": 9, "padding": True, "padding_side": "left"},
        {"split_special_tokens": True},
        {"add_special_tokens": False},
    ):
        options = {"return_offsets_mapping": True} | options
        assert_same(ours(texts(11, count=20), **options), theirs(texts(11, count=20), **options))
    assert calls == []
    ours.truncation_side = theirs.truncation_side = "left"
    options = {"return_offsets_mapping": True, "truncation": True, "max_length": 9}
    assert_same(ours(texts(12), **options), theirs(texts(12), **options))


def test_offsets_are_those_of_the_tokenizer_that_encoded():
    """Trap: a token that was added since would be found in the text."""
    ours, theirs = pair_of("gpt2")
    encoded = [tokenizer("the cat sat")[0] for tokenizer in (ours, theirs)]
    ours.add_tokens(["cat"])
    assert encoded[0].offsets == encoded[1].offsets


def test_parts_that_are_replaced_or_changed():
    """Trap: the parts of the tokenizer are set past the engine, which has to notice."""
    ours, theirs = pair_of("gpt2")
    changes = [
        lambda backend: setattr(backend, "normalizer", tokenizers.normalizers.NFC()),
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda backend: setattr(backend.pre_tokenizer, "add_prefix_space", False),
        lambda backend: setattr(backend, "post_processor", processors.ByteLevel(trim_offsets=True)),
        lambda backend: backend.add_tokens([AddedToken("café", normalized=False)]),
    ]
    for change in changes:
        for tokenizer in (ours, theirs):
            change(tokenizer.backend_tokenizer)
        assert_same(ours(texts(13), padding=True), theirs(texts(13), padding=True))


def test_a_tokenizer_that_is_sped_up_is_let_go():
    """Trap: the tokenizer and its engine name each other."""
    ours, _ = pair_of("gpt2")
    alive = weakref.ref(ours.backend_tokenizer)
    del ours
    gc.collect()
    assert alive() is None
