"""From a corpus to a tokenizer and token shards: train and validation, disjoint by document."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmfast.data.config import DataConfig
from llmfast.data.corpus import Corpus, Document, batched
from llmfast.data.shards import ShardWriter, TokenShards
from llmfast.files import atomic_folder
from llmfast.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
ENCODE_CHARACTERS = (
    2**24
)  # documents are encoded in groups of this size: memory stays bounded, cores stay busy
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, opened."""

    tokenizer: Tokenizer
    train: TokenShards
    validation: TokenShards


def prepare(
    config: DataConfig, folder: Path, *, report: Callable[[str], None] = lambda line: None
) -> Prepared:
    """Train (or load) the tokenizer, encode the corpus, and write both under ``folder``, whole or not at all.

    ``report`` is told, in a line each, what was read and made.

    Raises:
        ValueError: no readable text, too little of it, or a vocabulary size that cannot be had.
        OSError: a file that cannot be read, or a full disk.
    """
    corpus = Corpus(config.sources)
    held_out = _split_rule(corpus, config.validation_fraction)
    with atomic_folder(folder) as partial:
        if config.tokenizer:
            tokenizer = Tokenizer.load(config.tokenizer)
            report(f"vocabulary  {tokenizer.n_vocab:,} tokens from {config.tokenizer}")
        else:
            texts = (document.text for document in corpus if not held_out(document))
            tokenizer = Tokenizer.train(texts, config.vocab_size, special_tokens=(END_OF_TEXT,))
            report(f"vocabulary  {tokenizer.n_vocab:,} tokens, trained on the training documents")
        tokenizer.save(partial)
        for split in SPLITS:
            (partial / split).mkdir()
            wanted = (document for document in corpus if held_out(document) == (split == "validation"))
            _write_shards(wanted, tokenizer, partial / split)
    prepared = open_prepared(folder)
    for split, shards in (("train", prepared.train), ("validation", prepared.validation)):
        report(
            f"{split:<11} {shards.documents:,} documents, {shards.text_bytes / 1e6:,.1f} MB, {len(shards):,} tokens"
            f" ({shards.text_bytes / len(shards):.2f} bytes each)"
        )
    if corpus.skipped:
        report(f"skipped     {len(corpus.skipped)} files that are not UTF-8 text")
    return prepared


def open_prepared(folder: Path) -> Prepared:
    """Open what ``prepare`` wrote.

    Raises:
        ValueError: something in the folder is missing or damaged, or the shards were made with another tokenizer.
    """
    folder = Path(folder)
    tokenizer = Tokenizer.load(folder)
    splits = [TokenShards(folder / split) for split in SPLITS]
    for shards in splits:
        if shards.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"the token shards in {shards.folder} were made with another tokenizer than {folder}'s"
            )
    return Prepared(tokenizer, *splits)


def compression_baselines(shards: TokenShards, tokenizer: Tokenizer) -> dict[str, float]:
    """Bits per byte that gzip -9 and xz -9 reach on the text behind ``shards``, as one stream."""
    text = tokenizer.decode_bytes(_without(shards.read(0, len(shards)), tokenizer.eot_token))
    return {
        "gzip": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def _without(tokens: np.ndarray, token: int) -> list[int]:
    return tokens[tokens != token].tolist()


def _split_rule(corpus: Corpus, fraction: float) -> Callable[[Document], bool]:
    """The rule that says which documents are held out; both sides get at least one document."""
    sides = set()
    first = None
    for document in corpus:
        first = first or document
        sides.add(document.is_held_out(fraction))
        if len(sides) == 2:
            return lambda document: document.is_held_out(fraction)
    # A small corpus: its hashes all fell on one side. The first document then goes to the other side.
    if not any(document.text != first.text for document in corpus):
        raise ValueError(
            f"{corpus.describe()}: one short document only, so nothing can be held out for validation"
        )
    (held_out,) = sides
    return lambda document: (document.text == first.text) != held_out


def _write_shards(documents: Iterator[Document], tokenizer: Tokenizer, folder: Path) -> None:
    try:
        eot_token = tokenizer.eot_token
    except KeyError as error:
        raise ValueError(f"no token to end documents with: {error.args[0]}") from None
    writer = ShardWriter(
        folder, vocab_size=tokenizer.n_vocab, eot_token=eot_token, fingerprint=tokenizer.fingerprint
    )
    for group in batched(documents, ENCODE_CHARACTERS):
        texts = [document.text.encode() for document in group]
        tokens, _ = tokenizer.encode_documents(texts)
        writer.add(tokens, len(texts), sum(map(len, texts)))
    writer.finish()
