"""Multiple choice: the likelihood of each answer after its prompt, by four measures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from llmfast.data.chat.encoder import ChatEncoder
from llmfast.data.chat.opening import saved_chat
from llmfast.evaluation.likelihood import Likelihood, Pair, encode_pair, log_likelihoods
from llmfast.evaluation.tasks import Task
from llmfast.evaluation.tasks.asking import Asked, prompt_tokens_of
from llmfast.evaluation.tasks.figures import Figure, mean
from llmfast.evaluation.tasks.questions import Question
from llmfast.evaluation.team import ALONE, Team
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer

CHOICES = ("acc", "acc_char", "acc_byte", "acc_token")


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    task: Task,
    asked: Sequence[Asked],
    *,
    truncate: bool = False,
    team: Team = ALONE,
) -> dict[str, Figure]:
    """The figures of a task (see ``score`` and ``figures``)."""
    return figures(score(model, tokenizer, asked, truncate=truncate, team=team), is_cloze=task.is_cloze)


def score(
    model: Decoder,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    *,
    truncate: bool = False,
    chat: bool = False,
    share: bool = False,
    team: Team = ALONE,
) -> dict[str, list[float]]:
    """For each question, 1 or 0 for the right answer having the highest log-likelihood: ``acc`` of the sum,
    ``acc_char``, ``acc_byte`` and ``acc_token`` of the sum divided by the answer's characters (the harness's and most
    papers' ``acc_norm``), its UTF-8 bytes, or its tokens. The first of equals is chosen. And of the right answer:
    ``greedy``, whether each of its tokens is the likeliest, and ``nats``, its negative log-likelihood.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        asked: the questions.
        truncate: cut the start off prompts that are too long.
        chat: ask in a conversation, by the tokenizer's chat template, where the answer is what the assistant says.
        share: compute what answers share at their beginning once (see ``log_likelihoods``).
        team: the processes that share the questions out.

    Raises:
        ValueError: a prompt is longer than the model's context, without ``truncate``; or an answer is; or ``chat`` with
            a model that has no chat template.
    """
    encoder = saved_chat(tokenizer) if chat else None
    pairs = []
    for each in asked:
        own = _pairs(tokenizer, each, encoder)
        _check_lengths(each, own, model.config.context, truncate)
        pairs += own
    found = log_likelihoods(model, pairs, truncate=truncate, share=share, team=team)
    results = iter(zip(found, (len(pair.continuation) for pair in pairs), strict=True))
    columns: dict[str, list[float]] = {}
    for each in asked:
        answers = list(itertools.islice(results, len(each.question.answers)))
        for name, value in _values(each.question, answers).items():
            columns.setdefault(name, []).append(value)
    return columns


def figures(columns: Mapping[str, Sequence[float]], *, is_cloze: bool = False) -> dict[str, Figure]:
    """Means over questions of what ``score`` found: the shares of right answers or, where there is one answer
    (LAMBADA), ``acc``, the share of words each of whose tokens is the likeliest, and the ``perplexity`` of the words.
    """
    if not is_cloze:
        return {name: mean(columns[name]) for name in CHOICES}
    nats = mean(columns["nats"])
    perplexity = math.exp(min(nats.value, 700.0))  # the largest that a float holds
    stderr = None if nats.stderr is None else perplexity * nats.stderr  # to first order
    return {"acc": mean(columns["greedy"]), "perplexity": Figure(perplexity, stderr)}


def _pairs(tokenizer: Tokenizer, asked: Asked, encoder: ChatEncoder | None) -> list[Pair]:
    question = asked.question
    answers = zip(question.prompts, question.answers, strict=True)
    if encoder is None:
        return [encode_pair(tokenizer, asked.opening + prompt, f" {answer}") for prompt, answer in answers]
    return [
        Pair(prompt_tokens_of(tokenizer, asked, prompt, encoder), tokenizer.encode_ordinary(answer))
        for prompt, answer in answers
    ]


def _check_lengths(asked: Asked, pairs: Sequence[Pair], context: int, truncate: bool) -> None:
    if (answer := max(len(pair.continuation) for pair in pairs)) > context:
        raise ValueError(f"{asked.where}: an answer has {answer} tokens, more than the model's context {context} holds")
    longest = max(len(pair.context) + len(pair.continuation) - 1 for pair in pairs)
    if longest > context and not truncate:
        raise ValueError(
            f"{asked.where}: the prompt with an answer has {longest + 1} tokens, more than the model's context "
            f"{context} holds: use fewer examples, or truncate to cut the start of such prompts off"
        )


def _values(question: Question, found: Sequence[tuple[Likelihood, int]]) -> dict[str, float]:
    """What is known of one question."""
    sums = np.array([likelihood.log_prob for likelihood, _ in found])
    # An answer without characters would divide by nothing; encode_pair gives its space a token.
    characters = np.array([max(1, len(answer)) for answer in question.answers])
    utf8 = np.array([max(1, len(answer.encode())) for answer in question.answers])
    tokens = np.array([count for _, count in found])
    lengths = (np.ones(len(sums)), characters, utf8, tokens)
    right = found[question.label][0]
    values = [float(np.argmax(sums / length) == question.label) for length in lengths]
    return dict(zip(CHOICES, values, strict=True)) | {"greedy": float(right.is_greedy), "nats": -right.log_prob}
