"""Preference pairs prepared for training: a prompt with a chosen and a rejected answer, as rows of tokens.

A prepared folder holds the tokenizer, and ``train`` and ``validation``, each token shards with a loss mask in which
documents 2i and 2i + 1 are the chosen and the rejected side of pair i, cut as they are trained. What is compared is
the last answer; earlier turns are part of the prompt.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from llmfast.data.batch import IGNORED, ROUNDED, Batch
from llmfast.data.chat.conversation import Conversation, conversation, is_empty
from llmfast.data.chat.encoder import Encoded
from llmfast.data.chat.prepared import PreparedChat, open_prepared_chat
from llmfast.data.chat.preparing import preparing
from llmfast.data.config import PreferenceDataConfig
from llmfast.data.examples.instructions import (
    ExampleSplit,
)

Report = Callable[[str], None]
CHOSEN, REJECTED, MISMATCHED = range(3)
"""The sides of a pair, in the order of a batch's second dimension. The third is a pair's prompt with the chosen answer
of another pair, which KTO measures its baseline with."""


class Pair(NamedTuple):
    """Two conversations that differ in their last answer."""

    chosen: Conversation
    rejected: Conversation


class PairSplit:
    """One side of prepared data: pairs as rows of tokens, with the tokens of the answers as targets.

    Attributes:
        mismatched: whether batches have the third side, see ``MISMATCHED``.
    """

    def __init__(self, folder: Path, *, max_tokens: int, mismatched: bool = False, verify: bool = True):
        self.examples = ExampleSplit(folder, max_tokens=max_tokens, verify=verify)
        assert not self.examples.lost
        assert not self.examples.cut
        self.max_tokens, self.mismatched = max_tokens, mismatched
        self.checksum = self.examples.checksum

    def __len__(self) -> int:
        return len(self.examples) // 2

    @property
    def sides(self) -> int:
        """Answers per pair in a batch."""
        return 3 if self.mismatched else 2

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The longer side of each pair, in tokens, (pairs,)."""
        return self.examples.lengths.reshape(-1, 2).max(1)

    def batch(self, places: np.ndarray) -> Batch:
        """Pairs as ``tokens`` and ``targets`` (B, sides, S), int64, and ``is_real``, false for padding.

        A side's tokens are those of its prompt and its answer but the last; all but the answer's are no targets.
        """
        rows = (2 * places[:, None] + np.arange(2)).ravel()
        batch = self.examples.batch(rows)
        columns = batch.columns
        if self.mismatched:
            columns = _joined(columns, self._mismatched(places), self.examples.shards.eot_token)
        return Batch(**{name: column.unflatten(0, (len(places), self.sides)) for name, column in columns.items()})

    def tokens(self, place: int, side: int) -> tuple[list[int], list[int]]:
        """Prompt and answer of one side of a pair."""
        if side == MISMATCHED:
            other = (place + 1) % len(self)
            prompt, answer = self.tokens(place, CHOSEN)[0], self.tokens(other, CHOSEN)[1]
            return prompt, answer[: self.max_tokens + 1 - len(prompt)]
        tokens, trained = self.examples.tokens(2 * place + side)
        start = trained.index(True)
        return tokens[:start], tokens[start:]

    def _mismatched(self, places: np.ndarray) -> list[tuple[list[int], list[int]]]:
        return [self.tokens(int(place), MISMATCHED) for place in places]


