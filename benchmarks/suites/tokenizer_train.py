"""Training a byte-pair vocabulary beside the installed peers, each run in a process of its own, in turn.

Time is from the file's name to the trained vocabulary; memory is the peak of the process, its library included. All
split text as GPT-2 does, or by their default where they have no choice. Which of equally frequent pairs comes first,
they decide differently, and Hugging Face reads a file by lines: right is who finds the tokens that ours finds by the
same ``RULES``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..compare import without_paths
from ..jobs import FEWEST_ROUNDS
from ..results import ROOT, TEXT, Result
from ..text.texts import code
from ..text.train_vocabulary import END, GPT2, PEERS

MEGABYTES = {"cpu": 20, "cpu-quick": 1, "tiny": 0.1}
VOCABULARY = {"cpu": 32_768, "cpu-quick": 1024, "tiny": 300}


class Rules(NamedTuple):
    tie_break: str  # in the words of Tokenizer.train
    by_lines: bool = False


# Of the tokens, for the order of equally frequent pairs has corners: a thousandth changes nothing in use.
ALLOWED = 1e-3
RULES = {
    "llmfast": Rules("bytes"),
    "gigatoken": Rules("smallest_ids"),
    "ffbpe": Rules("smallest_ids"),
    "rustbpe": Rules("smallest_ids"),
    "tokenizers": Rules("huggingface", by_lines=True),
}
SECONDS = 30.0  # of timing, for all of them together


def inputs(size: str, files: Sequence[Path] = ()) -> dict[str, str]:
    """What it is measured on, for the result file."""
    return {name: f"{origin}, {len(text.encode()) / 1e6:.1f} MB" for name, origin, text in corpora(size, files)}


def corpora(size: str, files: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """Name, origin and text."""
    if not files:
        origin, text = code()
        yield "code", origin, text.encode()[: int(MEGABYTES[size] * 1e6)].decode(errors="ignore")
    for file in files:
        yield file.name, "a file of this name", file.read_text(encoding="utf-8")


def cases(size: str, files: Sequence[Path] = ()) -> Iterator[Training]:
    for name, _, text in corpora(size, files):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            path.write_text(text, encoding="utf-8", newline="")
            for threads in (1, 2) if size == "cpu" else (1,):
                yield Training(name, path, VOCABULARY[size], threads)


@dataclass(frozen=True)
class Training:
    """A vocabulary of V tokens out of a file."""

    name: str
    path: Path
    size: int
    threads: int

    def __str__(self) -> str:
        return f"train on {self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        """Every trainer's time, or why there is none."""
        results, runs = [], {}
        once = 0.0
        for name in PEERS:
            if importlib.util.find_spec(name) is None:
                results.append(self.result(name, "missing", f"{name} is not installed"))
                continue
            try:
                runs[name] = [self.apart(name)]
                once += runs[name][0]["seconds"]
            except RuntimeError as error:
                results.append(self.result(name, "failed", str(error)))
        for _ in range(min(rounds, max(FEWEST_ROUNDS, int(SECONDS / max(once, 1e-9)))) - 1):
            for name, measured in runs.items():
                measured.append(self.apart(name))
        return results + [self.judged(name, measured) for name, measured in runs.items()]

    def apart(self, name: str) -> dict[str, Any]:
        """Trains once in a process that may use so many cores."""
        cores = sorted(os.sched_getaffinity(0))[: self.threads]
        command = [sys.executable, "-m", "benchmarks.text.train_vocabulary", name, str(self.path), str(self.size)]
        done = subprocess.run(
            [*command, str(self.threads)],
            cwd=ROOT,
            env={**os.environ, "RAYON_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "true"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(without_paths((done.stderr.strip().splitlines() or ["no message"])[-1]))
        return json.loads(done.stdout.splitlines()[-1])

    def judged(self, name: str, runs: list[dict[str, Any]]) -> Result:
        """The median of the runs, wrong where the tokens of the first are not those of its rule."""
        exact = our_tokens(self.path, self.size, RULES[name])
        others = len(exact - {bytes.fromhex(token) for token in runs[0]["tokens"]})
        wrong = others > ALLOWED * len(exact)
        seconds = sorted(run["seconds"] for run in runs)
        last = len(seconds) - 1
        return self.result(
            name,
            "wrong" if wrong else "ok",
            f"{others:,} of {len(exact):,} tokens are others" if wrong else "",
            method="clock",
            median_s=statistics.median(seconds),
            p20_s=seconds[round(0.2 * last)],
            p80_s=seconds[round(0.8 * last)],
            error=others / len(exact),
            allowed_error=ALLOWED,
            peak_bytes=max((run["peak_bytes"] for run in runs if run["peak_bytes"]), default=None),
        )

    def result(self, name: str, status: str, note: str = "", **measured: Any) -> Result:
        shape = {"V": self.size, "threads": self.threads}
        size = self.path.stat().st_size
        return Result(self.name, shape, TEXT, "train", name, status, note, bytes=size, **measured)


@functools.cache
def our_tokens(path: Path, size: int, rules: Rules) -> frozenset[bytes]:
    from llmfast.tokenizer import Tokenizer

    source = path.read_bytes().splitlines(keepends=True) if rules.by_lines else str(path)
    tokenizer = Tokenizer.train(source, size, pattern=GPT2, tie_break=rules.tie_break)
    return frozenset(tokenizer.token_byte_values()) - {END.encode()}
