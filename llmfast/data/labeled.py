"""Labeled texts prepared for training: token shards with a label for each document, and batches of them.

A prepared folder holds ``train`` and ``validation``, each token shards (``llmfast.data.shards``) with ``labels.json``
beside them, and the tokenizer. ``labels.json`` has the names of all labels, and the place of each document's label
among them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmfast.data.batch import Batch
from llmfast.data.config import LabeledDataConfig
from llmfast.data.corpus import is_held_out
from llmfast.data.labeled_text import LabeledText, read_labeled
from llmfast.data.order import shuffled
from llmfast.data.prepare import END_OF_TEXT, SPLITS, load_tokenizer
from llmfast.data.shards import ShardWriter, Share, TokenShards
from llmfast.files import atomic_folder, atomic_write
from llmfast.tokenizer import Tokenizer

LABELS_FILE = "labels.json"
ROUNDED = 16  # rows are padded to a multiple of this: few lengths, so that little is compiled
Report = Callable[[str], None]


class LabeledSplit:
    """One side of prepared data: documents as rows of tokens, each with its label.

    A row is the end-of-text token, after which a document begins, and the tokens of the text.
    """

    def __init__(self, folder: Path, *, max_tokens: int, verify: bool = True):
        self.shards = TokenShards(folder, verify=verify)
        record = _read_labels(folder / LABELS_FILE)
        self.names: list[str] = record["names"]
        self.labels = np.array(record["labels"], np.int64)
        starts, lengths = self.shards.document_spans
        if len(starts) != len(self.labels):
            raise ValueError(f"{folder} has {len(starts)} documents and {len(self.labels)} labels")
        self.max_tokens = max_tokens
        self.starts = starts - 1
        self.lengths = np.minimum(lengths, max_tokens)
        self.cut = int((lengths > max_tokens).sum())
        digest = f"{self.shards.checksum} {record['sha256']} {max_tokens}"
        self.checksum = hashlib.sha256(digest.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, places: np.ndarray) -> Batch:
        """Examples as ``tokens`` (B, S) padded at the end, ``lengths`` (B,) and ``labels`` (B,), all int64."""
        lengths = self.lengths[places]
        width = min(-(-int(lengths.max()) // ROUNDED) * ROUNDED, self.max_tokens)
        columns = np.arange(width)
        # Tokens read beyond the end of a text belong to the next one; padding replaces them.
        tokens = self.shards.read_at((self.starts[places][:, None] + columns).ravel()).reshape(-1, width)
        tokens = np.where(columns < lengths[:, None], tokens, self.shards.eot_token).astype(np.int64)
        return Batch(
            tokens=torch.from_numpy(tokens),
            lengths=torch.from_numpy(lengths),
            labels=torch.from_numpy(self.labels[places]),
        )


@dataclass(frozen=True)
class PreparedLabels:
    """A prepared folder, opened."""

    tokenizer: Tokenizer
    train: LabeledSplit
    validation: LabeledSplit

    @property
    def names(self) -> list[str]:
        """The labels in the order of a classifier's outputs."""
        return self.train.names


class LabeledLoader:
    """This process's part of one batch of labeled texts after another (see ``llmfast.data.batch.Source``).

    The example at each position is a function of (seed, position): each epoch is a new shuffle.
    """

    def __init__(self, split: LabeledSplit, *, seed: int, share: Share = Share()):  # noqa: B008 (immutable)
        self.split, self.seed, self.share = split, seed, share
        self.position = 0

    @property
    def fingerprint(self) -> str:
        return self.split.checksum

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.split)

    def state(self) -> dict[str, int]:
        return {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]

    def next(self, batch_size: int, context: int | None = None) -> Batch:
        """This process's rows of the next batch; texts are not cut shorter by ``context``, which must be full."""
        if context not in (None, self.split.max_tokens):
            raise ValueError("training.context_warmup is for pretraining: labeled texts are not cut into rows")
        own = batch_size // self.share.count
        positions = self.position + self.share.index * own + np.arange(own)
        self.position += batch_size
        epochs, places = np.divmod(positions, len(self.split))
        rows = [
            shuffled(places[epochs == epoch], len(self.split), (self.seed, int(epoch))) for epoch in np.unique(epochs)
        ]
        batch = self.split.batch(np.concatenate(rows))
        return batch.pinned() if torch.cuda.is_available() else batch


