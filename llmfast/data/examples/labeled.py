"""Labeled texts prepared for training: token shards with a target for each document, and batches of them.

A prepared folder holds the tokenizer, and ``train``, ``validation`` and, unless it is left out, ``test``, each token
shards (``llmfast.data.shards``) with ``labels.json`` beside them. That has the names of all labels, and for each
document the place of its label among them, or the places of its labels, or its number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmfast.data.batch import ROUNDED, Batch
from llmfast.data.config import LabeledDataConfig, ProblemName
from llmfast.data.examples.labeled_text import LabeledText, Target, read_labeled
from llmfast.data.order import shuffled
from llmfast.data.prepare import CHARACTERS, load_tokenizer, make_tokenizer
from llmfast.data.reading.corpus import is_held_out
from llmfast.data.shards import ShardWriter, Share, TokenShards
from llmfast.files import atomic_folder, json_sha256, read_checked_json, write_checked_json
from llmfast.tokenizer import Tokenizer

LABELS = "labels.json"
SPLITS = ("train", "validation", "test")
Report = Callable[[str], None]


class LabeledSplit:
    """One side of prepared data: documents as rows of tokens, each with its target.

    A row is the end-of-text token, after which a document begins, and the tokens of the text. ``targets`` are (N,)
    int64 places of labels, (N, L) float32 ones and zeros (multi-label), or (N,) float32 numbers (regression).
    """

    def __init__(self, folder: Path, *, max_tokens: int, verify: bool = True):
        self.shards = TokenShards(folder, verify=verify)
        record = read_checked_json(folder / LABELS)
        self.names: list[str] = record["names"]
        self.problem: ProblemName = record.get("problem", "single_label")
        self.targets = _targets(record["labels"], self.problem, len(self.names))
        starts, lengths = self.shards.document_spans
        if len(starts) != len(self.targets):
            raise ValueError(f"{folder} has {len(starts)} documents and {len(self.targets)} labels")
        self.max_tokens = max_tokens
        self.starts = starts - 1
        self.lengths = np.minimum(lengths, max_tokens)
        self.cut = int((lengths > max_tokens).sum())
        digest = f"{self.shards.checksum} {json_sha256(record)} {max_tokens}"
        self.checksum = hashlib.sha256(digest.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.targets)

    def counts(self) -> np.ndarray:
        """How many texts have each label, (L,) int64."""
        if self.targets.ndim == 2:
            return self.targets.sum(0).astype(np.int64)
        return np.bincount(self.targets, minlength=len(self.names))

    def decode(self, tokenizer: Tokenizer, place: int) -> str:
        """The text at ``place``, as far as its row goes."""
        row = self.batch(np.array([place]))
        return tokenizer.decode(row.tokens[0, 1 : int(row.lengths[0])].tolist())

    def batch(self, places: np.ndarray) -> Batch:
        """Examples: int64 ``tokens`` (B, S) padded at the end and ``lengths`` (B,), and ``labels`` as ``targets``."""
        lengths = self.lengths[places]
        width = min(-(-int(lengths.max()) // ROUNDED) * ROUNDED, self.max_tokens)
        columns = np.arange(width)
        # Tokens read beyond the end of a text belong to the next one; padding replaces them.
        tokens = self.shards.read_at((self.starts[places][:, None] + columns).ravel()).reshape(-1, width)
        tokens = np.where(columns < lengths[:, None], tokens, self.shards.eot_token).astype(np.int64)
        return Batch(
            tokens=torch.from_numpy(tokens),
            lengths=torch.from_numpy(lengths),
            labels=torch.from_numpy(self.targets[places]),
        )


@dataclass(frozen=True)
class PreparedLabels:
    """A prepared folder, opened."""

    tokenizer: Tokenizer
    train: LabeledSplit
    validation: LabeledSplit
    test: LabeledSplit | None = None

    @property
    def splits(self) -> dict[str, LabeledSplit]:
        """The sides that there are, by name."""
        found = {"train": self.train, "validation": self.validation}
        return found if self.test is None else found | {"test": self.test}

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
        batch = self.split.batch(self.places(batch_size, context)[1])
        return batch.pinned() if torch.cuda.is_available() else batch

    def places(self, batch_size: int, context: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the run, and places in the split, of this process's rows of the next batch, which then counts as
        taken."""
        if context not in (None, self.split.max_tokens):
            raise ValueError("training.context_warmup is for pretraining: labeled texts are not cut into rows")
        own = batch_size // self.share.count
        positions = self.position + self.share.index * own + np.arange(own)
        self.position += batch_size
        epochs, places = np.divmod(positions, len(self.split))
        rows = [
            shuffled(places[epochs == epoch], len(self.split), (self.seed, int(epoch))) for epoch in np.unique(epochs)
        ]
        return positions, np.concatenate(rows)


def prepare_labeled(config: LabeledDataConfig, folder: Path, *, report: Report = lambda line: None) -> None:
    """Read texts and targets, encode them, and write all sides under ``folder``, whole or not at all.

    The side of a text is decided by a hash of its words, so that it is the same on every machine and in any order, and
    copies of a text are all on one side, whatever white space they differ in.

    Raises:
        ValueError: nothing to read, too few labels, a side without a text, or a label without one to train on.
    """
    examples = list(read_labeled(config))
    names = _names(examples, config.problem)
    sides = divided(examples, config)
    _check_training_labels(sides, names, config.problem)
    _report_copies(examples, report)
    with atomic_folder(folder) as partial:
        tokenizer = _tokenizer(config, sides["train"])
        report(f"vocabulary  {tokenizer.n_vocab:,} tokens, {config.tokenizer or 'trained on the texts'}")
        tokenizer.save(partial)
        for split, side in sides.items():
            _write(partial / split, tokenizer, side, names, config.problem)


