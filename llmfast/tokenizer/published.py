"""The rank files of published encodings, found and checked by tiktoken, parsed by the engine."""

from __future__ import annotations

import hashlib
import os
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tiktoken import load

from llmfast import _bpe
from llmfast.tokenizer.formats.rank_files import RankFile

Constructor = Callable[[], dict[str, Any]]

_CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # those of tiktoken, in its order

# GPT-2 writes bytes as visible characters: these stand for themselves, the others follow from U+0100 on.
_VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and byte != 0x20]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_TO_BYTE = {0x100 + i: byte for i, byte in enumerate(_HIDDEN)} | {0x20: None}


@contextmanager
def _telling_how_to_fill_the_cache(*addresses: str) -> Iterator[None]:
    """If a download fails, raises the same exception, with the files that the cache lacks and where they belong."""
    try:
        yield
    except OSError as error:  # which those of `requests` are
        if error.filename is not None:  # a file of this machine, such as a cache that cannot be written
            raise
        cache = next((os.environ[name] for name in _CACHE_VARIABLES if name in os.environ), None)
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache") if cache is None else cache
        files = {address: hashlib.sha1(address.encode()).hexdigest() for address in addresses}
        missing = [
            f"save {address} as {os.path.join(folder, file)}"
            for address, file in files.items()
            if "://" in address and not (folder and os.path.exists(os.path.join(folder, file)))
        ]
        if not missing:
            raise
        setting = "" if folder else "set TIKTOKEN_CACHE_DIR to a folder, and in it "
        raise type(error)(
            f"the tokens of this encoding could not be downloaded ({error}). To use it without a network, download "
            f"them elsewhere: {setting}{' and '.join(missing)}. Another folder can be named by TIKTOKEN_CACHE_DIR."
        ) from error


def load_tiktoken_bpe(tiktoken_bpe_file: str, expected_hash: str | None = None) -> RankFile | dict[bytes, int]:
    """tiktoken's function of that name: the ranks in a file, which is downloaded once and whose hash is checked."""
    with _telling_how_to_fill_the_cache(tiktoken_bpe_file):
        contents = load.read_file_cached(tiktoken_bpe_file, expected_hash)
    if expected_hash is not None:
        return RankFile(contents)
    try:
        return _bpe.parse_ranks(contents)
    except ValueError as fault:
        raise ValueError(f"Error parsing {tiktoken_bpe_file}: {fault}") from None


def data_gym_to_mergeable_bpe_ranks(
    vocab_bpe_file: str,
    encoder_json_file: str,
    vocab_bpe_hash: str | None = None,
    encoder_json_hash: str | None = None,
    clobber_one_byte_tokens: bool = False,
) -> dict[bytes, int]:
    """tiktoken's function of that name: the ranks in GPT-2's merges file.

    The JSON file beside it holds the same information. It is read, so that tiktoken compares the two, only where the
    merges have no hash to check, or where it overrides the tokens of single bytes.
    """
    if vocab_bpe_hash is None or clobber_one_byte_tokens:
        with _telling_how_to_fill_the_cache(vocab_bpe_file, encoder_json_file):
            return load.data_gym_to_mergeable_bpe_ranks(
                vocab_bpe_file, encoder_json_file, vocab_bpe_hash, encoder_json_hash, clobber_one_byte_tokens
            )
    with _telling_how_to_fill_the_cache(vocab_bpe_file):
        contents = load.read_file_cached(vocab_bpe_file, vocab_bpe_hash)
    merges = contents.decode().split("\n")[1:-1]
    tokens = [bytes([byte]) for byte in _VISIBLE + _HIDDEN]
    tokens += [merge.translate(_TO_BYTE).encode("latin-1") for merge in merges]
    return dict(zip(tokens, range(len(tokens)), strict=True))


def with_fast_loaders(constructor: Constructor) -> Constructor:
    """A constructor of `tiktoken_ext` that finds the two functions above where it looks for tiktoken's."""
    ours = {function.__name__: function for function in (load_tiktoken_bpe, data_gym_to_mergeable_bpe_ranks)}
    names = getattr(constructor, "__globals__", {})
    if not any(names.get(name) is getattr(load, name) for name in ours):
        return constructor
    found = {name: function for name, function in ours.items() if names.get(name) is getattr(load, name)}
    replaced: dict[str, Any] = {**names, **found}
    for name, value in names.items():  # one constructor may call another
        if isinstance(value, types.FunctionType) and value.__globals__ is names:
            replaced[name] = types.FunctionType(value.__code__, replaced, name, value.__defaults__, value.__closure__)
    return replaced[constructor.__name__]
