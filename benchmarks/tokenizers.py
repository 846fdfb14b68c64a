"""The tokenizers that take part: ours, tiktoken, and the faster packages that are installed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("LLMFAST_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
RANK_FILES = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
VOCABULARIES = {"gpt2": "r50k_base", "cl100k_base": "cl100k_base", "o200k_base": "o200k_base"}  # -> rank file
DISTRIBUTIONS = {
    "llmfast": "llmfast", "tiktoken": "tiktoken", "fastokens": "fastokens", "gigatoken": "gigatoken",
    "toktok": "toktok-rs", "quicktok": "quicktok-v1", "rs_bpe": "rs-bpe",
}  # fmt: skip


@dataclass(frozen=True)
class Library:
    """What a package offers of each; None where it has nothing of the kind. ``numpy`` takes documents and threads."""

    encode: Callable[[str], Any]
    numpy: Callable[[list[str], int], np.ndarray] | None = None
    lists: Callable[[list[str]], list[list[int]]] | None = None
    decode: Callable[[list[int]], str] | None = None
    decode_bytes: Callable[[list[int]], bytes] | None = None


def rank_file(vocabulary: str) -> Path:
    return DATA / "tiktoken" / hashlib.sha1(RANK_FILES.format(VOCABULARIES[vocabulary]).encode()).hexdigest()


def llmfast(vocabulary: str) -> Library:
    from llmfast.tokenizer import Encoding, get_encoding

    known = get_encoding(vocabulary)
    ours = Encoding(  # of its own: with nothing learnt yet
        vocabulary,
        pat_str=known._pat_str,
        mergeable_ranks=known._mergeable_ranks,
        special_tokens=known._special_tokens,
    )
    return Library(
        ours.encode_ordinary,
        lambda texts, threads: ours.encode_documents(texts, append_eot=False, num_threads=threads)[0],
        lambda texts: [ours.encode_ordinary(text) for text in texts],
        ours.decode,
        ours.decode_bytes,
    )


def tiktoken(vocabulary: str) -> Library:
    import tiktoken

    theirs = tiktoken.get_encoding(vocabulary)

    def to_numpy(texts: list[str], threads: int) -> np.ndarray | None:
        return np.concatenate([theirs.encode_to_numpy(text, disallowed_special=()) for text in texts])

    return Library(
        theirs.encode_ordinary,
        to_numpy,
        lambda texts: [theirs.encode_ordinary(text) for text in texts],
        theirs.decode,
        theirs.decode_bytes,
    )


def fastokens(vocabulary: str) -> Library:
    import fastokens

    from llmfast.tokenizer import patterns

    # It has no preset for gpt2: given the published expression it takes a path that is not its best.
    settings = {"encoding": vocabulary} if vocabulary != "gpt2" else {"pattern": patterns.GPT2_AS_PUBLISHED}
    fast = fastokens.Tokenizer.from_tiktoken(str(rank_file(vocabulary)), **settings)
    return Library(
        lambda text: fast.encode_ordinary(text).ids,
        lambda texts, threads: np.frombuffer(fast.encode_batch_flat(texts)[0], np.uint32),
        lambda texts: [fast.encode_ordinary(text).ids for text in texts],
        fast.decode,
    )


def gigatoken(vocabulary: str) -> Library:
    import awkward  # noqa: F401 (what its arrays are made of)
    import gigatoken

    kind = {"gpt2": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}[vocabulary]
    giga = gigatoken.Tokenizer.from_tiktoken(rank_file(vocabulary), kind)
    return Library(
        lambda text: giga.encode_batch_list([text], parallel=False)[0],
        lambda texts, threads: np.asarray(giga.encode_batch(texts, parallel=threads > 1).layout.content.data),
        lambda texts: giga.encode_batch_list(texts, parallel=False),
    )


def _like_tiktoken(theirs: Any) -> Library:
    """A library whose encodings have tiktoken's methods for one text."""
    return Library(
        theirs.encode_ordinary,
        lists=lambda texts: [theirs.encode_ordinary(text) for text in texts],
        decode=theirs.decode,
        decode_bytes=theirs.decode_bytes,
    )


def toktok(vocabulary: str) -> Library | None:
    import toktok

    if vocabulary == "gpt2":
        return None
    return _like_tiktoken(toktok._encoding(vocabulary))


def quicktok(vocabulary: str) -> Library | None:
    import quicktok

    if vocabulary == "gpt2":
        return None
    return _like_tiktoken(quicktok.get_encoding(vocabulary))


def rs_bpe(vocabulary: str) -> Library | None:
    from rs_bpe import openai

    if vocabulary == "gpt2":
        return None
    theirs = getattr(openai, vocabulary)()
    return Library(
        theirs.encode, lists=lambda texts: [theirs.encode(text) for text in texts], decode=theirs.decode
    )


LIBRARIES = (llmfast, tiktoken, fastokens, gigatoken, toktok, quicktok, rs_bpe)


def libraries(vocabulary: str, what: str) -> Iterator[tuple[str, Library]]:
    """Those that are installed, know the vocabulary and offer it, freshly made."""
    for make in LIBRARIES:
        if importlib.util.find_spec(make.__name__) is None:
            continue
        try:
            library = make(vocabulary)
        except ModuleNotFoundError:
            continue
        if library and getattr(library, what):
            yield make.__name__, library
