"""Training: equal to the naive definition in plain Python, and to Hugging Face's trainer, whatever the route."""

import inspect
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_data
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from llmfast import _bpe
from llmfast.tokenizer import Tokenizer, patterns, teaching
from llmfast.tokenizer.training import GPT2_BYTE_ORDER, PATTERNS

CODE = "\n".join(inspect.getsource(module) for module in (inspect, random, threading))
TRICKY = (
    "Don't  stop!\n\n\n  THE END\t\t… naïve café 12345 ½\r\n  x = y*2 // z;\u00a0\u3000 日本語のテキスト 한국어 مرحبا "
    "👩‍👩‍👧 e\u0301\n/path//to a b c  \n \n\nend   "
)
BYTE_ORDERS = {"bytes": range(256), "smallest_ids": range(256), "huggingface": GPT2_BYTE_ORDER}


def naive_tokens(documents, n_merges, tie_break="bytes", min_frequency=1):
    """The merged tokens by the definition, in order."""
    order = "bytes" if tie_break == "bytes" else "smallest_ids"
    byte_order = BYTE_ORDERS[tie_break]
    words = teaching.count_words(documents)
    merges = teaching.learn_merges(words, n_merges, order, min_frequency, byte_order)
    tokens = [bytes([byte]) for byte in byte_order]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def trained_tokens(source, vocab_size, **options):
    tokenizer = Tokenizer.train(source, vocab_size, **{"special_tokens": (), **options})
    return sorted(tokenizer._mergeable_ranks, key=tokenizer._mergeable_ranks.__getitem__)


# ---- Equal to the definition


@settings(max_examples=150, deadline=None)
@given(
    # Few letters, so that pairs tie, overlap (aaa) and neighbour each other (abab) all the time.
    st.lists(st.text(alphabet=st.sampled_from("aab é\n"), max_size=40), min_size=1, max_size=6),
    st.sampled_from(["bytes", "smallest_ids", "huggingface"]),
    st.integers(1, 3),
)
def test_equals_the_naive_definition(documents, tie_break, min_frequency):
    tokens = naive_tokens(documents, 25, tie_break, min_frequency)
    options = {"pattern": "gpt2", "tie_break": tie_break, "min_frequency": min_frequency}
    if any(documents):
        assert trained_tokens(documents, len(tokens), **options) == tokens
    if any(documents) and len(tokens) < 256 + 25:  # the corpus is exhausted, and training says so
        with pytest.raises(ValueError, match=rf"only {len(tokens) - 256} were possible"):
            trained_tokens(documents, len(tokens) + 1, **options)


@pytest.mark.parametrize("tie_break", BYTE_ORDERS)
def test_equals_the_naive_definition_on_code(tie_break):
    text = CODE[:30_000] + TRICKY
    tokens = naive_tokens([text], 200, tie_break)
    assert trained_tokens([text], len(tokens), pattern="gpt2", tie_break=tie_break) == tokens


def test_counts_beyond_32_bits():
    words = {b"abab": 2**40 + 1, b"ba": 2**40, b"abc": 5, b"bc": 2**32 - 1, b"cb": 2**32, b"x" * 40: 2**33}
    corpus = _bpe.Corpus("none", [], 1)
    corpus.add_words(words)
    merges = corpus.learn_merges(12, 1, _bpe.TieBreak.greatest_bytes, bytes(range(256)), None)
    assert merges == teaching.learn_merges(words, 12)
    assert len(merges) == 12


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pairs_too_rare_to_be_kept_at_first_are_found_again(threads):
    """Heavy words raise the count that a pair is thought to need; then only rare ones are left."""
    rng = random.Random(2)
    words = {bytes(rng.choices(b"abcd", k=rng.randint(2, 12))): rng.randint(1, 400) for _ in range(600)}
    words |= {b"xyxyxz": 2**45, b"yyyyyyyy": 2**33}
    for order in (_bpe.TieBreak.greatest_bytes, _bpe.TieBreak.smallest_ids):
        corpus = _bpe.Corpus("none", [], threads)
        corpus.add_words(words)
        merges = corpus.learn_merges(60, 2, order, bytes(range(256)), None)
        name = "bytes" if order == _bpe.TieBreak.greatest_bytes else "smallest_ids"
        assert merges == teaching.learn_merges(words, 60, name, 2)
        assert len(merges) == 60


# ---- Equal to Hugging Face


def hugging_face_tokens(documents, vocab_size, split=None, min_frequency=2):
    tokenizer = HuggingFaceTokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    steps = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


