"""From a corpus to a tokenizer and token shards: train and validation, disjoint by document."""

from __future__ import annotations

import gzip
import itertools
import lzma
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from llmfast.config import to_dict
from llmfast.data.config import SourceConfig
from llmfast.data.journal import JOURNAL, Journal
from llmfast.data.prefetch import prefetch
from llmfast.data.reading.corpus import Corpus, Document, batched
from llmfast.data.reading.decoding import sentence
from llmfast.data.shards import Shard, ShardWriter, Share, TokenShards
from llmfast.files import atomic_folder, json_sha256
from llmfast.tokenizer import Tokenizer, get_encoding, list_encoding_names

END_OF_TEXT = "<|endoftext|>"
CHARACTERS = "characters"  # a tokenizer that is made from the training documents
ENCODE_CHARACTERS = 2**24  # documents are encoded in groups of this size: memory stays bounded, cores busy
SPLITS = ("train", "validation")

Report = Callable[[str], None]
HeldOut = Callable[[Document], bool]


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, opened."""

    tokenizer: Tokenizer
    train: TokenShards
    validation: TokenShards


def prepare(config: SourceConfig, folder: Path, *, report: Report = lambda line: None) -> Prepared:
    """Train (or load) the tokenizer, encode the corpus, and write both under ``folder``, whole or not at all.

    ``report`` is called with a line for each thing that was read and made.

    Raises:
        ValueError: no readable text, too little of it, or a vocabulary size that cannot be had.
        OSError: a file that cannot be read, or a full disk.
    """
    with atomic_folder(folder) as partial:
        prepare_resumably(config, partial, report=report)
    prepared = open_prepared(folder)
    describe(prepared, report)
    return prepared


def prepare_resumably(
    config: SourceConfig,
    folder: Path,
    *,
    share: Share = Share(),  # noqa: B008
    processes: int = 1,
    report: Report = lambda line: None,
) -> None:
    """As ``prepare``, into ``folder`` itself: what a killed process had completed there is kept and continued.

    Args:
        share: encode only this part of the corpus (the others may be made elsewhere, at the same time); the tokenizer
            must then be given, so that all parts have the same.
        processes: divide this part further between so many processes of this machine. Encoding uses all cores with one,
            too; more of them read faster.

    Raises:
        ValueError: as ``prepare``; or no process at all, or the folder holds something prepared by other settings, or
            from files that have changed since.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    folder.mkdir(parents=True, exist_ok=True)
    given = config.tokenizer not in (None, CHARACTERS)
    if share.count > 1 and not given:
        raise ValueError("a part of the corpus needs a tokenizer that all parts share: give data.tokenizer")
    if processes > 1 and share.count > 1:
        raise ValueError(f"give either a part ({share.index}/{share.count}) or {processes} processes, not both")
    if config.split == "tail" and (share.count > 1 or processes > 1):
        raise ValueError("data.split tail needs one process that reads the whole corpus, not parts of it")
    if given or not (folder / "tokenizer.json").exists():
        tokenizer = _tokenizer(config, report)
        _check_same_tokenizer(folder, tokenizer)
        tokenizer.save(folder)
    if processes == 1:
        found = [_encode(config, folder, share)]
    else:
        shares = [Share(index, processes) for index in range(processes)]
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(_encode, itertools.repeat(config), itertools.repeat(folder), shares))
    skipped, repaired = (list(itertools.chain(*each)) for each in zip(*found, strict=True))
    if passed_over := sentence(skipped, repaired):
        report(f"not UTF-8   {passed_over}")


def open_prepared(folder: Path, *, verify: bool = True) -> Prepared:
    """Open what ``prepare`` wrote.

    Raises:
        ValueError: something in the folder is missing or damaged, or the shards were made with another tokenizer.
    """
    folder = Path(folder)
    tokenizer = Tokenizer.load(folder)
    splits = [TokenShards(folder / split, verify=verify) for split in SPLITS]
    for shards in splits:
        if shards.fingerprint != tokenizer.fingerprint:
            raise ValueError(f"the token shards in {shards.folder} were made with another tokenizer than {folder}'s")
        if not shards.documents:
            raise ValueError(f"{shards.folder} holds no documents; data.validation_fraction decides how many")
    return Prepared(tokenizer, *splits)


def describe(prepared: Prepared, report: Report) -> None:
    """What the shards hold, a line a split."""
    for split, shards in (("train", prepared.train), ("validation", prepared.validation)):
        report(
            f"{split:<11} {shards.documents:,} documents, {shards.text_bytes / 1e6:,.1f} MB, {len(shards):,} tokens"
            f" ({shards.text_bytes / len(shards):.2f} bytes each)"
        )


