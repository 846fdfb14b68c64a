"""Tasks by name: where their rows are and how they become questions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfast.evaluation.tasks import problems, questions
from llmfast.evaluation.tasks.problems import Problem
from llmfast.evaluation.tasks.rows import Row, rows_of_file, rows_of_hub

TEXT = "text"  # perplexity of any text, which has no rows of its own


@dataclass(frozen=True)
class Task:
    """A published set of questions."""

    name: str
    read: Callable[[Row], Any]
    """Makes a ``Question`` of a row, or of a ``WritingTask`` a ``Problem``."""
    dataset: str
    split: str
    config: str | None = None
    examples: str | None = "train"
    """The split that few-shot examples are drawn from; None: from the other rows of the split."""
    is_cloze: bool = False
    """Whether the one answer is to be the likeliest text, and not the likelier of several."""
    intro: str = ""
    """What a prompt starts with, after names of fields are filled in."""
    subject: str | None = None
    """The field that says which subject a row is of, where examples are to be of the same."""

    def rows(self, data: Path | None, *, examples: bool = False) -> Iterator[Row]:
        """The rows of a local file, or of the hub.

        Raises:
            ValueError: they are not there; says how to get them.
        """
        if data is not None:
            return rows_of_file(data)
        split = (self.examples or self.split) if examples else self.split
        try:
            return rows_of_hub(self.dataset, self.config, split)
        except (ValueError, ModuleNotFoundError) as error:
            raise ValueError(
                f"task {self.name}: {error}; pip install 'llmfast[hf]' and a connection load it, or give its rows as a "
                "JSON Lines or Parquet file: --data FILE"
            ) from error

    def opening(self, row: Row) -> str:
        """What the prompt of a row starts with."""
        if "{subject}" not in self.intro:
            return self.intro
        return self.intro.replace("{subject}", row.text("subject").replace("_", " "))


@dataclass(frozen=True)
class WritingTask(Task):
    """A published set of problems whose answer a model writes out."""

    checks: Mapping[str, Callable[[Problem, str, bool], bool]] = field(default_factory=dict)
    """Ways to tell whether an answer is right, by name: functions of the problem, the answer, and whether it was given
    in a conversation."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, unless it is given in a conversation."""
    max_tokens: int = 512
    """Of an answer."""
    library: str | None = None
    """A module that the checks need."""


_MMLU = "The following are multiple choice questions (with answers) about {subject}.\n\n"

TASKS = {
    task.name: task
    for task in (
        Task("hellaswag", questions.hellaswag, "Rowan/hellaswag", "validation"),
        Task("hellaswag_plain", questions.hellaswag_plain, "Rowan/hellaswag", "validation"),
        Task("piqa", questions.piqa, "baber/piqa", "validation"),
        Task("arc_easy", questions.arc, "allenai/ai2_arc", "test", "ARC-Easy"),
        Task("arc_challenge", questions.arc, "allenai/ai2_arc", "test", "ARC-Challenge"),
        Task("copa", questions.copa, "aps/super_glue", "validation", "copa"),
        Task("winogrande", questions.winogrande, "allenai/winogrande", "validation", "winogrande_xl"),
        Task("mmlu", questions.mmlu, "cais/mmlu", "test", "all", examples="dev", intro=_MMLU, subject="subject"),
        Task("lambada", questions.lambada, "EleutherAI/lambada_openai", "test", "default", None, is_cloze=True),
        Task("boolq", questions.boolq, "aps/super_glue", "validation", "boolq"),
        WritingTask(
            "gsm8k",
            problems.gsm8k,
            "openai/gsm8k",
            "test",
            "main",
            checks={"strict": problems.strict_number, "flexible": problems.flexible_number},
            stop=("Question:", "</s>", "<|im_end|>"),
        ),
        WritingTask(
            "math",
            problems.math,
            "nlile/hendrycks-MATH-benchmark",
            "test",
            checks={"equal": problems.equal_answer},
            library="math_verify",
            stop=("Problem:",),
            max_tokens=1024,
        ),
        WritingTask(
            "humaneval",
            problems.humaneval,
            "openai/openai_humaneval",
            "test",
            examples=None,
            checks={"pass": problems.passes_tests},
            stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```"),
            max_tokens=1024,
        ),
    )
}


def task_named(name: str) -> Task:
    """A task.

    >>> task_named("piqa").dataset
    'baber/piqa'

    Raises:
        ValueError: there is none of that name; names the nearest.
    """
    if name not in TASKS:
        known = [*TASKS, TEXT]
        nearest = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"there is no task {name!r}; " + (f"did you mean {nearest[0]}?" if nearest else f"{', '.join(known)} are")
        )
    return TASKS[name]
