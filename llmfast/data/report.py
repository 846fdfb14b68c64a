"""What prepared data is made of: counts, compression, how the vocabulary is used, duplicates, samples to look at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from llmfast.data.prepare import Prepared
from llmfast.data.shards import TokenShards
from llmfast.tokenizer import Tokenizer

COUNT_TOKENS = 2**24  # tokens counted at a time
COMMON = 10
SAMPLES, SAMPLE_TOKENS = 3, 12


@dataclass(frozen=True)
class SplitReport:
    """Figures of one split."""

    documents: int
    tokens: int
    text_bytes: int
    tokens_per_byte: float
    vocabulary_coverage: float
    """Share of the vocabulary's tokens that occur."""
    duplicate_documents: int
    """Documents whose tokens an earlier one has already."""
    duplicates: list[tuple[int, int]]
    """The documents that are there most often: the place of the first of each, and how often."""
    median_document: int
    """Tokens."""
    longest_document: int
    common_tokens: list[tuple[str, float]]
    """The most frequent tokens and their share of all."""


@dataclass(frozen=True)
class DataReport:
    """Figures of prepared data."""

    vocab_size: int
    splits: dict[str, SplitReport]
    in_both: int
    """Documents that are in training and validation: 0, or every validation figure is a lie."""
    samples: list[tuple[str, str]]
    """Training pairs: what the model sees, and what it is to predict next."""


def report_on(prepared: Prepared) -> DataReport:
    """Read all shards once and count. Takes about a second per 50 million tokens."""
    tokenizer = prepared.tokenizer
    splits, digests = {}, {}
    for name, shards in (("train", prepared.train), ("validation", prepared.validation)):
        digests[name] = _document_digests(shards)
        splits[name] = _split_report(shards, tokenizer, digests[name])
    in_both = len(np.intersect1d(digests["train"], digests["validation"]))
    return DataReport(tokenizer.n_vocab, splits, in_both, _samples(prepared.train, tokenizer))


def _split_report(shards: TokenShards, tokenizer: Tokenizer, digests: np.ndarray) -> SplitReport:
    counts = token_counts(shards)
    lengths = shards.document_spans[1]
    common = np.argsort(-counts, kind="stable")[:COMMON]
    return SplitReport(
        documents=shards.documents,
        tokens=len(shards),
        text_bytes=shards.text_bytes,
        tokens_per_byte=len(shards) / shards.text_bytes,
        vocabulary_coverage=float((counts > 0).mean()),
        duplicate_documents=len(digests) - len(np.unique(digests)),
        duplicates=_most_often(digests),
        median_document=int(np.median(lengths)),
        longest_document=int(lengths.max()),
        common_tokens=[(_shown(tokenizer, [int(token)]), float(counts[token] / len(shards))) for token in common],
    )


def token_counts(shards: TokenShards) -> np.ndarray:
    """How often each token of the vocabulary occurs, (V,) int64."""
    counts = np.zeros(shards.vocab_size, np.int64)
    for start in range(0, len(shards), COUNT_TOKENS):
        part = shards.read(start, min(COUNT_TOKENS, len(shards) - start))
        counts += np.bincount(part, minlength=shards.vocab_size)
    return counts


def _document_digests(shards: TokenShards) -> np.ndarray:
    """64 bits of each document's SHA-256: a billion documents have a false duplicate with a chance of 3 %."""
    spans = zip(*(each.tolist() for each in shards.document_spans), strict=True)
    digests = [hashlib.sha256(shards.read(start, length).tobytes()).digest()[:8] for start, length in spans]
    return np.frombuffer(b"".join(digests), "<u8")


def _most_often(digests: np.ndarray) -> list[tuple[int, int]]:
    _, first, times = np.unique(digests, return_index=True, return_counts=True)
    order = np.lexsort((first, -times))[:COMMON]
    return [(int(first[place]), int(times[place])) for place in order if times[place] > 1]


def _samples(shards: TokenShards, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    starts, lengths = shards.document_spans
    chosen = np.flatnonzero(lengths > SAMPLE_TOKENS + 1)[:SAMPLES]
    pairs = []
    for document in chosen:
        tokens = shards.read(int(starts[document]), SAMPLE_TOKENS + 1).tolist()
        pairs.append((_shown(tokenizer, tokens[:-1]), _shown(tokenizer, tokens[-1:])))
    return pairs


def _shown(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode_bytes(tokens).decode("utf-8", "backslashreplace")