def compression_baselines(shards: TokenShards, tokenizer: Tokenizer) -> dict[str, float]:
    """Bits per byte that gzip -9 and xz -9 reach on the text behind ``shards``, as one stream."""
    text = tokenizer.decode_bytes(_without(shards.read(0, len(shards)), tokenizer.eot_token))
    return {
        "gzip": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def _without(tokens: np.ndarray, token: int) -> list[int]:
    return tokens[tokens != token].tolist()


# --- the tokenizer -------------------------------------------------------------------------------------------


def _tokenizer(config: SourceConfig, report: Report) -> Tokenizer:
    if config.tokenizer not in (None, CHARACTERS):
        tokenizer = load_tokenizer(config.tokenizer)
        report(f"vocabulary  {tokenizer.n_vocab:,} tokens from {config.tokenizer}")
        return tokenizer
    corpus = _corpus(config)
    held_out = _split_rule(corpus, config)
    training = (document.text for document in corpus if not held_out(document))
    tokenizer = make_tokenizer(
        _first_characters(training, config.tokenizer_characters), config.tokenizer, config.vocab_size
    )
    how = "trained on" if config.tokenizer is None else "the bytes and the characters of"
    report(f"vocabulary  {tokenizer.n_vocab:,} tokens, {how} the training documents")
    return tokenizer


def make_tokenizer(texts: Iterable[str], kind: str | None, vocab_size: int) -> Tokenizer:
    """A tokenizer learned from texts, with an end-of-text token: ``characters``, or byte-pair encoding for None.

    Raises:
        ValueError: a vocabulary size that the texts cannot give.
    """
    if kind == CHARACTERS:
        return Tokenizer.of_characters(texts, special_tokens=(END_OF_TEXT,))
    return Tokenizer.train(texts, vocab_size, special_tokens=(END_OF_TEXT,))


def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer from a path, or a published one by name (``gpt2``, ``cl100k_base``, ...).

    Raises:
        ValueError: neither; or no end-of-text token, which documents are separated by.
        OSError: a published one that is not cached and cannot be fetched.
    """
    if not Path(name).exists() and name in list_encoding_names():
        encoding = get_encoding(name)
        tokenizer = Tokenizer(
            name,
            pat_str=encoding._pat_str,
            mergeable_ranks=encoding._mergeable_ranks,
            special_tokens=encoding._special_tokens,
        )
    else:
        tokenizer = Tokenizer.load(name)
    _end_of_text(tokenizer)
    return tokenizer


def _end_of_text(tokenizer: Tokenizer) -> int:
    try:
        return tokenizer.eot_token
    except KeyError as error:
        raise ValueError(f"no token to end documents with: {error.args[0]}") from None


def _check_same_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    if (folder / "tokenizer.json").exists() and Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        raise ValueError(f"{folder} holds shards of another tokenizer; choose another folder")


def _first_characters(texts: Iterable[str], count: int) -> Iterator[str]:
    for text in texts:
        if count <= 0:
            return
        yield text[:count]
        count -= len(text)


# --- encoding ------------------------------------------------------------------------------------------------


def _corpus(config: SourceConfig, share: Share = Share()) -> Corpus:  # noqa: B008
    return Corpus(config.sources, column=config.column, share=share, invalid_utf8=config.invalid_utf8)


def _encode(config: SourceConfig, folder: Path, share: Share) -> tuple[list[str], list[str]]:
    """Write this part's shards of both splits, after those that its journal lists; returns the documents that were
    skipped and those that were repaired."""
    tokenizer = Tokenizer.load(folder)
    corpus = _corpus(config, share)
    settings = _settings(config, tokenizer, corpus)
    journal = Journal(folder / JOURNAL.replace(".", f"{share.suffix}."), settings | _local(config, corpus))
    if journal.complete:
        return [], []
    journal.save(journal.documents, journal.shards, place=journal.place)
    # A part cannot see whether the others have documents of both sides: there the hash alone decides.
    held_out = _split_rule(corpus, config) if share.count == 1 else _by_hash(config.validation_fraction)
    writers = [
        ShardWriter(
            _made(folder / split),
            vocab_size=tokenizer.n_vocab,
            eot_token=_end_of_text(tokenizer),
            fingerprint=tokenizer.fingerprint,
            share=share,
            done=journal.shards.get(split),
            settings=settings,
        )
        for split in SPLITS
    ]

    def shards() -> dict[str, list[Shard]]:
        return {split: writer.shards for split, writer in zip(SPLITS, writers, strict=True)}

    done = journal.documents
    completed = [len(writer.shards) for writer in writers]
    for group, place in prefetch(_groups(corpus, done, journal.place)):
        for split, writer in zip(SPLITS, writers, strict=True):
            add_documents(writer, tokenizer, [d for d in group if held_out(d) == (split == "validation")])
        done += len(group)
        # A shard of one split is full: both are closed, so that the journal describes one moment.
        if completed != [len(writer.shards) for writer in writers]:
            for writer in writers:
                writer.next_shard()
            completed = [len(writer.shards) for writer in writers]
            journal.save(done, shards(), place=place)
    for writer in writers:
        writer.finish()
    journal.save(done, shards(), complete=True)
    return corpus.skipped, corpus.repaired


def _groups(
    corpus: Corpus, done: int, place: dict[str, Any] | None
) -> Iterator[tuple[list[Document], dict[str, Any] | None]]:
    """The documents after the first ``done``, in groups, each with the newest known place at or before its end."""
    documents = iter(corpus) if place is None else corpus.from_place(place)
    skipped = 0 if place is None else place["documents"]
    for group in batched(itertools.islice(documents, done - skipped, None), ENCODE_CHARACTERS):
        done += len(group)
        if (now := corpus.place()) is not None:
            place = now | {"documents": done}
        yield group, place


def _settings(config: SourceConfig, tokenizer: Tokenizer, corpus: Corpus) -> dict[str, Any]:
    """What decides the shards, on every machine that prepares a part of them."""
    names = ("column", "validation_fraction", "split", "invalid_utf8")
    reads = {name: getattr(config, name) for name in names}
    files = [(file.name, file.stat().st_size) for file in corpus.files]
    return {"tokenizer": tokenizer.fingerprint, **reads, "list of files": json_sha256(files)}


def _local(config: SourceConfig, corpus: Corpus) -> dict[str, Any]:
    """What else must be as it was when a preparation is continued on one machine."""
    trained = ("vocab_size", "tokenizer_characters") if config.tokenizer in (None, CHARACTERS) else ()
    settings = {name: to_dict(config)[name] for name in ("sources", *trained)}
    if trained:
        settings["kind of tokenizer"] = config.tokenizer or "byte-pair encoding"
    return settings | {"edition of the files": json_sha256([file.stat().st_mtime_ns for file in corpus.files])}


def add_documents(writer: ShardWriter, tokenizer: Tokenizer, documents: list[Document]) -> None:
    """Encode ``documents`` on all cores and append them."""
    if documents:
        texts = [document.text.encode("utf-8", "surrogatepass") for document in documents]
        tokens, _ = tokenizer.encode_documents(texts)
        writer.add(tokens, len(texts), sum(map(len, texts)))


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


# --- the split -----------------------------------------------------------------------------------------------


def _by_hash(fraction: float) -> HeldOut:
    return lambda document: document.is_held_out(fraction)


def _split_rule(corpus: Corpus, config: SourceConfig) -> HeldOut:
    """The rule that says which documents are held out; both sides get at least one document."""
    return (_tail if config.split == "tail" else _hashed)(corpus, config.validation_fraction)


def _tail(corpus: Corpus, fraction: float) -> HeldOut:
    """The last documents, which have ``fraction`` of the characters."""
    lengths = {document.name: len(document.text) for document in corpus}
    if len(lengths) == 1:
        raise ValueError(f"{corpus.describe()}: one short document only, so nothing can be held out for validation")
    wanted = fraction * sum(lengths.values())
    held_out: set[str] = set()
    for name, length in reversed(lengths.items()):
        # The document that crosses the line is held out if most of it is behind the line.
        if held_out and (wanted < length / 2 or len(held_out) == len(lengths) - 1):
            break
        held_out.add(name)
        wanted -= length
    return lambda document: document.name in held_out


def _hashed(corpus: Corpus, fraction: float) -> HeldOut:
    sides = set()
    first: Document | None = None
    for document in corpus:
        first = first or document
        sides.add(document.is_held_out(fraction))
        if len(sides) == 2:
            return _by_hash(fraction)
    assert first is not None, "a corpus without a document raises"
    # A small corpus: its hashes all fell on one side. The first document then goes to the other side.
    if not any(document.text != first.text for document in corpus):
        raise ValueError(f"{corpus.describe()}: one short document only, so nothing can be held out for validation")
    (held_out,) = sides
    return lambda document: (document.text == first.text) != held_out
