"""Instructions with answers prepared for training: token shards with a loss mask, and rows of them.

A prepared folder holds ``train`` and ``validation``, each token shards in which a document is one conversation and each
token says whether it is trained (``llmfast.data.shards``), and the tokenizer with its chat template. What is trained is
decided here, once: packing, padding and cutting move tokens together with their mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmfast.data.batch import IGNORED, ROUNDED, Batch
from llmfast.data.chat.conversation import Conversation, is_empty
from llmfast.data.chat.prepared import PreparedChat, open_prepared_chat
from llmfast.data.chat.preparing import LABELS, preparing
from llmfast.data.chat.records import read_conversations
from llmfast.data.config import InstructionDataConfig
from llmfast.data.shards import TokenShards
from llmfast.data.windows import PackedWindows
from llmfast.files import read_checked_json

Report = Callable[[str], None]


class ExampleSplit:
    """One side of prepared data: conversations as rows of tokens, each with what is trained of it.

    A row is a conversation's tokens but the last, which is only ever predicted. Longer ones are cut after
    ``max_tokens``; one of which nothing is left to train is left out.

    Attributes:
        cut: conversations that are longer than a row.
        lost: those of them that are left out, because their answers lie behind the cut.
        targets: tokens that are trained, in all.
    """

    def __init__(self, folder: Path, *, max_tokens: int, verify: bool = True):
        self.shards = TokenShards(folder, verify=verify)
        if not self.shards.has_mask:
            raise ValueError(f"{folder} says not which tokens are trained: it was prepared for pretraining")
        starts, lengths = self.shards.document_spans
        rows = np.minimum(lengths - 1, max_tokens)
        targets = [int(self.shards.read_mask(start + 1, row).sum()) for start, row in zip(starts, rows, strict=True)]
        trained = np.array(targets, np.int64) > 0
        self.max_tokens = max_tokens
        self.cut = int((lengths - 1 > max_tokens).sum())
        self.lost = int((~trained).sum())
        self.targets = sum(targets)
        self.starts, self.lengths = starts[trained], rows[trained]
        self.checksum = hashlib.sha256(f"{self.shards.checksum} {max_tokens}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, places: np.ndarray) -> Batch:
        """Examples as ``tokens`` and ``targets`` (B, S), int64, padded at the end; padding is no target.

        ``is_real`` (B, S) is false for padding.
        """
        lengths = self.lengths[places]
        width = min(-(-int(lengths.max()) // ROUNDED) * ROUNDED, self.max_tokens)
        columns = np.arange(width)
        at = self.starts[places][:, None] + columns
        # What is read behind the end of an example is the next one; padding replaces it.
        inside = columns < lengths[:, None]
        # Signed, because IGNORED is negative and shards are not.
        tokens, targets = (
            self.shards.read_at(each.ravel()).reshape(-1, width).astype(np.int64) for each in (at, at + 1)
        )
        trained = self.shards.read_mask_at((at + 1).ravel()).reshape(-1, width) & inside
        return Batch(
            tokens=torch.from_numpy(np.where(inside, tokens, self.shards.eot_token)),
            targets=torch.from_numpy(np.where(trained, targets, IGNORED)),
            is_real=torch.from_numpy(inside),
        )

    def packed(self) -> PackedWindows:
        """Rows of ``max_tokens`` in which examples lie side by side."""
        return PackedWindows(self.shards, self.max_tokens, pieces=(self.starts, self.lengths))

    def tokens(self, place: int) -> tuple[list[int], list[bool]]:
        """The whole of one example, and what of it is trained."""
        start, count = int(self.starts[place]), int(self.lengths[place]) + 1
        return self.shards.read(start, count).tolist(), self.shards.read_mask(start, count).tolist()

    def labels(self) -> list[Any]:
        """What was said of each example when it was prepared.

        Raises:
            ValueError: ``labels.json`` is missing, damaged or of other examples.
        """
        path = self.shards.folder / LABELS
        labels = read_checked_json(path).get("labels", [])
        if len(labels) != len(self):
            raise ValueError(f"{path} is damaged: it is of {len(labels)} answers, not {len(self)}")
        return labels


PreparedInstructions = PreparedChat[ExampleSplit]


def prepare_instructions(config: InstructionDataConfig, folder: Path, *, report: Report = lambda line: None) -> None:
    """Read conversations, render and encode them, and write both sides under ``folder``, whole or not at all.

    Conversations without an answer, and those with an empty one where answers are trained, are left out and counted.

    Raises:
        ValueError: nothing to read, a record or a template that cannot be used, or a side without a conversation.
    """
    form = None if config.form == "auto" else config.form
    with preparing(config, folder, "instructions", report) as preparation:
        chat = preparation.chat
        report(f"template    {chat.template.name}; answers end with {chat.tokenizer.decode([chat.end_token])!r}")
        for where, read in read_conversations(config.sources, form=form, report=report):
            conversation = preparation.with_system(read)
            if reason := _unfit(conversation, config):
                preparation.leave_out(reason, where)
                continue
            tokens, trained = preparation.encode(conversation, config.trained, where)
            preparation.add(preparation.side(conversation), tokens, trained, conversation)


def open_instructions(folder: Path, *, max_tokens: int, verify: bool = True) -> PreparedInstructions:
    """Open what ``prepare_instructions`` wrote.

    Raises:
        ValueError: something is missing or damaged, or no example of a side has anything to train.
    """
    prepared = open_prepared_chat(
        folder,
        lambda side: ExampleSplit(side, max_tokens=max_tokens, verify=verify),
        lambda split: split.shards,
    )
    for split in (prepared.train, prepared.validation):
        if not len(split):
            raise ValueError(
                f"of the {split.lost:,} examples in {split.shards.folder} none has an answer within the first "
                f"{max_tokens} tokens: data.max_tokens is too small"
            )
    return prepared


def describe_instructions(prepared: PreparedInstructions, report: Report) -> None:
    """What there is to train and to evaluate on, a line for each side."""
    for name, split in (("train", prepared.train), ("validation", prepared.validation)):
        tokens = int(split.lengths.sum()) + len(split)
        cut = f"; {split.cut:,} are cut at data.max_tokens {split.max_tokens}" if split.cut else ""
        lost = f", {split.lost:,} of them left out because nothing to train is left" if split.lost else ""
        report(f"{name:<11} {len(split):,} examples, {tokens:,} tokens, {split.targets:,} trained{cut}{lost}")


def _unfit(conversation: Conversation, config: InstructionDataConfig) -> str | None:
    """Why a conversation cannot be trained on; None if it can."""
    answers = conversation.answers
    if not answers:
        return "without an answer"
    trained = answers[-1:] if config.trained == "last" else answers
    if any(is_empty(conversation.messages[place]) for place in trained):
        return "with an empty answer"
    return None
