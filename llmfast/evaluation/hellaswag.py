"""HellaSwag (Zellers et al. 2019, arXiv:1905.07830): which of four endings continues an everyday scene?

For an evaluation at intervals of a run, in its configuration:

    training: {evaluations: ["llmfast.evaluation.hellaswag:hellaswag"]}
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from llmfast.data import datasets_hub
from llmfast.evaluation.team import ALONE, Team
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer

DATASET = "Rowan/hellaswag"


class Example(NamedTuple):
    """One question."""

    context: str
    endings: list[str]
    label: int
    """Which ending is right."""


@torch.no_grad()
def hellaswag(
    model: Decoder,
    tokenizer: Tokenizer,
    *,
    team: Team = ALONE,
    rows: Iterable[Mapping[str, Any]] | None = None,
    limit: int | None = 1000,
) -> dict[str, float]:
    """Shares of questions answered rightly: ``hellaswag`` by the likeliest ending, ``hellaswag_norm`` by the likeliest
    per character, which is what papers report. Chance is 0.25.

    Texts are put together as in EleutherAI's lm-evaluation-harness.

    Args:
        model: the model, in evaluation.
        tokenizer: its tokenizer.
        team: the processes that share the questions out.
        rows: of the dataset; its validation split from the Hugging Face hub (or its cache) if left out.
        limit: only so many questions, the first; None for all 10,042.

    Raises:
        ValueError: the dataset cannot be loaded, or has no rows.
    """
    if rows is None:
        rows, _ = datasets_hub.load_rows(f"hf:{DATASET}:validation")
    examples = [read_example(row) for row in itertools.islice(rows, limit)]
    if not examples:
        raise ValueError("there are no questions to answer")
    found = team.figures(lambda example: _answers(model, tokenizer, example), examples, 2)
    right, right_by_length = (sum(column) / len(examples) for column in zip(*found, strict=True))
    return {"hellaswag": right, "hellaswag_norm": right_by_length}


def read_example(row: Mapping[str, Any]) -> Example:
    """A row of the dataset, its texts cleaned of what WikiHow's pages left in them."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Example(_clean(context), [_clean(ending) for ending in row["endings"]], int(row["label"]))


def _clean(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _answers(model: Decoder, tokenizer: Tokenizer, example: Example) -> tuple[float, float]:
    """1 or 0 for each of the two ways to choose."""
    nats = _nats(model, tokenizer, example)
    characters = torch.tensor([len(ending) for ending in example.endings], dtype=torch.float64)
    chosen = nats.argmin(), (nats / characters).argmin()
    return float(chosen[0] == example.label), float(chosen[1] == example.label)


def _nats(model: Decoder, tokenizer: Tokenizer, example: Example) -> torch.Tensor:
    """−log probability of each ending after the context, (endings,) float64; what the model cannot hold of the context
    is cut off at its start."""
    device = next(model.parameters()).device
    context = tokenizer.encode_ordinary(example.context)
    rows = [(context, tokenizer.encode_ordinary(f" {ending}")) for ending in example.endings]
    rows = [((before + after)[-model.config.context - 1 :], len(after)) for before, after in rows]
    tokens = torch.zeros(len(rows), max(len(row) for row, _ in rows) - 1, dtype=torch.long)
    targets = torch.zeros_like(tokens)
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    for number, (row, length) in enumerate(rows):
        size = len(row) - 1
        tokens[number, :size], targets[number, :size] = torch.tensor(row[:-1]), torch.tensor(row[1:])
        counted[number, max(0, size - length) : size] = True
    logits = model(tokens.to(device)).float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="none")
    return (losses.view(targets.shape).cpu().double() * counted).sum(1)
