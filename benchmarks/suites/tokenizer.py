"""Encoding and decoding beside the installed peers, on the same text, in one process, one after another in turn.

    python -m benchmarks tokenizer [--quick] [--parts numpy lists calls decode load worst threads]
    python -m benchmarks tokenizer --parts numpy --texts English=FILE code=FILE --megabytes 48 --vocabularies gpt2
    python -m benchmarks tokenizer --render FILE

A library takes part in a row only if it gives tiktoken's ids on the very text that is timed. Rates are megabytes of
UTF-8 a second, medians of the rounds. In each round every library is made anew: its first call on the text is *cold*,
the same call again *warm*. tiktoken, which keeps nothing from call to call, has one call, before the others: a str
keeps its UTF-8 once somebody asked for it. One thread, but for the part that says otherwise. Rank files and texts come
from LLMFAST_TEST_DATA. ``--out FILE`` keeps the rows that are there already, so that a long measurement can be made in
short ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tokenizers import (
    DATA,
    DISTRIBUTIONS,
    LIBRARIES,
    VOCABULARIES,
    Library,
    libraries,
    tiktoken,
)

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = 16_384  # characters
Rows = dict[str, dict[str, Any]]  # what was timed -> library -> its figures


def corpora(megabytes: float, files: dict[str, Path] | None = None) -> dict[str, list[str]]:
    """Documents of English prose, Python code, and several scripts; or of `files`."""
    if files:
        texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    else:
        texts = built_in_texts()
    cut = {
        name: text.encode()[: int(megabytes * 1e6)].decode("utf-8", "ignore") for name, text in texts.items()
    }
    return {name: [t[i : i + DOCUMENT] for i in range(0, len(t), DOCUMENT)] for name, t in cut.items()}


def built_in_texts() -> dict[str, str]:
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    code = "".join(module.read_text(encoding="utf-8", errors="replace") for module in modules[:1500])
    return {
        "English": (DATA / "text" / "dickens.txt").read_text(encoding="utf-8"),
        "code": code,
        "multilingual": (DATA / "text" / "multilingual.txt").read_text(encoding="utf-8"),
    }


def size_of(documents: list[str]) -> float:
    return sum(len(document.encode()) for document in documents) / 1e6


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each library; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def flat(ids: np.ndarray | list[list[int]]) -> np.ndarray:
    return ids if isinstance(ids, np.ndarray) else np.array([token for one in ids for token in one])


class Measurement:
    """What was measured so far, and which libraries were left out of it for other ids."""

    def __init__(
        self,
        quick: bool,
        vocabularies: tuple[str, ...] = tuple(VOCABULARIES),
        texts: dict[str, Path] | None = None,
        megabytes: float | None = None,
    ):
        self.quick = quick
        self.vocabularies = vocabularies
        self.texts = texts
        self.megabytes = megabytes or (1 if quick else 8)
        self.rounds = 3 if quick else 5
        self.not_exact: list[str] = []

    def admit(self, row: str, found: dict[str, Any], expected: Any) -> set[str]:
        """Those whose result is the expected one."""
        wrong = {name for name, result in found.items() if not np.array_equal(result, expected)}
        self.not_exact += [f"{name} {row}" for name in sorted(wrong)]
        return found.keys() - wrong

    def corpora(self) -> dict[str, list[str]]:
        return corpora(self.megabytes, self.texts)

    def encode(self, form: str) -> Rows:
        """Cold and warm rates of all documents in one form."""
        rows: Rows = {}
        for vocabulary in self.vocabularies:
            for corpus, documents in self.corpora().items():
                row = f"{vocabulary} {corpus} {form}"
                rows[row] = self.cold_and_warm(row, vocabulary, documents, form)
                print_row(row, {name: f"{r['cold']:.0f}/{r['warm']:.0f}" for name, r in rows[row].items()})
        return rows

    def cold_and_warm(self, row: str, vocabulary: str, documents: list[str], form: str) -> dict[str, Any]:
        options = (1,) if form == "numpy" else ()
        reference = tiktoken(vocabulary)
        taken, result = timed(partial(getattr(reference, form), documents, *options))
        expected = flat(result)
        seconds = {"tiktoken": [(taken, taken)]}
        for _ in range(self.rounds):
            for name, library in libraries(vocabulary, form):
                if name == "tiktoken":
                    continue
                library.encode("Hello")  # what a library puts off until its first call
                call = partial(getattr(library, form), documents, *options)
                cold, result = timed(call)
                if self.admit(row, {name: flat(result)}, expected):
                    del result
                    warm, _ = timed(call)
                    seconds.setdefault(name, []).append((cold, warm))
        size = size_of(documents)
        return {
            name: {
                kind: size / statistics.median(taken)
                for kind, taken in zip(("cold", "warm"), zip(*rounds, strict=True), strict=True)
            }
            for name, rounds in seconds.items()
        }

    def numpy(self) -> Rows:
        return self.encode("numpy")

    def lists(self) -> Rows:
        return self.encode("lists")

    def threads(self) -> Rows:
        """Ours on one thread and on two, documents of 4,096 characters."""
        rows: Rows = {}
        from benchmarks.tokenizers import llmfast

        for vocabulary in self.vocabularies:
            for corpus, documents in self.corpora().items():
                text = "".join(documents)
                small = [text[i : i + 4096] for i in range(0, len(text), 4096)]
                ours = llmfast(vocabulary)
                calls = {str(n): partial(ours.numpy, small, n) for n in (1, 2)}
                in_turn(calls, 2)
                medians = {
                    n: statistics.median(taken) for n, taken in in_turn(calls, 2 * self.rounds).items()
                }
                row = f"{vocabulary} {corpus}"
                rows[row] = {n: size_of(small) / seconds for n, seconds in medians.items()}
                print_row(row, {n: f"{rate:.0f}" for n, rate in rows[row].items()})
        return rows

    def calls(self) -> Rows:
        """Microseconds of one call on a short text."""
        rows: Rows = {}
        text = (DATA / "text" / "dickens.txt").read_text(encoding="utf-8")[100_000:101_000]
        found = dict(libraries("cl100k_base", "encode"))
        for length in (5, 50, 1000):
            short = text[:length]
            row = f"cl100k_base {length} characters"
            exact = self.admit(
                row,
                {name: each.encode(short) for name, each in found.items()},
                found["tiktoken"].encode(short),
            )
            repeats = max(100, 20_000 // length)

            def many(library: Library, short: str = short, repeats: int = repeats) -> None:
                encode = library.encode
                for _ in range(repeats):
                    encode(short)

            seconds = in_turn({name: partial(many, found[name]) for name in sorted(exact)}, 3 * self.rounds)
            rows[row] = {name: statistics.median(taken) / repeats * 1e6 for name, taken in seconds.items()}
            print_row(row, {name: f"{us:.2f}" for name, us in rows[row].items()})
        return rows

    def decode(self) -> Rows:
        """A list of ids to str, and to bytes."""
        rows: Rows = {}
        for corpus, documents in self.corpora().items():
            text = "".join(documents)
            for form, expected in (("decode", text), ("decode_bytes", text.encode())):
                found = dict(libraries("cl100k_base", form))
                ids = next(iter(libraries("cl100k_base", "encode")))[1].encode(text)
                row = f"cl100k_base {corpus} {form}"
                calls = {name: partial(getattr(each, form), ids) for name, each in found.items()}
                exact = self.admit(row, {name: call() for name, call in calls.items()}, expected)
                seconds = in_turn({name: calls[name] for name in sorted(exact)}, self.rounds)
                size = len(text.encode()) / 1e6
                rows[row] = {name: size / statistics.median(taken) for name, taken in seconds.items()}
                print_row(row, {name: f"{rate:.0f}" for name, rate in rows[row].items()})
        return rows

    def load(self) -> Rows:
        """Milliseconds from the imported library to the first ids, in a process of its own each time."""
        rows: Rows = {}
        for vocabulary in self.vocabularies:
            taken: dict[str, list[float]] = {}
            for _ in range(self.rounds):
                for make in LIBRARIES:
                    done = self.load_apart(make.__name__, vocabulary)
                    if done.returncode == 0 and done.stdout.strip():
                        taken.setdefault(make.__name__, []).append(float(done.stdout))
            rows[vocabulary] = {name: statistics.median(times) for name, times in taken.items()}
            print_row(f"load {vocabulary}", {name: f"{ms:.0f}" for name, ms in rows[vocabulary].items()})
        return rows

    @staticmethod
    def load_apart(library: str, vocabulary: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.suites.tokenizer", "--child-load", library, vocabulary]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    def worst(self) -> Rows:
        """Ours on a megabyte of what makes others slow."""
        from benchmarks.tokenizers import llmfast

        draw = random.Random(0)
        n = 1_000_000
        inputs = {
            "one letter": "a" * n,
            "spaces": " " * n,
            "newlines": "\n" * n,
            "tabs and spaces": "".join(draw.choices(" \t", k=n)),
            "random letters": "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=n)),
            "emoji": "".join(chr(draw.randrange(0x1F600, 0x1F640)) for _ in range(n // 4)),
            "base64": "".join(
                draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=n)
            ),
            "kanji without spaces": "".join(chr(draw.randrange(0x4E00, 0x9FA0)) for _ in range(n // 3)),
            "a word of 10 MB": "".join(draw.choices("etaoinshrdlu", k=10 * n)),
        }
        rows: Rows = {}
        for vocabulary in self.vocabularies:
            ours = llmfast(vocabulary)
            rows[vocabulary] = {}
            for name, text in inputs.items():
                (taken,) = in_turn({name: partial(ours.numpy, [text], 1)}, 1).values()
                rows[vocabulary][name] = len(text.encode()) / 1e6 / taken[0]
            print_row(f"worst {vocabulary}", {name: f"{rate:.0f}" for name, rate in rows[vocabulary].items()})
        return rows


PARTS = ("numpy", "lists", "calls", "decode", "load", "worst", "threads")


def print_row(row: str, cells: dict[str, str]) -> None:
    print(f"{row:34} " + "  ".join(f"{name} {cell}" for name, cell in cells.items()), flush=True)


def run(
    measurement: Measurement,
    parts: tuple[str, ...] = PARTS,
    before: dict | None = None,
) -> dict:
    """Measures, prints a row at a time, and returns what was measured, beside what was before."""
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    measured = before or {"unit": "MB/s", "rates": {}, "not exact": []}
    for part in parts:
        rows = getattr(measurement, part)()
        if part in ("numpy", "lists"):
            measured["rates"].update(rows)
        else:
            measured.setdefault(part, {}).update(rows)
    measured["not exact"] = sorted({*measured["not exact"], *measurement.not_exact})
    measured["megabytes"] = measurement.megabytes
    measured["versions"] = versions()
    measured["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if measured["not exact"]:
        print("left out, other ids than tiktoken's:", ", ".join(measured["not exact"]))
    return measured


def versions() -> dict[str, str]:
    present = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    return {name: metadata.version(dist) for name, dist in DISTRIBUTIONS.items() if dist in present}


def render(measured: dict) -> str:
    """Markdown tables of what was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    lines = [f"{measured['machine']}; {versions}.", ""]
    rates = {
        row: {name: f"{r['cold']:.0f} / {r['warm']:.0f}" for name, r in libraries.items()}
        for row, libraries in measured["rates"].items()
    }
    lines += table("MB/s: cold / warm", rates)
    for part, title, form in (
        ("calls", "µs a call", "{:.2f}"),
        ("decode", "MB/s, list of ids to text", "{:.0f}"),
        ("load", "ms to load", "{:.0f}"),
        ("threads", "MB/s by threads", "{:.0f}"),
    ):
        if part in measured:
            cells = {
                row: {name: form.format(value) for name, value in found.items()}
                for row, found in measured[part].items()
            }
            lines += table(title, cells)
    if "worst" in measured:
        names = next(iter(measured["worst"].values()))
        cells = {name: {v: f"{rates[name]:.0f}" for v, rates in measured["worst"].items()} for name in names}
        lines += table("MB/s on worst cases", cells)
    if measured["not exact"]:
        lines += [f"Left out for other ids than tiktoken's: {', '.join(measured['not exact'])}."]
    return "\n".join(lines).rstrip()


