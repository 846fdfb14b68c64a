"""Answers that were each judged by themselves, good or bad, prepared for training: what KTO learns from.

A prepared folder holds the tokenizer, and ``train`` and ``validation``, each token shards with a loss mask in which
each document is one conversation, cut as it is trained, and ``labels.json``, which says which of them are good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmfast.data.batch import IGNORED, ROUNDED, Batch
from llmfast.data.chat.conversation import Conversation, is_empty
from llmfast.data.chat.prepared import PreparedChat, open_prepared_chat
from llmfast.data.chat.preparing import preparing
from llmfast.data.config import PreferenceDataConfig
from llmfast.data.examples.instructions import ExampleSplit
from llmfast.data.examples.preferences import CHOSEN, answered_conversation
from llmfast.files import json_sha256


class JudgedSplit:
    """One side of prepared data: an answer to each prompt, and whether it is good.

    Batches have two sides as those of a ``llmfast.data.examples.preferences.PairSplit`` do: the answer, and the answer
    to another prompt, which KTO measures its baseline with.
    """

    sides = 2

    def __init__(self, folder: Path, *, max_tokens: int, verify: bool = True):
        self.examples = ExampleSplit(folder, max_tokens=max_tokens, verify=verify)
        self.max_tokens, self.lengths = max_tokens, self.examples.lengths
        self.is_good = np.array(self.examples.labels(), bool)
        self.checksum = json_sha256([self.examples.checksum, self.is_good.tolist()])

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, places: np.ndarray) -> Batch:
        """Answers as ``tokens`` and ``targets`` (B, 2, S), int64; ``is_real``, false for padding; ``is_good`` (B,)."""
        rows = [self.tokens(int(place), side) for place in places for side in range(self.sides)]
        longest = max(len(prompt) + len(answer) - 1 for prompt, answer in rows)
        shape = (len(rows), -(-longest // ROUNDED) * ROUNDED)
        tokens, targets = torch.full(shape, self.examples.shards.eot_token), torch.full(shape, IGNORED)
        is_real = torch.zeros(shape, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(rows):
            ids, start, end = torch.tensor(prompt + answer), len(prompt) - 1, len(prompt) + len(answer) - 1
            tokens[row, :end], is_real[row, :end] = ids[:-1], True
            targets[row, start:end] = ids[start + 1 :]
        columns = {"tokens": tokens, "targets": targets, "is_real": is_real}
        by_example = {name: column.unflatten(0, (-1, self.sides)) for name, column in columns.items()}
        return Batch(**by_example, is_good=torch.from_numpy(self.is_good[places]))

    def tokens(self, place: int, side: int) -> tuple[list[int], list[int]]:
        """A prompt with its own answer (``CHOSEN``) or that of the next example."""
        tokens, trained = self.examples.tokens(place)
        prompt = tokens[: trained.index(True)]
        if side == CHOSEN:
            return prompt, tokens[len(prompt) :]
        other, trained = self.examples.tokens((place + 1) % len(self))
        return prompt, other[trained.index(True) :][: self.max_tokens + 1 - len(prompt)]


PreparedJudgments = PreparedChat[JudgedSplit]


def prepare_judged(
    config: PreferenceDataConfig, folder: Path, *, max_tokens: int, report: Callable[[str], None] = lambda line: None
) -> None:
    """Read answers with their labels, render, encode and cut them, and write both sides under ``folder``.

    Empty answers and prompts that leave no room for an answer are left out and counted, with the first row of each.

    Args:
        config: what to read.
        folder: where to write, whole or not at all.
        max_tokens: tokens in a row; longer answers are cut.
        report: is called with a line for each thing to report.

    Raises:
        ValueError: nothing to read, a record or a template that cannot be used, a side without an answer, or training
            answers that are all good or all bad.
    """
    with preparing(config, folder, "judged answers", report) as preparation:
        for where, record in preparation.records():
            answered, is_good = judged_answer(record, where)
            answered = preparation.with_system(answered)
            if is_empty(answered.messages[-1]):
                preparation.leave_out("with an empty answer", where)
                continue
            tokens, trained = (each[: max_tokens + 1] for each in preparation.encode(answered, "last", where))
            if not any(trained):
                preparation.leave_out(f"with a prompt longer than data.max_tokens {max_tokens}", where)
                continue
            preparation.add(preparation.side(answered), tokens, trained, answered, is_good)
        if len(labels := set(preparation.labels["train"])) == 1:
            raise ValueError(f"all answers to train on have the label {labels.pop()}: there is nothing to compare")


def open_judged(folder: Path, *, max_tokens: int, verify: bool = True) -> PreparedJudgments:
    """Open what ``prepare_judged`` wrote with the same ``max_tokens``.

    Raises:
        ValueError: something is missing or damaged.
    """
    return open_prepared_chat(
        folder,
        lambda side: JudgedSplit(side, max_tokens=max_tokens, verify=verify),
        lambda split: split.examples.shards,
    )


def describe_judged(prepared: PreparedJudgments, report: Callable[[str], None]) -> None:
    """What there is to train and to evaluate on, a line for each side."""
    for name, split in (("train", prepared.train), ("validation", prepared.validation)):
        good = int(split.is_good.sum())
        report(f"{name:<11} {len(split):,} answers, {good:,} good and {len(split) - good:,} bad")


def judged_answer(record: Mapping[str, Any], where: str) -> tuple[Conversation, bool]:
    """The answer that a record holds, with its prompt, and whether it is good.

    ``completion`` is the answer to ``prompt``, both texts or lists of messages, or to Alpaca's ``instruction`` and
    ``input``; ``label`` is true or false.

    Raises:
        ValueError: another form; the message begins with ``where``.

    >>> judged_answer({"prompt": "Hi", "completion": "Hello!", "label": True}, "a.json")[1]
    True
    """
    if "completion" not in record or "label" not in record:
        columns = ", ".join(map(str, record)) or "no columns"
        raise ValueError(f"{where} has the columns {columns}: a judged answer has a prompt, completion and label")
    if record["label"] not in (True, False):
        raise ValueError(f"{where}: label is {record['label']!r}, which is neither true nor false")
    found = answered_conversation(record, "completion", where)
    if not found.messages or found.messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: completion does not end with an answer of the assistant")
    return found, bool(record["label"])
