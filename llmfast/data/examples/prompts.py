"""Prompts with right answers, prepared for sampling: as tokens, up to where an answer begins.

A prepared folder holds the tokenizer, and ``train.json`` and ``validation.json``, each with a record per prompt: its
tokens, the right answer, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmfast.data.chat.conversation import Conversation, conversation
from llmfast.data.chat.prepared import PreparedChat
from llmfast.data.chat.preparing import preparing
from llmfast.data.config import PromptDataConfig
from llmfast.data.prepare import SPLITS
from llmfast.files import json_sha256, read_checked_json, write_checked_json
from llmfast.tokenizer import Tokenizer

Report = Callable[[str], None]
PROMPTS, ANSWERS = ("prompt", "question", "instruction"), ("answer", "solution", "output")


class PromptRecord(NamedTuple):
    """One prompt."""

    tokens: list[int]
    answer: Any
    where: str
    """The record it comes from, for messages."""


class PromptSplit:
    """One side of prepared prompts."""

    def __init__(self, file: Path):
        prompts = read_checked_json(file).get("prompts")
        try:
            self.records = [PromptRecord(*each) for each in prompts]
        except TypeError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
        self.checksum = json_sha256(prompts)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: int) -> PromptRecord:
        return self.records[place]


PreparedPrompts = PreparedChat[PromptSplit]


def prepare_prompts(
    config: PromptDataConfig, folder: Path, *, longest: int, report: Report = lambda line: None
) -> None:
    """Read prompts, render and encode them, and write both sides under ``folder``, whole or not at all.

    Args:
        config: what to read.
        folder: where to write.
        longest: tokens of the longest prompt; longer ones are left out and counted.
        report: is called with a line for each thing to report.

    Raises:
        ValueError: nothing to read, a record or a template that cannot be used, or a side without a prompt.
    """
    sides: dict[str, list[list[Any]]] = {split: [] for split in SPLITS}
    with preparing(config, folder, "prompts", report) as preparation:
        for where, record in preparation.records():
            asked, answer = prompt_of(record, config, where)
            asked = preparation.with_system(asked)
            tokens = preparation.prompt(asked, where)
            if len(tokens) > longest:
                preparation.leave_out(
                    f"with prompts longer than the {longest} tokens that leave room for an answer", where
                )
                continue
            sides[preparation.side(asked)].append([tokens, answer, where])
        for split, prompts in sides.items():
            write_checked_json(preparation.folder / f"{split}.json", {"prompts": prompts})


def open_prompts(folder: Path) -> PreparedPrompts:
    """Open what ``prepare_prompts`` wrote.

    Raises:
        ValueError: something is missing or damaged.
    """
    return PreparedPrompts(Tokenizer.load(folder), *(PromptSplit(folder / f"{split}.json") for split in SPLITS))


def describe_prompts(prepared: PreparedPrompts, report: Report) -> None:
    """What there is to sample from and to evaluate on, a line for each side."""
    for name, split in (("train", prepared.train), ("validation", prepared.validation)):
        tokens = sum(len(record.tokens) for record in split.records)
        report(f"{name:<11} {len(split):,} prompts, {tokens:,} tokens")


def prompt_of(record: Mapping[str, Any], config: PromptDataConfig, where: str) -> tuple[Conversation, Any]:
    """The prompt of a record, as messages without an answer, and the right answer.

    Raises:
        ValueError: the columns are missing, or the prompt is neither text nor messages; begins with ``where``.

    >>> prompt_of({"question": "2 + 2?", "answer": "#### 4"}, PromptDataConfig(), "a.json")[1]
    '#### 4'
    """
    prompt, answer = _column(record, config.prompt, PROMPTS, "prompt", where), None
    answer = record[_column(record, config.answer, ANSWERS, "answer", where)]
    asked = record[prompt]
    if prompt == "instruction" and isinstance(asked, str):
        whole = conversation({**record, "output": ""}, "alpaca", where)
        return Conversation(whole.messages[:-1]), answer
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    found = conversation({"messages": messages}, "messages", where) if messages else Conversation(())
    if not found.messages or found.messages[-1]["role"] == "assistant":
        raise ValueError(f"{where}: {prompt} does not end with something to answer")
    return found, answer


def _column(record: Mapping[str, Any], wanted: str, known: tuple[str, ...], what: str, where: str) -> str:
    names = known if wanted == "auto" else (wanted,)
    found = [name for name in names if record.get(name) is not None]
    if not found:
        columns = ", ".join(map(str, record)) or "no columns"
        raise ValueError(f"{where} has the columns {columns}; data.{what} names the one with the {what}")
    return found[0]
