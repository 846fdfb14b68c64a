"""The tokenizers that take part: ours, tiktoken, Hugging Face's, and the faster packages that are installed.

They read the rank files of gpt2, cl100k_base and o200k_base that lie in ``LLMFAST_TEST_DATA/tiktoken``. Where these are
missing, all that can be given a vocabulary of one's own take one that is trained on Python's standard library.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .texts import DATA, code

# Before the libraries are imported: measured is one thread, and nothing is loaded from elsewhere.
os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")  # where it takes two threads otherwise

RANK_FILES = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
PUBLISHED = {"gpt2": "r50k_base", "cl100k_base": "cl100k_base", "o200k_base": "o200k_base"}  # -> rank file
TRAINED, TRAINED_SIZE = "trained", 32_768


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary and its file of ranks; what is not published splits text as cl100k_base does."""

    name: str
    ranks: Path

    @property
    def published(self) -> bool:
        return self.name in PUBLISHED

    def __str__(self) -> str:
        return self.name


@functools.cache
def vocabularies() -> list[Vocabulary]:
    cache = DATA / "tiktoken"
    files = {
        name: cache / hashlib.sha1(RANK_FILES.format(file).encode()).hexdigest() for name, file in PUBLISHED.items()
    }
    found = [Vocabulary(name, path) for name, path in files.items() if path.is_file()]
    return found or [trained()]


@functools.cache
def trained() -> Vocabulary:
    from llmfast.tokenizer import Tokenizer

    path = Path(_folder().name) / "trained.tiktoken"
    Tokenizer.train([code()[1]], TRAINED_SIZE, pattern="cl100k", special_tokens=()).save_ranks(path)
    return Vocabulary(TRAINED, path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="llmfast-benchmarks-")


@dataclass(frozen=True)
class Library:
    """What a package offers of each; None where it has nothing of the kind. ``numpy`` takes documents and threads."""

    encode: Callable[[str], Any]
    numpy: Callable[[list[str], int], np.ndarray] | None = None
    lists: Callable[[list[str]], list[list[int]]] | None = None
    decode: Callable[[list[int]], str] | None = None
    decode_bytes: Callable[[list[int]], bytes] | None = None


# ---------------------------------------------------------------------------------------------------- libraries


def llmfast(vocabulary: Vocabulary) -> Library:
    ours = our_encoding(vocabulary)
    return Library(
        ours.encode_ordinary,
        lambda texts, threads: ours.encode_documents(texts, append_eot=False, num_threads=threads)[0],
        lambda texts: [ours.encode_ordinary(text) for text in texts],
        ours.decode,
        ours.decode_bytes,
    )


def our_encoding(vocabulary: Vocabulary) -> Any:
    """One that has learnt nothing of texts yet."""
    from llmfast.tokenizer import Encoding, get_encoding
    from llmfast.tokenizer.formats.rank_files import read_ranks
    from llmfast.tokenizer.patterns import CL100K

    if not vocabulary.published:
        ranks = read_ranks(vocabulary.ranks)
        return Encoding(vocabulary.name, pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})
    known = get_encoding(vocabulary.name)
    return Encoding(
        vocabulary.name,
        pat_str=known._pat_str,
        mergeable_ranks=known._mergeable_ranks,
        special_tokens=known._special_tokens,
    )


def tiktoken(vocabulary: Vocabulary) -> Library:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    if vocabulary.published:
        theirs = tiktoken.get_encoding(vocabulary.name)
    else:
        from llmfast.tokenizer.patterns import CL100K

        ranks = load_tiktoken_bpe(str(vocabulary.ranks))
        theirs = tiktoken.Encoding(vocabulary.name, pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})

    def to_numpy(texts: list[str], threads: int) -> np.ndarray:
        return np.concatenate([theirs.encode_to_numpy(text, disallowed_special=()) for text in texts])

    return Library(
        theirs.encode_ordinary,
        to_numpy,
        lambda texts: [theirs.encode_ordinary(text) for text in texts],
        theirs.decode,
        theirs.decode_bytes,
    )


def tokenizers(vocabulary: Vocabulary) -> Library:
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(hugging_face_file(vocabulary)))

    def encode(text: str) -> list[int]:
        return theirs.encode(text, add_special_tokens=False).ids

    return Library(
        encode,
        lists=lambda texts: [each.ids for each in theirs.encode_batch_fast(texts, add_special_tokens=False)],
        decode=lambda ids: theirs.decode(ids, skip_special_tokens=False),
    )