@pytest.mark.parametrize(("pattern", "split"), [("gpt2", None), ("llama3", patterns.LLAMA3)])
@pytest.mark.parametrize("text", [CODE, TRICKY * 3], ids=["code", "tricky"])
def test_equals_hugging_faces_trainer(text, pattern, split):
    from llmfast.tokenizer.huggingface.byte_text import token_text

    documents = text.split("\n\n")
    theirs = hugging_face_tokens(documents, 1500, split)
    ours = trained_tokens(documents, len(theirs), pattern=pattern, tie_break="huggingface")
    assert list(map(token_text, ours)) == theirs


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "multilingual.txt"])
def test_equals_hugging_faces_trainer_on_real_text(name):
    from llmfast.tokenizer.huggingface.byte_text import token_text

    documents = shared_data(f"text/{name}").read_text("utf-8")[:600_000].split("\n\n")
    theirs = hugging_face_tokens(documents, 4000)
    ours = trained_tokens(documents, 4000, pattern="gpt2", tie_break="huggingface")
    assert list(map(token_text, ours)) == theirs


# ---- The same by every route


@pytest.fixture(scope="module")
def long_text():
    """Over 5 MB, so that files are read in several blocks, with white space of all kinds around the cuts."""
    rng = random.Random(0)
    paragraphs = (CODE + TRICKY).split("\n")
    return "\n".join(rng.choice(paragraphs) + " " * rng.randrange(4) for _ in range(150_000))


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "qwen2"])
def test_native_patterns_count_what_their_expressions_match(pattern, long_text):
    text = long_text[:400_000]
    expression = f"(?:{PATTERNS[pattern]})"  # the same in parentheses: not a pattern that the engine knows
    assert trained_tokens([text], 700, pattern=pattern) == trained_tokens([text], 700, pattern=expression)