def open_labeled(folder: Path, *, max_tokens: int, verify: bool = True) -> PreparedLabels:
    """Open what ``prepare_labeled`` wrote.

    Raises:
        ValueError: something is missing or damaged.
    """
    tokenizer = Tokenizer.load(folder)
    found = [split for split in SPLITS if split != "test" or (folder / split).exists()]
    return PreparedLabels(
        tokenizer, **{split: LabeledSplit(folder / split, max_tokens=max_tokens, verify=verify) for split in found}
    )


def describe_labeled(prepared: PreparedLabels, report: Report) -> None:
    """Reports the texts to train and to evaluate on, one line per split, and the labels that a split lacks."""
    for name, split in prepared.splits.items():
        cut = f"; {split.cut:,} are cut at data.max_tokens" if split.cut else ""
        report(f"{name:<11} {len(split):,} texts: {_described(split)}{cut}")
        missing = [] if split.problem == "regression" else np.flatnonzero(split.counts() == 0)
        if len(missing):
            labels = ", ".join(repr(split.names[place]) for place in missing)
            report(f"            no text of {labels}: the figures of the {name} split say nothing about them")


def _described(split: LabeledSplit) -> str:
    if split.problem == "regression":
        numbers = split.targets.astype(np.float64)
        return f"mean {numbers.mean():.4g}, from {numbers.min():.4g} to {numbers.max():.4g}"
    counts = zip(split.names, split.counts(), strict=True)
    return ", ".join(f"{label} {count:,}" for label, count in counts)


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


def divided(examples: list[LabeledText], config: LabeledDataConfig) -> dict[str, list[LabeledText]]:
    """The examples of each side, by a hash of their words."""
    held_out = {"validation": config.validation_fraction, "test": config.test_fraction}
    sides: dict[str, list[LabeledText]] = {split: [] for split in SPLITS if split == "train" or held_out[split]}
    for example in examples:
        words = _utf8(_words(example.text))
        if is_held_out(words, held_out["validation"]):
            sides["validation"].append(example)
        elif is_held_out(words, held_out["validation"] + held_out["test"]):
            sides["test"].append(example)
        else:
            sides["train"].append(example)
    for split, side in sides.items():
        if not side:
            raise ValueError(
                f"of {len(examples)} texts none is in the {split} split; data.validation_fraction and "
                "data.test_fraction decide how many are"
            )
    return sides


def _names(examples: list[LabeledText], problem: ProblemName) -> list[str]:
    """All labels: numbers in the order of their values, then names in that of the alphabet."""
    if problem == "regression":
        return []
    found = {label for example in examples for label in example.labels}
    names, fewest = sorted(found, key=_natural), 2 if problem == "single_label" else 1
    if len(names) < fewest:
        wanted = "two labels" if fewest == 2 else "one label"
        raise ValueError(f"a classifier needs at least {wanted}, but there are only {names or 'no texts'}")
    return names


def _check_training_labels(sides: dict[str, list[LabeledText]], names: list[str], problem: ProblemName) -> None:
    if problem == "regression":
        targets = [example.target for example in sides["train"]]
        if len(set(targets)) < 2:
            raise ValueError(f"every text of the train split has the number {targets[0]}: there is nothing to learn")
        return
    known = {label for example in sides["train"] for label in example.labels}
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            f"the train split has no text of {', '.join(map(repr, missing))}, which no classifier can learn then: give "
            "more such texts, or leave out those there are"
        )


def _report_copies(examples: list[LabeledText], report: Report) -> None:
    targets: dict[str, set[Target]] = {}
    for example in examples:
        targets.setdefault(_words(example.text), set()).add(example.target)
    if copies := len(examples) - len(targets):
        different = sum(len(each) > 1 for each in targets.values())
        beside = f"; {different:,} texts have copies with another label" if different else ""
        report(f"copies      {copies:,} of {len(examples):,} texts are copies of others, on the same side{beside}")


def _tokenizer(config: LabeledDataConfig, examples: list[LabeledText]) -> Tokenizer:
    if config.tokenizer not in (None, CHARACTERS):
        return load_tokenizer(config.tokenizer)
    return make_tokenizer((example.text for example in examples), config.tokenizer, config.vocab_size)


def _write(
    folder: Path, tokenizer: Tokenizer, examples: list[LabeledText], names: list[str], problem: ProblemName
) -> None:
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
    encode = {
        "single_label": place.__getitem__,
        "multi_label": lambda labels: sorted(place[label] for label in labels),
        "regression": float,
    }[problem]
    record = {"names": names, "problem": problem, "labels": [encode(example.target) for example in examples]}
    write_checked_json(folder / LABELS, record)


def _targets(labels: list[Any], problem: ProblemName, count: int) -> np.ndarray:
    if problem == "regression":
        return np.array(labels, np.float32)
    if problem == "single_label":
        return np.array(labels, np.int64)
    targets = np.zeros((len(labels), count), np.float32)
    for row, places in enumerate(labels):
        targets[row, places] = 1
    return targets


def _words(text: str) -> str:
    """The text with single spaces for all its white space: what copies have in common."""
    return " ".join(text.split())


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _natural(name: str) -> tuple[bool, int, str]:
    """A sort key: numbers by value first, then names in alphabetical order."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
