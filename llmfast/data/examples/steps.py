"""Answers whose steps were judged, prepared for training: what process and outcome reward models learn from.

A prepared folder holds the tokenizer, and ``train`` and ``validation``, each token shards with a mask in which each
document is one conversation, cut as it is trained, and the mask is true for the last token of each judged step.
``labels.json`` has the labels of these steps in their order. An answer that was judged as a whole is one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from llmfast.data.batch import ROUNDED, Batch
from llmfast.data.chat.conversation import Conversation
from llmfast.data.chat.prepared import PreparedChat, open_prepared_chat
from llmfast.data.chat.preparing import Preparation, preparing
from llmfast.data.config import PreferenceDataConfig
from llmfast.data.examples.instructions import ExampleSplit
from llmfast.data.examples.judged import judged_answer
from llmfast.data.examples.preferences import answered_conversation
from llmfast.files import json_sha256
from llmfast.tokenizer import Tokenizer


class JudgedSteps(NamedTuple):
    """An answer with its prompt, and how good its steps are."""

    answered: Conversation
    labels: list[float]
    """Of each step, or of the answer as a whole: 1 if it is right, 0 if it is wrong, or a probability."""
    is_whole: bool
    """Whether the only label is of the whole answer, whose lines are then no steps."""


class StepSplit:
    """One side of prepared data: answers, the last tokens of their steps, and the labels of these."""

    def __init__(self, folder: Path, *, max_tokens: int, verify: bool = True):
        self.examples = ExampleSplit(folder, max_tokens=max_tokens, verify=verify)
        self.max_tokens, self.lengths = max_tokens, self.examples.lengths + 1
        self.labels: list[list[float]] = self.examples.labels()
        self.checksum = json_sha256([self.examples.checksum, self.labels])

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def most(self) -> int:
        """The largest number of steps of an answer."""
        return max(map(len, self.labels))

    def batch(self, places: np.ndarray) -> Batch:
        """Answers as ``tokens`` (B, S) int64 and ``is_real``, false for padding; ``is_end`` (B, S) bool, true for the
        last token of each step; ``labels`` (B, S) float32, the label of the step that ends there, 0 elsewhere."""
        shape = (len(places), -(-int(self.lengths[places].max()) // ROUNDED) * ROUNDED)
        tokens, labels = torch.full(shape, self.examples.shards.eot_token), torch.zeros(shape)
        is_real, is_end = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for row, place in enumerate(places):
            ids, ends = self.examples.tokens(int(place))
            tokens[row, : len(ids)], is_real[row, : len(ids)] = torch.tensor(ids), True
            is_end[row, : len(ids)] = torch.tensor(ends)
            labels[row, is_end[row]] = torch.tensor(self.labels[place])
        return Batch(tokens=tokens, is_real=is_real, is_end=is_end, labels=labels)


PreparedSteps = PreparedChat[StepSplit]


def prepare_steps(
    config: PreferenceDataConfig, folder: Path, *, max_tokens: int, report: Callable[[str], None] = lambda line: None
) -> None:
    """Read judged answers, render, encode and cut them, and write both sides under ``folder``.

    Answers of which no step ends within a row are left out and counted.

    Args:
        config: what to read.
        folder: where to write, whole or not at all.
        max_tokens: tokens in a row but the last; longer answers are cut, and the steps behind the cut are left out.
        report: is called with a line for each thing to report.

    Raises:
        ValueError: nothing to read, a record or a template that cannot be used, a side without an answer, or training
            steps that all have the same label.
    """
    cut = 0
    with preparing(config, folder, "judged answers", report) as preparation:
        for where, record in preparation.records():
            judged = judged_whole(record, where) if config.form == "judged" else judged_steps(record, where)
            judged = judged._replace(answered=preparation.with_system(judged.answered))
            tokens, ends = _encoded(preparation, judged, where)
            kept = [end for end in ends if end <= max_tokens]
            if not kept:
                preparation.leave_out(f"of which no step ends within data.max_tokens {max_tokens}", where)
                continue
            cut += len(ends) - len(kept)
            tokens = tokens[: max_tokens + 1]
            is_end = np.isin(np.arange(len(tokens)), kept)
            side = preparation.side(judged.answered)
            preparation.add(side, tokens, is_end, judged.answered, judged.labels[: len(kept)])
        if len(labels := {label for each in preparation.labels["train"] for label in each}) == 1:
            raise ValueError(f"all steps to train on have the label {labels.pop():g}: nothing is compared")
    if cut:
        report(f"cut         {cut:,} steps, which end behind data.max_tokens {max_tokens}")


def open_steps(folder: Path, *, max_tokens: int, verify: bool = True) -> PreparedSteps:
    """Open what ``prepare_steps`` wrote with the same ``max_tokens``.

    Raises:
        ValueError: something is missing or damaged.
    """
    return open_prepared_chat(
        folder,
        lambda side: StepSplit(side, max_tokens=max_tokens, verify=verify),
        lambda split: split.examples.shards,
    )


def describe_steps(prepared: PreparedSteps, report: Callable[[str], None]) -> None:
    """What there is to train and to evaluate on, a line for each side."""
    for name, split in (("train", prepared.train), ("validation", prepared.validation)):
        labels = [label for each in split.labels for label in each]
        report(f"{name:<11} {len(split):,} answers, {len(labels):,} judged steps, {np.mean(labels):.1%} of them right")


# --- records ---------------------------------------------------------------------------------------------------------


def judged_steps(record: Mapping[str, Any], where: str) -> JudgedSteps:
    """The judged steps that a record holds, in the form of trl's stepwise supervision.

    ``completions`` is a list of steps that follow ``prompt``, and ``labels`` has true, false or a probability for each.
    In the answer each step is a line, without spaces at its ends.

    Raises:
        ValueError: another form; the message begins with ``where``.

    >>> judged_steps({"prompt": "1+2+3", "completions": ["1+2=3", "3+3=7"], "labels": [True, False]}, "a.json").labels
    [1.0, 0.0]
    """
    steps, labels = record.get("completions"), record.get("labels")
    if not isinstance(steps, list) or not isinstance(labels, list):
        columns = ", ".join(map(str, record)) or "no columns"
        raise ValueError(f"{where} has the columns {columns}: judged steps are lists, completions and labels")
    if len(steps) != len(labels) or not steps:
        raise ValueError(f"{where} has {len(steps)} completions and {len(labels)} labels: each step needs one label")
    for place, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip() or "\n" in step.strip():
            raise ValueError(f"{where}: completions[{place}] is {step!r}: a step is a line of text")
    answered = answered_conversation({**record, "completions": "\n".join(map(str.strip, steps))}, "completions", where)
    return JudgedSteps(answered, [_label(each, f"{where}: labels[{n}]") for n, each in enumerate(labels)], False)


def judged_whole(record: Mapping[str, Any], where: str) -> JudgedSteps:
    """An answer that was judged as a whole, see ``llmfast.data.examples.judged.judged_answer``."""
    answered, is_good = judged_answer(record, where)
    return JudgedSteps(answered, [float(is_good)], True)


def _label(label: Any, where: str) -> float:
    if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
        raise ValueError(f"{where} is {label!r}, which is neither true, nor false, nor a probability")
    return float(label)


# --- tokens ----------------------------------------------------------------------------------------------------------


def step_ends(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Places of the last tokens of the steps of an answer.

    A step is a line that is not empty. It ends with the token that has its line break, and the last one with the
    answer, the special token that ends it included.

    >>> step_ends([72, 105, 10, 10, 33], Tokenizer.train(["a"], 257, allow_smaller=True))
    [2, 4]
    """
    ends, has_text = [], False
    for place, token in enumerate(tokens):
        special = tokenizer.is_special_token(token)
        first, *others = (b"" if special else tokenizer.decode_single_token_bytes(token)).split(b"\n")
        has_text = has_text or bool(first.strip())
        if others and has_text:
            ends.append(place)
            has_text = False
        has_text = has_text or bool(others and others[-1].strip())
    if has_text:
        ends.append(len(tokens) - 1)
    return ends


def _encoded(preparation: Preparation, judged: JudgedSteps, where: str) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and the places where judged steps end."""
    tokens, trained = preparation.encode(judged.answered, "last", where)
    if judged.is_whole:
        return tokens, [len(tokens) - 1]
    chat, start = preparation.chat, trained.index(True)
    ends = [start + place for place in step_ends(tokens[start:], chat.tokenizer)]
    if len(ends) != len(judged.labels):
        raise ValueError(
            f"{where}: the template {chat.template.name} renders {len(judged.labels)} steps as {len(ends)} lines"
        )
    return tokens, ends
