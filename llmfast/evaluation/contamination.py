"""Which evaluation texts a training corpus holds parts of: runs of equal tokens (n-grams) in token shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmfast.data.shards import TokenShards

NGRAM = 13  # tokens; of words in Brown et al. 2020 (GPT-3), appendix C
CHUNK = 2**20  # tokens of the corpus at once
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Contamination:
    """How much of each text is in a corpus."""

    covered: list[float]
    """Of each text, the share of its tokens that lie in an n-gram of the corpus."""
    too_short: list[bool]
    """Of each text, whether it has fewer than n tokens, so that nothing can be said of it."""


def contamination(texts: Sequence[Sequence[int]], shards: TokenShards, *, ngram: int = NGRAM) -> Contamination:
    """Look for every n-gram of token lists in shards, exactly.

    Texts must be tokens of the tokenizer of the shards. Their first token may differ from that of the same word in the
    middle of a document, and the last one too: only n-grams between them are sure to be found.

    Args:
        texts: lists of tokens.
        shards: of the corpus; all of it is read.
        ngram: n, at least 1.

    Raises:
        ValueError: n is below 1.
    """
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1, got {ngram}")
    arrays = [np.asarray(text, np.int64) for text in texts]
    windows = [_windows(array, ngram) for array in arrays]
    wanted = {window.tobytes() for each in windows for window in each}
    found = _found(wanted, shards, ngram) if wanted else set()
    covered = []
    for array, each in zip(arrays, windows, strict=True):
        is_covered = np.zeros(len(array), bool)
        for place, window in enumerate(each):
            if window.tobytes() in found:
                is_covered[place : place + ngram] = True
        covered.append(float(is_covered.mean()) if len(array) else 0.0)
    return Contamination(covered, [len(array) < ngram for array in arrays])


def _windows(tokens: np.ndarray, ngram: int) -> np.ndarray:
    """All n-grams (count, n) of (N,) tokens."""
    if len(tokens) < ngram:
        return np.empty((0, ngram), np.int64)
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(tokens, ngram))


def _found(wanted: set[bytes], shards: TokenShards, ngram: int) -> set[bytes]:
    """Those of the n-grams that are in the shards: hashes say where to look, and tokens whether it is so."""
    hashes = np.unique(_hashes(np.concatenate([np.frombuffer(each, np.int64) for each in wanted]), ngram)[::ngram])
    found: set[bytes] = set()
    for start in range(0, len(shards), CHUNK):  # ends with the corpus
        tokens = shards.read(start, min(CHUNK + ngram - 1, len(shards) - start)).astype(np.int64)
        here = _hashes(tokens, ngram)
        nearest = np.minimum(np.searchsorted(hashes, here), len(hashes) - 1)
        for place in np.flatnonzero(hashes[nearest] == here):
            found.add(tokens[place : place + ngram].tobytes())
    return found & wanted


def _hashes(tokens: np.ndarray, ngram: int) -> np.ndarray:
    """A number for each n-gram of (N,) tokens, (N - n + 1,) uint64: a polynomial of its tokens modulo 2^64."""
    count = max(0, len(tokens) - ngram + 1)
    total = np.zeros(count, np.uint64)
    for place in range(ngram):
        total = total * _FACTOR + tokens[place : place + count].astype(np.uint64)
    return total