def prepare_labeled(config: LabeledDataConfig, folder: Path, *, report: Report = lambda line: None) -> None:
    """Read texts and labels, encode them, and write both sides under ``folder``, whole or not at all.

    Raises:
        ValueError: nothing to read, fewer than two labels, or a side without a text.
    """
    examples = list(read_labeled(config.sources, text=config.text, label=config.label))
    names = sorted({example.label for example in examples}, key=_natural)
    if len(names) < 2:
        raise ValueError(f"a classifier needs at least two labels, but there are only {names or 'no texts'}")
    sides: dict[str, list[LabeledText]] = {split: [] for split in SPLITS}
    for example in examples:
        held_out = is_held_out(_utf8(example.text), config.validation_fraction)
        sides["validation" if held_out else "train"].append(example)
    for split, side in sides.items():
        if not side:
            raise ValueError(
                f"of {len(examples)} texts none is in the {split} split; data.validation_fraction decides how many are"
            )
    with atomic_folder(folder) as partial:
        tokenizer = _tokenizer(config, sides["train"])
        report(f"vocabulary  {tokenizer.n_vocab:,} tokens, {config.tokenizer or 'trained on the texts'}")
        tokenizer.save(partial)
        for split, side in sides.items():
            _write(partial / split, tokenizer, side, names)


def open_labeled(folder: Path, *, max_tokens: int, verify: bool = True) -> PreparedLabels:
    """Open what ``prepare_labeled`` wrote.

    Raises:
        ValueError: something is missing or damaged.
    """
    tokenizer = Tokenizer.load(folder)
    splits = [LabeledSplit(folder / split, max_tokens=max_tokens, verify=verify) for split in SPLITS]
    return PreparedLabels(tokenizer, *splits)


def describe_labeled(prepared: PreparedLabels, report: Report) -> None:
    """Reports the texts to train and to evaluate on, one line per split."""
    for name, split in (("train", prepared.train), ("validation", prepared.validation)):
        counts = np.bincount(split.labels, minlength=len(prepared.names))
        shares = ", ".join(f"{label} {count:,}" for label, count in zip(prepared.names, counts, strict=True))
        cut = f"; {split.cut:,} are cut at data.max_tokens" if split.cut else ""
        report(f"{name:<11} {len(split):,} texts: {shares}{cut}")


def encode_text(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[int]:
    """The row of a text, as ``LabeledSplit`` has it."""
    return [tokenizer.eot_token, *tokenizer.encode_ordinary(text)][:max_tokens]


def pad_rows(rows: Sequence[Sequence[int]], padding: int) -> Batch:
    """Rows of any lengths as ``tokens`` padded at the end, and their ``lengths``."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), padding)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return Batch(tokens=tokens, lengths=lengths)


def _tokenizer(config: LabeledDataConfig, examples: list[LabeledText]) -> Tokenizer:
    if config.tokenizer:
        return load_tokenizer(config.tokenizer)
    texts = (example.text for example in examples)
    return Tokenizer.train(texts, config.vocab_size, special_tokens=(END_OF_TEXT,))


def _write(folder: Path, tokenizer: Tokenizer, examples: list[LabeledText], names: list[str]) -> None:
    folder.mkdir()
    writer = ShardWriter(
        folder,
        vocab_size=tokenizer.n_vocab,
        eot_token=tokenizer.eot_token,
        fingerprint=tokenizer.fingerprint,
    )
    texts = [_utf8(example.text) for example in examples]
    tokens, _ = tokenizer.encode_documents(texts)
    writer.add(tokens, len(texts), sum(map(len, texts)))
    writer.finish()
    place = {name: number for number, name in enumerate(names)}
    record = {"names": names, "labels": [place[example.label] for example in examples]}
    atomic_write(folder / LABELS_FILE, json.dumps(record | {"sha256": _digest(record)}) + "\n")


def _read_labels(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["sha256"] != _digest({name: record[name] for name in ("names", "labels")}):
            raise ValueError("its SHA-256 is not that of its content")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _natural(name: str) -> tuple[bool, int, str]:
    """A sort key: numbers by value first, then names in alphabetical order."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