def test_files_documents_and_threads_give_the_same(long_text, tmp_path):
    half = long_text.index("\n", len(long_text) // 2)
    parts = [long_text[:half], long_text[half:]]
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, part in zip(files, parts, strict=True):
        file.write_text(part, "utf-8", newline="")
    expected = trained_tokens(parts, 1000, num_threads=1)
    for threads in (1, 2, 5):
        assert trained_tokens(files, 1000, num_threads=threads) == expected
        assert trained_tokens(iter(parts), 1000, num_threads=threads) == expected
    assert trained_tokens((part.encode() for part in parts), 1000) == expected


@pytest.mark.parametrize("tie_break", BYTE_ORDERS)
def test_threads_share_the_merging_of_pairs_in_many_words(tie_break):
    # Thousands of different words of few letters: long lists of places, runs, and neighbours that are merged as well.
    rng = random.Random(1)
    words = {"".join(rng.choices("aabc", k=rng.randint(1, 14))) for _ in range(12_000)}
    text = " ".join(sorted(words))
    tokens = naive_tokens([text], 25, tie_break)
    for threads in (1, 2, 3):
        assert trained_tokens([text], len(tokens), pattern="gpt2", tie_break=tie_break, num_threads=threads) == tokens
    more = [trained_tokens([text], 650, tie_break=tie_break, num_threads=threads) for threads in (1, 2, 3)]
    assert more[0] == more[1] == more[2]


def test_one_file_may_be_given_as_str(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(CODE)
    assert trained_tokens(str(file), 600) == trained_tokens([CODE], 600)


def test_columns_of_datasets():
    datasets = pytest.importorskip("datasets")
    paragraphs = CODE.split("\n\n")
    expected = trained_tokens(paragraphs, 600)
    table = datasets.Dataset.from_dict({"text": paragraphs, "n": list(range(len(paragraphs)))})
    assert trained_tokens(table["text"], 600) == expected
    assert trained_tokens((row["text"] for row in table.to_iterable_dataset()), 600) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory that is kept")
def test_files_larger_than_memory(tmp_path):
    """200 MB of text in files, where the process may take 100 MB more than it has: read in blocks, never whole."""
    block = (CODE + TRICKY) * 20
    files = [tmp_path / f"{i}.txt" for i in range(2)]
    for file in files:
        with open(file, "w", encoding="utf-8", newline="") as out:
            for _ in range(100_000_000 // len(block.encode())):
                out.write(block)
    program = f"""
import resource
from pathlib import Path
from llmfast.tokenizer import Tokenizer
Tokenizer.train(["warm up"] * 3, 258, num_threads=2)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 100_000_000,) * 2)
print(Tokenizer.train([Path(file) for file in {list(map(str, files))}], 2000, num_threads=2).fingerprint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 65


def words_of(text, separators, threads=2, pattern="cl100k", file=None):
    corpus = _bpe.Corpus(pattern, [separator.encode() for separator in separators], threads)
    if file is None:
        corpus.add_documents([text])
    else:
        file.write_text(text, "utf-8", newline="")
        corpus.add_file(str(file), None)
    return dict(corpus.words())


@pytest.mark.parametrize("separator", ["<|endoftext|>", "a b c d e f g", " x\ny"])
def test_special_tokens_end_documents_wherever_a_block_is_cut(separator, tmp_path):
    # Documents of one letter around separators that hold "certain" places to cut themselves.
    text = "".join(f"q{separator}" * 37 + "w " for _ in range(3_000_000 // (38 * len(separator))))
    words = words_of(text, [separator], file=tmp_path / "text.txt")
    assert words == words_of(text, [separator], threads=1)
    assert set(words) == {b"q", b"w", b" q", b" "}
    assert words[b" "] == 1  # the end of the text
    assert words[b"q"] + words[b" q"] == text.count(f"q{separator}")


def test_overlapping_special_tokens_longest_first():
    words = words_of("x<|a|>y<|a|><|b|>z", ["<|a|>", "<|a|><|b|>"])
    assert words == {b"x": 1, b"y": 1, b"z": 1}


def test_special_tokens_are_not_learned():
    text = "some words<|endoftext|>" * 50
    assert any(b"<|" in token for token in trained_tokens([text], 256 + 18))
    tokenizer = Tokenizer.train([text], 256 + 7 + 1, special_tokens=("<|endoftext|>",))
    assert not any(b"<|" in token for token in tokenizer.token_byte_values())
    assert tokenizer.encode("<|endoftext|>", allowed_special="all") == [263] == [tokenizer.eot_token]


def test_a_pattern_of_ones_own():
    tokens = trained_tokens(["ab-ab-ab-cd-cd"], 256 + 2, pattern=r"[a-z]+")
    assert tokens[256:] == [b"ab", b"cd"]


def test_what_a_pattern_does_not_match_is_a_word_too():
    text = "ab, ab, ab,  cd! " * 9
    tokenizer = Tokenizer.train([text], 256 + 5, pattern=r"[a-z]+", special_tokens=())
    assert {b"ab", b", "} < set(tokenizer.token_byte_values())
    assert tokenizer.decode(tokenizer.encode(text + "Ü")) == text + "Ü"


def test_no_splitting_at_all():
    tokenizer = Tokenizer.train(["to be or not to be or"], 256 + 7, pattern="none", special_tokens=())
    assert b"to be or" in tokenizer.token_byte_values()
    assert tokenizer.decode(tokenizer.encode("to be or")) == "to be or"


def test_lone_surrogates_count_as_the_replacement_character():
    assert trained_tokens(["\ud800x" * 9], 259) == trained_tokens(["\ufffdx" * 9], 259)
    pattern = r"\S+"
    with_regex = trained_tokens(["\ud800x" * 9], 259, pattern=pattern)
    assert with_regex == trained_tokens(["\ufffdx" * 9], 259, pattern=pattern)


def test_bytes_that_are_not_utf8():
    for pattern in ("cl100k", r"\S+"):
        tokens = trained_tokens([b"\xff\xfe" * 20], 257, pattern=pattern)
        assert tokens[256] in (b"\xff\xfe", b"\xfe\xff")


@pytest.mark.parametrize("run", ["a" * 1_000_000, " " * 1_000_000, "ab" * 500_000])
@pytest.mark.parametrize("pattern", ["cl100k", "none"])
def test_long_runs_take_no_time(run, pattern):
    tokens = trained_tokens([run], 256 + 10, pattern=pattern)
    assert len(tokens[-1]) > 500


# ---- Progress, errors


def test_progress_is_reported(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(CODE * 30)
    calls = []
    Tokenizer.train([file], 1000, progress=lambda *call: calls.append(call))
    reading = [call for call in calls if call[0] == "reading"]
    merging = [call for call in calls if call[0] == "merging"]
    assert reading[-1][2] == file.stat().st_size
    assert merging[0] == ("merging", 0, 743)
    assert [done for _, done, _ in merging] == sorted(done for _, done, _ in merging)


def test_an_exception_in_progress_stops_training():
    def stop(stage, done, total):
        raise InterruptedError(stage)

    with pytest.raises(InterruptedError, match="merging"):
        Tokenizer.train([CODE], 1000, progress=lambda *call: stop(*call) if call[0] == "merging" else None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 256}, "at least 257, for 256 bytes and 1 special tokens; got 256"),
        ({"vocab_size": 100_000}, r"99743 merges are needed, but only \d+ were possible"),
        ({"source": []}, "no text"),
        ({"source": ["", b""]}, "no text"),
        ({"source": b"bytes"}, "pass it in a list"),
        ({"source": [Path(__file__).parent]}, "is not a file"),
        ({"source": [__file__]}, "is the name of a file, but a str is text"),
        ({"special_tokens": ["<a>", "<a>"]}, "duplicates"),
        ({"special_tokens": [""]}, "non-empty"),
        ({"special_tokens": "<a>"}, "special_tokens is one str, '<a>'; put it in a list"),
        ({"special_tokens": ["x"]}, "'x' is a token of ordinary text"),
        ({"pattern": "cl100"}, "no pattern is named 'cl100'"),
        ({"pattern": r"(.)\1"}, "refers back to a group"),
        ({"pattern": "("}, r"the splitting pattern '\(' is no regular expression"),
        ({"pattern": ""}, "the splitting pattern is empty"),
        # Trap: where a pattern matches the empty text, the character behind belongs to no piece and is lost.
        *(
            ({"pattern": pattern}, "matches the empty text, so that characters would be lost")
            for pattern in (r"\w*", "x|", "o?", "(?=o)", r"\b", r"a*?|b", "(?<=e)")
        ),
        ({"tie_break": "random"}, "tie_break must be one of 'bytes', 'huggingface', 'smallest_ids'"),
        ({"min_frequency": 0}, "min_frequency must be at least 1, got 0"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(**{"source": [CODE], "vocab_size": 300, **arguments})


def test_missing_file_and_wrong_types():
    with pytest.raises(FileNotFoundError, match="to train on text itself, pass a list"):
        Tokenizer.train("no/such/file", 300)
    with pytest.raises(TypeError, match="documents must be str or bytes, got int"):
        Tokenizer.train([1], 300)


@pytest.mark.skipif(os.name != "posix", reason="reads a folder as a file")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"cannot read .*missing"):
        _bpe.Corpus("gpt2", [], 2).add_file(str(tmp_path / "missing"), None)


def test_importing_the_tokenizer_does_not_import_torch():
    code = "import sys, llmfast.tokenizer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_text_with_too_few_pairs_gives_what_it_can_if_that_is_allowed():
    """As Hugging Face's trainer does, which says nothing of it; here it is an error unless it is asked for."""
    text = ["low low low lower lower newest newest"]
    with pytest.raises(ValueError, match="allow_smaller=True"):
        Tokenizer.train(text, 1000)
    tokenizer = Tokenizer.train(text, 1000, allow_smaller=True)
    largest = Tokenizer.train(text, tokenizer.n_vocab)
    assert tokenizer.fingerprint == largest.fingerprint
    assert tokenizer.eot_token == tokenizer.n_vocab - 1
    with pytest.raises(ValueError, match="1 tokens fewer"):
        Tokenizer.train(text, tokenizer.n_vocab + 1)
    assert Tokenizer.train(["a"], 1000, allow_smaller=True).n_vocab == 257


@pytest.mark.parametrize("pattern", ["cl100k", r"\w+"])
def test_documents_in_lists(pattern):
    """What iterates over batches of a dataset gives lists of texts."""
    documents = ["low low", "lower", b"newest newest", "newest low"]
    expected = Tokenizer.train(documents, 262, pattern=pattern).fingerprint
    for source in (
        [documents[:2], documents[2:]],
        iter([tuple(documents), []]),
        [documents[0], documents[1:]],
    ):
        assert Tokenizer.train(source, 262, pattern=pattern).fingerprint == expected
    with pytest.raises(TypeError, match="documents must be str or bytes, got int"):
        Tokenizer.train([["low low", 3]], 260)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocab_size": 300.5}, TypeError, "vocab_size must be an int, got float"),
        ({"vocab_size": None}, TypeError, "vocab_size must be an int, got NoneType"),
        ({"min_frequency": 0}, ValueError, "min_frequency must be at least 1, got 0"),
        ({"min_frequency": 1.5}, TypeError, "min_frequency must be an int, got float"),
        ({"pattern": None}, TypeError, "pattern must be a str, got NoneType"),
        ({"special_tokens": None}, TypeError, "special_tokens must be a sequence of str, got NoneType"),
        ({"num_threads": 0.5}, TypeError, "num_threads must be an int, got float"),
        ({"source": None}, TypeError, "source must be documents or files, got NoneType"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        Tokenizer.train(**{"source": ["low low low"], "vocab_size": 258} | options)
