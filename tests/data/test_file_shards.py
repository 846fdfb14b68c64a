"""Files straight to token shards: the same tokens however the work is cut up, and whenever it was interrupted."""

import mmap
import random

import pytest

from llmfast.data import file_shards
from llmfast.data.file_shards import encode_files
from llmfast.data.shards import TokenShards
from llmfast.tokenizer import Tokenizer

WORDS = [
    "the",
    " quick",
    " brown",
    "\n",
    "\n\n",
    " 日本語。\n",
    "テスト",
    " 123",
    "!",
    "\r\n",
    "  ",
    "/",
    "é",
]


@pytest.fixture(scope="module", params=["gpt2", "o200k", r"\w+|\W+"])
def tokenizer(request):
    return Tokenizer.train([text_of(0, 4000)], 300, pattern=request.param)


@pytest.fixture
def files(tmp_path):
    """Long, empty and short ones, and one that is not UTF-8 throughout."""
    contents = [
        text_of(1, 3000).encode(),
        b"",
        b"x",
        text_of(2, 500).encode(),
        text_of(3, 2000).encode(),
        b"a\xffb",
    ]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.txt").write_bytes(content)
    return [tmp_path / f"{i}.txt" for i in range(len(contents))]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts and windows that are smaller than a file, and mapped files."""
    monkeypatch.setattr(file_shards, "PART_BYTES", 3000)
    monkeypatch.setattr(file_shards, "WINDOW_BYTES", 700)
    monkeypatch.setattr(file_shards, "MAPPED_BYTES", 100)


def text_of(seed: int, words: int) -> str:
    return "".join(random.Random(seed).choices(WORDS, k=words))


def read_all(folder) -> list[int]:
    shards = TokenShards(folder)
    return shards.read(0, len(shards)).tolist()


def expected_documents(files, tokenizer) -> list[list[int]]:
    texts = [file.read_bytes() for file in files if file.stat().st_size]
    return [tokenizer.encode_documents([text], append_eot=False)[0].tolist() for text in texts]


def test_every_file_is_a_document(files, tokenizer, tmp_path):
    shards = encode_files(files, tmp_path / "out", tokenizer)
    end = tokenizer.eot_token
    assert read_all(tmp_path / "out") == [end] + [
        token for document in expected_documents(files, tokenizer) for token in [*document, end]
    ]
    assert sum(shard.documents for shard in shards) == 5
    assert sum(shard.text_bytes for shard in shards) == sum(file.stat().st_size for file in files)


@pytest.mark.usefixtures("small_parts")
def test_cutting_changes_no_token(files, tokenizer, tmp_path):
    """A window that was cut inside a piece would give other tokens there."""
    shards = encode_files(files, tmp_path / "out", tokenizer)
    end = tokenizer.eot_token
    without_ends = [token for document in expected_documents(files, tokenizer) for token in document]
    assert [token for token in read_all(tmp_path / "out") if token != end] == without_ends
    assert len(shards) > 5
    opened = TokenShards(tmp_path / "out")
    assert opened.text_bytes == sum(file.stat().st_size for file in files)
    assert 5 <= opened.documents == read_all(tmp_path / "out").count(end) - len(shards)


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_run_goes_on_to_the_same_bytes(files, tokenizer, tmp_path):
    encode_files(files, tmp_path / "whole", tokenizer)

    def interrupt(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_files(files, tmp_path / "resumed", tokenizer, progress=interrupt)
    with pytest.raises(ValueError, match="holds no token shards"):
        TokenShards(tmp_path / "resumed")
    first = (tmp_path / "resumed" / "00000" / "00000.bin").stat()
    encode_files(files, tmp_path / "resumed", tokenizer)
    assert (tmp_path / "resumed" / "00000" / "00000.bin").stat() == first  # not made again
    assert read_all(tmp_path / "resumed") == read_all(tmp_path / "whole")
    index = [(tmp_path / folder / "index.json").read_text() for folder in ("resumed", "whole")]
    assert index[0] == index[1]


def test_shards_of_something_else_are_left_alone(files, tokenizer, tmp_path):
    encode_files(files, tmp_path / "out", tokenizer)
    before = read_all(tmp_path / "out")
    other = Tokenizer.train([text_of(9, 4000)], 290)
    for other_files, other_tokenizer in ((files[:2], tokenizer), (files, other)):
        with pytest.raises(ValueError, match="holds shards of other files"):
            encode_files(other_files, tmp_path / "out", other_tokenizer)
    files[0].write_bytes(b"changed")
    with pytest.raises(ValueError, match="that have changed since"):
        encode_files(files, tmp_path / "out", tokenizer)
    assert read_all(tmp_path / "out") == before


def test_bad_input(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no text to encode"):
        encode_files([], tmp_path / "out", tokenizer)
    (tmp_path / "a").write_text("a")
    without_end = Tokenizer.train(["aaa"], 257, special_tokens=())
    with pytest.raises(ValueError, match="no token to end documents with"):
        encode_files([tmp_path / "a"], tmp_path / "out", without_end)
    assert not (tmp_path / "out").exists()


def test_a_memory_map_is_encoded_where_it_is(tokenizer, files):
    with open(files[0], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        ids, _ = tokenizer.encode_documents([mapped, memoryview(mapped)[:0]], append_eot=False)
    assert ids.tolist() == expected_documents(files[:1], tokenizer)[0]
