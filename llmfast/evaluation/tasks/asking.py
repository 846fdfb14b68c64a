"""Questions of a task as a model reads them: with examples before them, as one text or as a conversation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmfast.data.chat.conversation import Message
from llmfast.data.chat.encoder import ChatEncoder
from llmfast.evaluation.tasks import Task
from llmfast.evaluation.tasks.rows import Row
from llmfast.inference import prompts
from llmfast.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asked:
    """A question, what is before it, and where it is from."""

    question: Any
    """A ``Question`` or a ``Problem``."""
    intro: str
    examples: tuple[Any, ...]
    """Others of the same kind."""
    where: str

    @property
    def opening(self) -> str:
        """The text before a prompt."""
        return self.intro + "".join(f"{each.solved}\n\n" for each in self.examples)

    def messages(self, prompt: str) -> list[Message]:
        """The examples as earlier turns of a conversation in which a user says ``prompt``."""
        turns = [turn for each in self.examples for turn in each.turn] + [prompt]
        turns[0] = self.intro + turns[0]
        return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(turns)]


def prompt_tokens_of(tokenizer: Tokenizer, asked: Asked, prompt: str, encoder: ChatEncoder | None) -> list[int]:
    """The tokens that a model continues: of the text, or with an ``encoder`` of the conversation."""
    if encoder is None:
        return prompts.prompt_tokens(tokenizer, asked.opening + prompt)
    return encoder.prompt_of(asked.messages(prompt))


def ask(
    task: Task,
    rows: Iterable[Row],
    *,
    limit: int | None = None,
    few_shot: int = 0,
    seed: int = 0,
    examples: Iterable[Row] | None = None,
) -> list[Asked]:
    """The questions of a task, each with examples of its own before it.

    Args:
        task: the task.
        rows: what to ask.
        limit: only so many questions, the first.
        few_shot: how many examples.
        seed: draws them, for one question after another: a limit changes no example. Of a task whose questions belong
            to subjects, the first examples of the subject are taken, in their order.
        examples: the rows to draw from; the other ``rows`` if left out, which are then all read.

    Raises:
        ValueError: a row with missing fields, no questions, or not enough examples.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if few_shot < 0:
        raise ValueError(f"few_shot must be at least 0, got {few_shot}")
    own = bool(few_shot) and examples is None
    read = [(row, task.read(row)) for row in (rows if own else itertools.islice(rows, limit))]
    if not read:
        raise ValueError(f"task {task.name}: there are no questions to answer")
    pool = read if own else []
    if few_shot and examples is not None:
        pool = [(row, task.read(row)) for row in examples]
    draw = random.Random(seed)
    asked = []
    for number, (row, question) in enumerate(read[:limit]):
        shown = _examples(task, pool, row, number if own else None, few_shot, draw) if few_shot else []
        asked.append(Asked(question, task.opening(row), tuple(shown), row.where))
    return asked


def _examples(
    task: Task, pool: list[tuple[Row, Any]], row: Row, own: int | None, few_shot: int, draw: random.Random
) -> list[Any]:
    """Examples for a row, which is ``pool[own]`` if it is among them."""
    places = range(len(pool))
    if task.subject is not None:
        subject = row.text(task.subject)
        places = [place for place in places if pool[place][0].text(task.subject) == subject]
    others = len(places) - (own is not None)
    if others < few_shot:
        of = "" if task.subject is None else f" of the subject {subject}"
        raise ValueError(f"task {task.name}: few_shot is {few_shot}, but there are {others} other rows{of}")
    chosen = places if task.subject is not None else draw.sample(places, few_shot + (own is not None))
    return [pool[place][1] for place in chosen if place != own][:few_shot]