def _joined(
    columns: Mapping[str, torch.Tensor], extra: Sequence[tuple[list[int], list[int]]], padding: int
) -> dict[str, torch.Tensor]:
    """Rows of two sides a pair, with a third row after each two."""
    longest = max(len(prompt) + len(answer) - 1 for prompt, answer in extra)
    width = max(columns["tokens"].shape[1], -(-longest // ROUNDED) * ROUNDED)
    fill = {"tokens": padding, "targets": IGNORED, "is_real": False}
    found = {}
    for name, column in columns.items():
        wide = column.new_full((len(extra), 3, width), fill[name])
        wide[:, :2, : column.shape[1]] = column.unflatten(0, (-1, 2))
        found[name] = wide
    for row, (prompt, answer) in enumerate(extra):
        ids, start = torch.tensor(prompt + answer), len(prompt)
        found["tokens"][row, 2, : len(ids) - 1] = ids[:-1]
        found["targets"][row, 2, start - 1 : len(ids) - 1] = ids[start:]
        found["is_real"][row, 2, : len(ids) - 1] = True
    return {name: column.flatten(0, 1) for name, column in found.items()}


PreparedPairs = PreparedChat[PairSplit]


def prepare_pairs(
    config: PreferenceDataConfig, folder: Path, *, max_tokens: int, report: Report = lambda line: None
) -> None:
    """Read pairs, render, encode and cut them, and write both sides under ``folder``, whole or not at all.

    Pairs that say nothing are left out and counted, with the first row of each kind: equal answers, also those that
    are equal once they are cut, empty answers, and prompts that leave no room for an answer.

    Args:
        config: what to read.
        folder: where to write.
        max_tokens: tokens in a row; longer answers are cut.
        report: is called with a line for each thing to report.

    Raises:
        ValueError: nothing to read, a record or a template that cannot be used, or a side without a pair.
    """
    cut = 0
    with preparing(config, folder, "preference pairs", report) as preparation:
        for where, record in preparation.records():
            pair = Pair(*map(preparation.with_system, preference_pair(record, where)))
            if reason := unfit(pair):
                preparation.leave_out(reason, where)
                continue
            sides = [preparation.encode(each, "last", where) for each in pair]
            if reason := _unfit_when_cut(*sides, max_tokens):
                preparation.leave_out(reason, where)
                continue
            cut += any(len(side.tokens) > max_tokens + 1 for side in sides)
            split = preparation.side(pair.chosen)
            for (tokens, trained), conversation in zip(sides, pair, strict=True):
                preparation.add(split, tokens[: max_tokens + 1], trained[: max_tokens + 1], conversation)
    if cut:
        report(f"cut         answers of {cut:,} pairs, at data.max_tokens {max_tokens}")


def open_pairs(folder: Path, *, max_tokens: int, mismatched: bool = False, verify: bool = True) -> PreparedPairs:
    """Open what ``prepare_pairs`` wrote with the same ``max_tokens``.

    Raises:
        ValueError: something is missing or damaged.
    """
    return open_prepared_chat(
        folder,
        lambda side: PairSplit(side, max_tokens=max_tokens, mismatched=mismatched, verify=verify),
        lambda split: split.examples.shards,
    )


def describe_pairs(prepared: PreparedPairs, report: Report) -> None:
    """What there is to train and to evaluate on, a line for each side."""
    for name, split in (("train", prepared.train), ("validation", prepared.validation)):
        report(f"{name:<11} {len(split):,} pairs, {split.examples.targets:,} tokens in their answers")


# --- records ---------------------------------------------------------------------------------------------------------


def preference_pair(record: Mapping[str, Any], where: str) -> Pair:
    """The pair that a record holds.

    ``chosen`` and ``rejected`` are texts or lists of messages. Lists are answers to ``prompt``, or whole conversations
    that begin with it. The prompt is a text, a list of messages, Alpaca's ``instruction`` and ``input``, or, where
    there is none, what both conversations begin with. Texts without a prompt are conversations in Anthropic's form,
    with ``Human:`` and ``Assistant:`` before each turn.

    Raises:
        ValueError: another form; the message begins with ``where``.

    >>> pair = preference_pair({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, "a.json")
    >>> [each.messages[-1]["content"] for each in pair]
    ['Hello!', 'What?']
    """
    if "chosen" not in record or "rejected" not in record:
        columns = ", ".join(map(str, record)) or "no columns"
        raise ValueError(f"{where} has the columns {columns}: a pair has chosen and rejected, and mostly a prompt")
    pair = Pair(*(answered_conversation(record, side, where) for side in ("chosen", "rejected")))
    for side, each in zip(("chosen", "rejected"), pair, strict=True):
        if not each.messages or each.messages[-1]["role"] != "assistant":
            raise ValueError(f"{where}: {side} does not end with an answer of the assistant")
    return pair


def answered_conversation(record: Mapping[str, Any], side: str, where: str) -> Conversation:
    """The conversation that ends with the answer in the column ``side`` of a record, see ``preference_pair``.

    Raises:
        ValueError: another form; the message begins with ``where``.
    """
    answer, prompt = record[side], record.get("prompt")
    tools = {"tools": record["tools"]} if record.get("tools") else {}
    if answer is None:
        answer = ""
    if isinstance(answer, str) and "instruction" in record and prompt is None:
        return conversation({**record, "output": answer}, "alpaca", where)
    if isinstance(answer, str) and prompt is None:
        return conversation({"messages": _anthropic(answer, side, where)}, "messages", where)
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if not isinstance(answer, Sequence) or not all(isinstance(turn, Mapping) for turn in answer):
        raise ValueError(f"{where}: {side} is neither text nor a list of messages")
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    is_whole = bool(answer) and answer[0].get("role") in ("system", "user")
    messages = [*answer] if is_whole else [*asked, *answer]
    return conversation({"messages": messages, **tools}, "messages", where)


def _anthropic(text: str, side: str, where: str) -> list[dict[str, str]]:
    """A conversation written with ``Human:`` and ``Assistant:`` at the beginnings of turns."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant): ?", text)
    if parts[0].strip() or len(parts) < 5:
        raise ValueError(
            f"{where}: {side} is a text, but there is no prompt, and no turns of Human: and Assistant: in it"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": content} for name, content in zip(parts[1::2], parts[2::2], strict=True)]


def unfit(pair: Pair) -> str | None:
    """Why a pair cannot be trained on, whatever its length; None if it can."""
    if pair.chosen.messages[:-1] != pair.rejected.messages[:-1]:
        return "with answers to different prompts"
    if any(is_empty(each.messages[-1]) for each in pair):
        return "with an empty answer"
    if pair.chosen.messages[-1] == pair.rejected.messages[-1]:
        return "with equal answers"
    return None


# --- tokens ----------------------------------------------------------------------------------------------------------


def _unfit_when_cut(chosen: Encoded, rejected: Encoded, max_tokens: int) -> str | None:
    """Why nothing is left to compare of a pair once its rows are cut; None if something is."""
    start = chosen.trained.index(True)
    if start > max_tokens:
        return f"with a prompt longer than data.max_tokens {max_tokens}"
    if chosen.tokens[: max_tokens + 1] == rejected.tokens[: max_tokens + 1]:
        return f"with answers that are equal once they are cut at data.max_tokens {max_tokens}"
    return None
