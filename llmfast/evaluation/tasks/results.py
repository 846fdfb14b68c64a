"""What a model makes of the questions of a task, as a record that can be written as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmfast.data.shards import TokenShards
from llmfast.evaluation.contamination import contamination
from llmfast.evaluation.tasks import Task, WritingTask, choosing, writing
from llmfast.evaluation.tasks.asking import Asked
from llmfast.evaluation.tasks.figures import Figure
from llmfast.inference.engine import Engine
from llmfast.inference.prompts import beginning
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer


@dataclass(frozen=True)
class Found:
    """What was found of the questions of a task."""

    about: dict[str, Any]
    """How they were asked, and the answers that were generated."""
    figures_of: Callable[[Sequence[int]], dict[str, Figure]]
    """The figures of the questions with these numbers."""


@dataclass(frozen=True)
class Corpus:
    """Training data in which questions are looked for."""

    shards: TokenShards
    ngram: int


def likeliest(
    model: Decoder, tokenizer: Tokenizer, task: Task, asked: Sequence[Asked], *, truncate: bool, chat: bool
) -> Found:
    """Of multiple choice, and of cloze tests; errors are those of ``choosing.score``."""
    columns = choosing.score(model, tokenizer, asked, truncate=truncate, chat=chat, share=True)

    def figures_of(places: Sequence[int]) -> dict[str, Figure]:
        some = {name: [values[place] for place in places] for name, values in columns.items()}
        return choosing.figures(some, is_cloze=task.is_cloze)

    form = "cloze" if task.is_cloze else "multiple choice"
    start = "by the chat template" if chat else tokenizer.decode(beginning(tokenizer))
    return Found({"form": form, "beginning_of_text": start}, figures_of)


def written(engine: Engine, task: WritingTask, asked: Sequence[Asked], how: writing.Writing) -> Found:
    """Of answers that are generated; errors are those of ``writing.write``."""
    replies = writing.write(engine, task, asked, how)
    right = writing.check(task, asked, replies, chat=how.chat)

    def figures_of(places: Sequence[int]) -> dict[str, Figure]:
        return writing.figures({name: [values[place] for place in places] for name, values in right.items()})

    records = [
        {
            "where": each.where,
            "replies": [reply.text for reply in some],
            "right": {name: values[number] for name, values in right.items()},
        }
        for number, (each, some) in enumerate(zip(asked, replies, strict=True))
    ]
    about = {
        "form": "generation",
        "max_tokens": task.max_tokens if how.max_tokens is None else how.max_tokens,
        "stop": [] if how.chat else list(task.stop),
        "cut_off": sum(reply.finish_reason == "length" for some in replies for reply in some),
        "records": records,
    }
    return Found(about, figures_of)


def result(asked: Sequence[Asked], found: Found, tokenizer: Tokenizer, corpus: Corpus | None) -> dict[str, Any]:
    """The record of a task, with the overlap of its questions with a corpus."""
    record = {"questions": len(asked), **found.about, "figures": _values(found.figures_of(range(len(asked))))}
    if corpus is not None:
        record["contamination"] = _overlap(asked, found, tokenizer, corpus)
    return record


def _overlap(asked: Sequence[Asked], found: Found, tokenizer: Tokenizer, corpus: Corpus) -> dict[str, Any]:
    """How many questions, with their right answers, overlap with a corpus, and the figures of the others."""
    texts = tokenizer.encode_ordinary_batch([each.question.solved for each in asked])
    overlap = contamination(texts, corpus.shards, ngram=corpus.ngram)
    others = [place for place, share in enumerate(overlap.covered) if not share]
    return {
        "shards": str(corpus.shards.folder),
        "checksum": corpus.shards.checksum,
        "ngram": corpus.ngram,
        "overlapping": len(asked) - len(others),
        "too_short_to_tell": sum(overlap.too_short),
        "covered": overlap.covered,
        "figures_without": _values(found.figures_of(others)) if others else None,
    }


def _values(figures: dict[str, Figure]) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}