def table(title: str, rows: dict[str, dict[str, str]]) -> list[str]:
    names = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    lines = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {row} | {' | '.join(cells.get(name, '–') for name in names)} |" for row, cells in rows.items()
    ]
    return [*lines, ""]


def load_once(name: str, vocabulary: str) -> None:
    """What a child process does: prints the milliseconds until the first ids."""
    import tiktoken_ext.openai_public  # noqa: F401

    make = next(make for make in LIBRARIES if make.__name__ == name)
    __import__(name)
    if name == "llmfast":
        from llmfast.tokenizer import get_encoding

        start = time.perf_counter()
        get_encoding(vocabulary).encode_ordinary("Hello")
    else:
        start = time.perf_counter()
        library = make(vocabulary)
        if library is None:
            return
        library.encode("Hello")
    print((time.perf_counter() - start) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one megabyte of each text")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--vocabularies", nargs="+", choices=list(VOCABULARIES), default=list(VOCABULARIES))
    parser.add_argument(
        "--texts", nargs="+", metavar="NAME=FILE", help="UTF-8 files instead of the usual texts"
    )
    parser.add_argument("--megabytes", type=float, help="how much of each text; 8 if left out")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    parser.add_argument("--render", type=Path, metavar="FILE", help="Markdown tables of such a file")
    parser.add_argument("--child-load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child_load:
        load_once(*options.child_load)
    elif options.render:
        print(render(json.loads(options.render.read_text())))
    else:
        before = json.loads(options.out.read_text()) if options.out and options.out.exists() else None
        texts = {name: Path(file) for name, file in (text.split("=", 1) for text in options.texts or [])}
        measurement = Measurement(options.quick, tuple(options.vocabularies), texts, options.megabytes)
        measured = run(measurement, tuple(options.parts), before)
        if options.out:
            options.out.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