def hugging_face_file(vocabulary: Vocabulary) -> Path:
    """A tokenizer.json that says the same as the ranks, beside the trained vocabulary."""
    from llmfast.tokenizer.huggingface.contents import Contents
    from llmfast.tokenizer.huggingface.writing import to_json

    path = Path(_folder().name) / f"{vocabulary}.json"
    if not path.exists():
        ours = our_encoding(vocabulary)
        contents = Contents(ours._pat_str, ours._mergeable_ranks, ours._special_tokens)
        path.write_text(json.dumps(to_json(contents)), encoding="utf-8")
    return path


def fastokens(vocabulary: Vocabulary) -> Library:
    import fastokens

    from llmfast.tokenizer import patterns

    if vocabulary.name == "gpt2":  # as published: given GPT-2's expression, it takes a path that is not its best
        fast = fastokens.Tokenizer.from_file(str(hugging_face_file(vocabulary)))
    else:
        settings = {"encoding": vocabulary.name} if vocabulary.published else {"pattern": patterns.CL100K}
        fast = fastokens.Tokenizer.from_tiktoken(str(vocabulary.ranks), **settings)
    return Library(
        lambda text: fast.encode_ordinary(text).ids,
        lambda texts, threads: np.frombuffer(fast.encode_batch_flat(texts)[0], np.uint32),
        lambda texts: [fast.encode_ordinary(text).ids for text in texts],
        fast.decode,
    )


def gigatoken(vocabulary: Vocabulary) -> Library:
    import awkward  # noqa: F401 (what its arrays are made of)
    import gigatoken

    kind = {"gpt2": "gpt2", "o200k_base": "o200k"}.get(vocabulary.name, "cl100k")
    giga = gigatoken.Tokenizer.from_tiktoken(vocabulary.ranks, kind)
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


def toktok(vocabulary: Vocabulary) -> Library | None:
    import toktok

    return _like_tiktoken(toktok._encoding(vocabulary.name)) if built_in(vocabulary) else None


def quicktok(vocabulary: Vocabulary) -> Library | None:
    import quicktok

    return _like_tiktoken(quicktok.get_encoding(vocabulary.name)) if built_in(vocabulary) else None


def rs_bpe(vocabulary: Vocabulary) -> Library | None:
    from rs_bpe import openai

    if not built_in(vocabulary):
        return None
    theirs = getattr(openai, vocabulary.name)()
    return Library(theirs.encode, lists=lambda texts: [theirs.encode(text) for text in texts], decode=theirs.decode)


def built_in(vocabulary: Vocabulary) -> bool:
    """Whether libraries have it that take no vocabulary from elsewhere."""
    return vocabulary.name in ("cl100k_base", "o200k_base")


# Which form of the published vocabularies each library reads: that which its own documentation uses.
FORMS_OF_VOCABULARIES = {
    "llmfast": "get_encoding",
    "tiktoken": "get_encoding",
    "tokenizers": "tokenizer.json with GPT-2's ByteLevel step for gpt2, the expression and ByteLevel for the others",
    "fastokens": "tokenizer.json with the ByteLevel step for gpt2, from_tiktoken with its own preset for the others",
    "gigatoken": "from_tiktoken with its own preset",
    "toktok, quicktok, rs_bpe": "what they bring themselves",
}

LIBRARIES = {
    make.__name__: make for make in (llmfast, tiktoken, tokenizers, fastokens, gigatoken, toktok, quicktok, rs_bpe)
}


@dataclass(frozen=True)
class Absent:
    """Why a library takes no part."""

    status: str  # "missing" or "skipped"
    reason: str


def libraries(vocabulary: Vocabulary, what: str) -> Iterator[tuple[str, Library | Absent]]:
    """All of them, freshly made."""
    for name in LIBRARIES:
        yield name, library(name, vocabulary, what)


def missing(name: str) -> Absent | None:
    """None for a library that is installed."""
    return None if importlib.util.find_spec(name) else Absent("missing", f"{name} is not installed")


def library(name: str, vocabulary: Vocabulary, what: str) -> Library | Absent:
    """A library, freshly made, that offers `what`, or why there is none."""
    if absent := missing(name):
        return absent
    try:
        made = LIBRARIES[name](vocabulary)
    except ModuleNotFoundError as error:
        return Absent("missing", f"{name} needs a module that is not installed: {error.name}")
    if made is None:
        return Absent("skipped", f"has no {vocabulary}")
    return made if getattr(made, what) is not None else Absent("skipped", f"offers no {what}")
