"""Published encodings without a network: what an error says is enough to go and fetch the file elsewhere."""

import hashlib

import pytest

import llmfast.tokenizer as ours
from llmfast.tokenizer import registry

RANKS = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and no network."""

    def refused(address):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("tiktoken.load.read_file", refused)
    monkeypatch.setattr(registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("name", "address"), [("cl100k_base", RANKS), ("gpt2", MERGES)])
@pytest.mark.parametrize("open_it", [ours.get_encoding, ours.open_tokenizer])
def test_the_error_says_which_file_belongs_where(name, address, open_it, offline):
    with pytest.raises(ConnectionError) as refused:
        open_it(name)
    file = offline / hashlib.sha1(address.encode()).hexdigest()
    assert str(refused.value) == (
        "the tokens of this encoding could not be downloaded (no route to host). To use it without a network, download "
        f"them elsewhere: save {address} as {file}. Another folder can be named by TIKTOKEN_CACHE_DIR."
    )


def test_a_cache_that_is_switched_off_is_told(offline, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    name = hashlib.sha1(RANKS.encode()).hexdigest()
    with pytest.raises(ConnectionError, match=f"set TIKTOKEN_CACHE_DIR to a folder, and in it save {RANKS} as {name}"):
        ours.get_encoding("cl100k_base")


def test_a_fault_of_the_disk_is_not_told_as_one_of_the_network(offline, monkeypatch):
    def full(address):
        raise PermissionError(13, "Permission denied", str(offline))

    monkeypatch.setattr("tiktoken.load.read_file", full)
    with pytest.raises(PermissionError) as refused:
        ours.get_encoding("cl100k_base")
    assert "downloaded" not in str(refused.value)
