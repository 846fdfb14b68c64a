"""Documents that are there several times: exactly, or nearly, by MinHash.

Nearly equal texts share most of their n-grams of words. MinHash (Broder 1997) estimates the Jaccard similarity of two
sets of n-grams from signatures of equal length, and locality-sensitive hashing finds similar signatures without
comparing all pairs (Leskovec et al., "Mining of Massive Datasets", chapter 3). Both are ``datasketch``'s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from llmfast.data.reading.corpus import Document

PERMUTATIONS = 128  # hash functions of a signature: estimates are off by up to 1/√128, 0.09
SEED = 1
# Scripts without spaces between words: each character counts as a word.
_NO_SPACES = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")


@dataclass(frozen=True)
class Duplicate:
    """What ``duplicates`` says of one document."""

    document: Document
    of: str | None
    """The name of the earlier document that it repeats; None if it is none's duplicate."""
    similarity: float
    """The estimated Jaccard similarity to that document; 0 without one."""
    is_equal: bool = False
    """Whether the two texts are equal."""


def duplicates(documents: Iterable[Document], *, similarity: float = 0.8, ngram: int = 5) -> Iterator[Duplicate]:
    """Each document in order, with the earlier one that it repeats, if any.

    A document is compared with those that were no duplicates themselves. It ends when the documents do. In memory are
    the name and 32 bytes of each document and, where ``similarity`` is below 1, about 3 kB for each that is kept.

    Args:
        documents: texts with names.
        similarity: from which estimated Jaccard similarity of n-grams on a document is a duplicate; 1 finds equal texts
            only, and needs no library.
        ngram: words of an n-gram, without regard to case and punctuation. Shorter texts are one n-gram.

    Raises:
        ValueError: a similarity that is not above 0 and up to 1, or an n-gram of no words.
        ModuleNotFoundError: datasketch is not installed (``pip install 'llmfast[dedup]'``).

    >>> texts = ["a b c", "d e f", "a b c"]
    >>> found = duplicates([Document(str(i), text) for i, text in enumerate(texts)], similarity=1)
    >>> [each.of for each in found]
    [None, None, '0']
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity must be above 0 and at most 1, got {similarity}")
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1, got {ngram}")
    return _duplicates(documents, _Near(similarity, ngram) if similarity < 1 else None)


def _duplicates(documents: Iterable[Document], near: _Near | None) -> Iterator[Duplicate]:
    first: dict[bytes, str] = {}
    for document in documents:
        digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
        if digest in first:
            yield Duplicate(document, first[digest], 1.0, is_equal=True)
            continue
        of, similarity = (None, 0.0) if near is None else near.find(document)
        first[digest] = document.name if of is None else of
        yield Duplicate(document, of, similarity)


class _Near:
    """The signatures of the documents that are kept."""

    def __init__(self, similarity: float, ngram: int):
        import datasketch

        self.library, self.similarity, self.ngram = datasketch, similarity, ngram
        self.index = datasketch.MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
        self.signatures: list[tuple[str, datasketch.MinHash]] = []

    def find(self, document: Document) -> tuple[str | None, float]:
        """The most similar document that is kept and its similarity; keeps this one if there is none."""
        signature = self.library.MinHash(num_perm=PERMUTATIONS, seed=SEED)
        signature.update_batch(_ngrams(document.text, self.ngram))
        places = cast("list[int]", self.index.query(signature))
        found = [(signature.jaccard(self.signatures[place][1]), -place) for place in places]
        best, place = max(found, default=(0.0, 0))  # of equal ones the first
        if best >= self.similarity:
            return self.signatures[-place][0], best
        self.index.insert(len(self.signatures), signature)
        self.signatures.append((document.name, signature))
        return None, 0.0


def _ngrams(text: str, size: int) -> list[bytes]:
    """The different n-grams of a text; what has no words, such as a drawing, is one of its own."""
    words = _WORD.findall(text.lower()) or [text]
    places = range(max(1, len(words) - size + 1))
    return sorted({" ".join(words[place : place + size]).encode("utf-8", "surrogatepass") for place in places})
