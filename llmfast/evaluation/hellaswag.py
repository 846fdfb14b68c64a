"""HellaSwag (Zellers et al. 2019, arXiv:1905.07830) at intervals of a run: which of four endings continues a scene?

In the configuration of the run:

    training: {evaluations: ["llmfast.evaluation.hellaswag:hellaswag"]}

With ``:FILE`` behind it, the questions are those of a file in HellaSwag's form, and no network is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmfast.evaluation.tasks import task_named
from llmfast.evaluation.tasks.asking import ask
from llmfast.evaluation.tasks.choosing import measure
from llmfast.evaluation.tasks.rows import rows_of
from llmfast.evaluation.team import ALONE, Team
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


def hellaswag(
    model: Decoder,
    tokenizer: Tokenizer,
    *,
    team: Team = ALONE,
    rows: Iterable[Mapping[str, Any]] | None = None,
    data: Path | None = None,
    limit: int | None = 1000,
) -> dict[str, float]:
    """Shares of questions answered rightly: ``hellaswag`` by the likeliest ending, ``hellaswag_norm`` by the likeliest
    per character, which is what papers report. Chance is 0.25. What the model cannot hold of a prompt is cut off at
    its start.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        team: the processes that share the questions out.
        rows: of the dataset.
        data: a JSON, JSON Lines or Parquet file of rows instead. Without either, the rows are the dataset's validation
            split from the Hugging Face hub (or its cache).
        limit: only so many questions, the first; None for all 10,042.

    Raises:
        ValueError: both rows and data, the dataset cannot be loaded or has no rows, or an ending is longer than the
            model's context.
    """
    if rows is not None and data is not None:
        raise ValueError(f"give either rows or data, not both; data is {data}")
    task = task_named("hellaswag")
    given = task.rows(data) if rows is None else rows_of(rows, "rows")
    figures = measure(model, tokenizer, task, ask(task, given, limit=limit), truncate=True, team=team)
    return {"hellaswag": figures["acc"].value, "hellaswag_norm": figures["acc_char"].value}
