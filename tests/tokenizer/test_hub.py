"""`Tokenizer.from_pretrained`, on a cache of the hub that the tests lay out: no network."""

import shutil

import pytest
from offline import refuse_network

from llmfast.tokenizer import Tokenizer

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tokenizer():
    return Tokenizer.train(["low low low lower newest newest"], 262)


@pytest.fixture
def cache(tmp_path, tokenizer):
    """A cache as huggingface_hub keeps it, with one model."""
    model = tmp_path / "models--someone--small"
    tokenizer.save(model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return tmp_path


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    refuse_network(monkeypatch)


def test_a_name_is_read_from_the_cache(cache, tokenizer):
    for options in ({}, {"revision": "main"}, {"revision": COMMIT}):
        loaded = Tokenizer.from_pretrained("someone/small", cache_dir=cache, local_files_only=True, **options)
        assert loaded.fingerprint == tokenizer.fingerprint


def test_options_of_load_are_passed_on(cache):
    loaded = Tokenizer.from_pretrained(
        "someone/small", cache_dir=cache, local_files_only=True, special_tokens={"<|pad|>": 261}
    )
    assert loaded.special_tokens_set == {"<|pad|>"}


def test_a_folder_or_file_needs_no_hub(tmp_path, tokenizer, monkeypatch):
    tokenizer.save(tmp_path / "folder")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for path in (tmp_path / "folder", str(tmp_path / "folder"), tmp_path / "folder" / "tokenizer.json"):
        assert Tokenizer.from_pretrained(path).fingerprint == tokenizer.fingerprint
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'llmfast\[hf\]'"):
        Tokenizer.from_pretrained("someone/small")


def test_what_is_not_cached_is_said_in_a_sentence(cache):
    with pytest.raises(OSError, match=r"'someone/other' is not in the cache .* local_files_only is set; fetch it once"):
        Tokenizer.from_pretrained("someone/other", cache_dir=cache, local_files_only=True)
    with pytest.raises(OSError, match=r"'someone/other' is not in the cache .* the hub was not reached"):
        Tokenizer.from_pretrained("someone/other", cache_dir=cache, token=False)


def test_a_model_without_a_tokenizer_is_named(cache):
    snapshot = cache / "models--someone--small" / "snapshots" / COMMIT
    shutil.rmtree(snapshot)
    snapshot.mkdir()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        Tokenizer.from_pretrained("someone/small", cache_dir=cache, local_files_only=True)


def test_what_is_no_name_is_refused():
    with pytest.raises(TypeError, match="name must be the name of a model or a path, got NoneType"):
        Tokenizer.from_pretrained(None)
    with pytest.raises(ValueError, match="neither a path here nor the name of a model"):
        Tokenizer.from_pretrained("no such/folder/at all")
