"""Multiple choice: the likelihood of each answer after its prompt, by four measures, with standard errors."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmfast.evaluation.likelihood import Likelihood, encode_pair, log_likelihoods
from llmfast.evaluation.tasks import Task
from llmfast.evaluation.tasks.questions import Question
from llmfast.evaluation.tasks.rows import Row
from llmfast.evaluation.team import ALONE, Team
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asked:
    """A question as a model reads it: examples and opening in front of its prompts."""

    question: Question
    opening: str
    where: str


@dataclass(frozen=True)
class Figure:
    """A mean over questions with its standard error, which is None for one question."""

    value: float
    stderr: float | None


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
        few_shot: how many examples, separated by empty lines.
        seed: draws them, for one question after another: a limit changes no example.
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
    pool = [question for _, question in read] if own else []
    if few_shot and examples is not None:
        pool = [task.read(row) for row in examples]
    if few_shot and len(pool) - own < few_shot:
        raise ValueError(f"task {task.name}: few_shot is {few_shot}, but there are {len(pool) - own} other rows")
    draw = random.Random(seed)
    asked = []
    for number, (row, question) in enumerate(read[:limit]):
        chosen = draw.sample(range(len(pool)), few_shot + own) if few_shot else []
        shown = [pool[place].solved for place in chosen if not (own and place == number)][:few_shot]
        asked.append(Asked(question, task.opening(row) + "".join(f"{text}\n\n" for text in shown), row.where))
    return asked


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    task: Task,
    asked: Sequence[Asked],
    *,
    truncate: bool = False,
    team: Team = ALONE,
) -> dict[str, Figure]:
    """The figures of a task.

    For multiple choice, the shares of questions whose right answer has the highest log-likelihood: ``acc`` of the sum,
    ``acc_char``, ``acc_byte`` and ``acc_token`` of the sum divided by the answer's characters (the harness's and most
    papers' ``acc_norm``), its UTF-8 bytes, or its tokens. The first of equals is chosen. For LAMBADA, ``acc``, the
    share of words each of whose tokens is the likeliest, and ``perplexity`` of the words.

    Raises:
        ValueError: a prompt is longer than the model's context, without ``truncate``; or an answer is.
    """
    pairs = []
    for each in asked:
        prompts_and_answers = zip(each.question.prompts, each.question.answers, strict=True)
        own = [encode_pair(tokenizer, each.opening + prompt, f" {answer}") for prompt, answer in prompts_and_answers]
        if (answer := max(len(pair.continuation) for pair in own)) > model.config.context:
            raise ValueError(
                f"{each.where}: an answer has {answer} tokens, more than the model's context "
                f"{model.config.context} holds"
            )
        longest = max(len(pair.context) + len(pair.continuation) - 1 for pair in own)
        if longest > model.config.context and not truncate:
            raise ValueError(
                f"{each.where}: the prompt with an answer has {longest + 1} tokens, more than the model's context "
                f"{model.config.context} holds: use fewer examples, or truncate to cut the start of such prompts off"
            )
        pairs += own
    found = log_likelihoods(model, pairs, truncate=truncate, team=team)
    results = iter(zip(found, (len(pair.continuation) for pair in pairs), strict=True))
    answers = [list(itertools.islice(results, len(each.question.answers))) for each in asked]
    if task.is_cloze:
        return _cloze([own[0][0] for own in answers])
    right = [_right(each.question, own) for each, own in zip(asked, answers, strict=True)]
    names = ("acc", "acc_char", "acc_byte", "acc_token")
    return {name: mean(column) for name, column in zip(names, zip(*right, strict=True), strict=True)}


def mean(values: Sequence[float]) -> Figure:
    """The mean and the sample standard deviation over the root of the count.

    >>> mean([1.0, 0.0, 1.0, 0.0]).value
    0.5
    """
    array = np.asarray(values, np.float64)
    stderr = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Figure(float(array.mean()), stderr)


def _right(question: Question, found: Sequence[tuple[Likelihood, int]]) -> list[float]:
    """1 or 0 for each way to choose."""
    sums = np.array([likelihood.log_prob for likelihood, _ in found])
    # An answer without characters would divide by nothing; encode_pair gives its space a token.
    characters = np.array([max(1, len(answer)) for answer in question.answers])
    utf8 = np.array([max(1, len(answer.encode())) for answer in question.answers])
    tokens = np.array([count for _, count in found])
    lengths = (np.ones(len(sums)), characters, utf8, tokens)
    return [float(np.argmax(sums / length) == question.label) for length in lengths]


def _cloze(found: Sequence[Likelihood]) -> dict[str, Figure]:
    nats = mean([-each.log_prob for each in found])
    perplexity = math.exp(min(nats.value, 700.0))  # the largest that a float holds
    stderr = None if nats.stderr is None else perplexity * nats.stderr  # to first order
    return {"acc": mean([float(each.is_greedy) for each in found]), "perplexity": Figure(perplexity, stderr)}
