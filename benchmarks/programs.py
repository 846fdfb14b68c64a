"""What the tokenizer programs measured, as reports of the one schema."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from .results import TEXT, Report, Result, describe_machine

MEGABYTE = 1_000_000


def tokenizer_report(measured: Path, size: str) -> Report:
    """Encoding: seconds of processor time a megabyte of text."""
    content = json.loads(measured.read_text(encoding="utf-8"))
    results = []
    for key, libraries in content["rates"].items():
        vocabulary, corpus, form = key.split()
        for library, rates in libraries.items():
            results.append(
                Result(
                    f"encode {corpus} with {vocabulary}",
                    {"bytes": MEGABYTE},
                    TEXT,
                    f"to {form}",
                    library,
                    "ok",
                    method="clock",
                    median_s=1 / rates["median"],
                    bytes=MEGABYTE,
                )
            )
    not_run = dict.fromkeys(content["not exact"], "other ids than tiktoken's")
    return Report("tokenizer", size, describe_machine("cpu"), {}, results, not_run)


def tokenizer_train_report(measured: Path, size: str) -> Report:
    """Training: wall-clock seconds from the file to the vocabulary, and the peak of the process."""
    content = json.loads(measured.read_text(encoding="utf-8"))
    results = []
    for row in content["results"]:
        seconds = sorted(run["seconds"] for run in row["runs"])
        last = len(seconds) - 1
        results.append(
            Result(
                "train a vocabulary",
                {
                    "bytes": int(row["megabytes"] * MEGABYTE),
                    "V": content["vocab_size"],
                    "threads": row["threads"],
                },
                TEXT,
                "train",
                row["peer"],
                "ok",
                method="clock",
                median_s=statistics.median(seconds),
                p20_s=seconds[round(0.2 * last)],
                p80_s=seconds[round(0.8 * last)],
                bytes=int(row["megabytes"] * MEGABYTE),
                peak_bytes=int(row["peak_mb"] * MEGABYTE),
            )
        )
    return Report("tokenizer_train", size, describe_machine("cpu"), {}, results)
