"""``llmfast predict``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from llmfast.finetuning.predict import Prediction


def predict(
    run: Path,
    /,
    *,
    text: str | None = None,
    file: Path | None = None,
    column: str = "text",
    format: Literal["tsv", "jsonl"] = "tsv",
    base: Path | None = None,
) -> None:
    """Label texts with a trained classifier, or give each its number: a line for each text, in order.

    Args:
        run: A run folder of llmfast classify (its newest checkpoint is used) or a checkpoint folder.
        text: The text to classify; those of --file if left out, or the lines of standard input.
        file: A .tsv, .csv, .jsonl or .parquet file with a column of texts, or a text file with a text in each line.
        column: Name of the column of texts.
        format: tsv: the label, its probability and the text, separated by tabs, with \\t, \\n, \\r and \\\\ for those
            characters in a text; several labels and their probabilities are separated by commas, and a number has no
            probability. jsonl: an object in each line, with the probabilities of all labels.
        base: Where the frozen base of the classifier lies now, if it was moved since the training.

    Raises:
        ValueError: no classifier there, a damaged file, a base that is missing or another one.
    """
    if text is not None and file is not None:
        raise ValueError("give either --text or --file, not both")

    import torch

    from llmfast.finetuning.predict import load_classifier, load_temperature
    from llmfast.finetuning.predict import predict as predictions

    model, tokenizer = load_classifier(run, base=base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    texts = iter([text]) if text is not None else _texts(file, column)
    write, count, cut = {"tsv": _as_table, "jsonl": _as_json}[format], 0, 0
    for each in predictions(model, tokenizer, texts, temperature=load_temperature(run)):
        print(write(each, model.config.problem))
        count, cut = count + 1, cut + each.was_cut
    if cut:
        longest = model.config.max_tokens
        print(f"{cut:,} of {count:,} texts are longer than {longest} tokens and were cut there", file=sys.stderr)


def _texts(file: Path | None, column: str) -> Iterator[str]:
    from llmfast.data.reading.columns import WITH_ROWS, read_columns, text_lines
    from llmfast.data.reading.readers import file_kind, read_content

    if file is None:
        yield from _standard_input(sys.stdin)
    elif not file.is_file():
        raise ValueError(f"{file} is not a file")
    elif file_kind(file) not in WITH_ROWS:
        yield from text_lines(read_content(file))
    else:
        for (text,), where in read_columns(file, [column], settings="--column names"):
            if not isinstance(text, str):
                raise ValueError(f"{where} has no text in {column!r}, but {text!r}")
            yield text


def _standard_input(stream: TextIO) -> Iterator[str]:
    for number, line in enumerate(stream):
        if text := (line.removeprefix("\ufeff") if number == 0 else line).strip():
            yield text


ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _as_table(each: Prediction, problem: str) -> str:
    if problem == "regression":
        columns = [f"{each.value:.6g}"]
    else:
        columns = [",".join(each.labels), ",".join(f"{each.probabilities[label]:.4f}" for label in each.labels)]
    return "\t".join(column.translate(ESCAPES) for column in [*columns, each.text])


def _as_json(each: Prediction, problem: str) -> str:
    if problem == "regression":
        found: dict[str, object] = {"value": each.value}
    elif problem == "multi_label":
        found = {"labels": each.labels, "probabilities": each.probabilities}
    else:
        found = {"label": each.label, "probability": each.probability, "probabilities": each.probabilities}
    return json.dumps({**found, "text": each.text}, ensure_ascii=False)
