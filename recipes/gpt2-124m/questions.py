"""Writes questions in HellaSwag's form: FOLDER/made.jsonl, short ones, and FOLDER/given.jsonl.

    python questions.py made FOLDER     both are made from documentation strings of Python, which every machine has
    python questions.py hub FOLDER      given are those of HellaSwag's validation split, from the Hugging Face hub
    python questions.py FILE FOLDER     given are the rows of a JSON, JSON Lines or Parquet file in HellaSwag's form

Made questions show that the evaluation works, and say nothing about HellaSwag.
"""

import builtins
import inspect
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmfast.evaluation.tasks import task_named
from llmfast.evaluation.tasks.rows import rows_of_file

MADE, ENDINGS = 12, 4
WORDS = range(8, 15)  # in a sentence


def sentences() -> Iterator[str]:
    """First sentences of what Python's own types and functions say about themselves."""
    for value in vars(builtins).values():
        for member in (value, *(vars(value).values() if isinstance(value, type) else ())):
            first = " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())
            if callable(member) and len(first.split()) in WORDS and first.endswith("."):
                yield first


def made() -> list[dict[str, Any]]:
    """The first half of a sentence, with its second half among those of others."""
    draw = random.Random(0)
    halves = []
    for words in sorted({tuple(each.split()) for each in sentences()}):
        middle = len(words) // 2
        halves.append((" ".join(words[:middle]), " ".join(words[middle:])))
    rows = []
    for start, end in draw.sample(halves, MADE):
        others = draw.sample(sorted({other for _, other in halves} - {end}), ENDINGS - 1)
        endings = draw.sample([end, *others], ENDINGS)
        row = {"activity_label": "Python", "ctx": start, "ctx_a": start, "ctx_b": "", "endings": endings}
        rows.append(row | {"label": str(endings.index(end))})
    return rows


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(source: str, folder: Path) -> None:
    ours = given = made()
    if source != "made":
        rows = task_named("hellaswag").rows(None) if source == "hub" else rows_of_file(Path(source))
        given = [dict(row.fields) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "made.jsonl", ours)
    write(folder / "given.jsonl", given)
    content = {"questions": len(given), "source": source}
    (folder / "about.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    note = ", made here: they say nothing about HellaSwag" if source == "made" else f" from {source}"
    print(f"{len(given):,} questions{note}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
