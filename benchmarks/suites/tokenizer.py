"""Encoding, decoding and loading beside the installed peers, on the same text, in turn.

Rates are those of UTF-8 text on one thread, where nothing else is said. Text is encoded once, as it is in use: of a
stream in which nothing occurs twice, the first part is that which a fresh library encodes "the first time", the others
are its steady state. Short calls and decoding repeat what they do. A library is right if it gives tiktoken's ids, or
the text itself.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..results import ROOT, TEXT, Result
from ..text.fresh import stream_of, streams
from ..text.streams import Streaming
from ..text.text_jobs import TextJob
from ..text.texts import DOCUMENT, Text
from ..text.tokenizers import (
    FORMS_OF_VOCABULARIES,
    LIBRARIES,
    Absent,
    Library,
    Vocabulary,
    hugging_face_file,
    libraries,
    llmfast,
    our_encoding,
    tiktoken,
    vocabularies,
)

MEGABYTES = {"cpu": 4.0, "cpu-quick": 0.5, "tiny": 0.03}
LENGTHS = (5, 50, 1000)  # characters of a short text
LOADS = {"cpu": 3, "cpu-quick": 1, "tiny": 1}
STREAM = {"cpu": 68.0, "cpu-quick": 1.5, "tiny": 0.12}  # megabytes, of which the first part is encoded cold
PART = {"cpu": 4.0, "cpu-quick": 0.5, "tiny": 0.04}
COLDS = {"cpu": 3, "cpu-quick": 1, "tiny": 1}  # fresh processes of each library, for arrays
THREADS_DOCUMENT = 4096  # characters


def inputs(size: str, files: Sequence[Path] = ()) -> dict[str, str]:
    """What it is measured on, for the result file: texts, and the forms of vocabularies."""
    part = f"{PART[size]:g} MB"
    fresh = {
        f"{kind}, encoded": f"{text.bytes / 1e6:.3g} MB in documents of {DOCUMENT:,} characters, each encoded once, in "
        f"parts of {part}, the first of them by fresh processes: {text.origin}"
        for kind, text in texts(STREAM[size], files).items()
    }
    other = {f"{kind}, decoded": str(text) for kind, text in texts(MEGABYTES[size], files).items()}
    return fresh | other | {f"vocabularies of {name}": form for name, form in FORMS_OF_VOCABULARIES.items()}


def texts(megabytes: float, files: Sequence[Path]) -> dict[str, Text]:
    """At most so much of each kind, or all of the given files."""
    if not files:
        return streams(megabytes)
    return {path.name: stream_of("a file of this name", path.read_text(encoding="utf-8")) for path in files}


def cases(size: str, files: Sequence[Path] = ()) -> Iterator[Streaming | TextJob | Loading]:
    kinds = texts(MEGABYTES[size], files)
    known = vocabularies()
    one = next((each for each in known if each.name == "cl100k_base"), known[0])
    every = known if size == "cpu" else [one]
    for kind, text in texts(STREAM[size], files).items():
        part = min(int(PART[size] * 1e6), text.bytes // 3)
        for vocabulary in every:
            for form, colds in (("numpy", COLDS[size]), ("lists", 1)):
                yield Streaming(vocabulary, kind, form, text, part, colds)
    for length in LENGTHS:
        yield short_call(one, next(iter(kinds.values())), length)
    for form in ("decode", "decode_bytes"):
        for kind, text in kinds.items():
            yield decoding(form, one, kind, text)
    for vocabulary in every:
        yield Loading(vocabulary, LOADS[size])
    for vocabulary in every if size == "cpu" else []:
        for kind, text in kinds.items():
            yield on_two_threads(vocabulary, kind, text)
    for vocabulary in every if size == "cpu" else []:
        for name, text in worst_cases().items():
            yield worst_case(vocabulary, name, text)


def calls_of(vocabulary: Vocabulary, what: str, call: Callable[[Library], Callable[[], Any]]) -> dict[str, Any]:
    """Of each library what ``call`` makes of it, or why there is none."""
    return {
        name: library if isinstance(library, Absent) else call(library) for name, library in libraries(vocabulary, what)
    }


def short_call(vocabulary: Vocabulary, text: Text, length: int) -> TextJob:
    middle = text.whole[len(text.whole) // 2 :]
    short = middle[middle.find(" ") :][:length]
    return TextJob(
        op=f"{vocabulary}: {length} characters",
        pass_="one call to a list",
        entrants=lambda: calls_of(vocabulary, "encode", lambda library: partial(library.encode, short)),
        expected=lambda: tiktoken(vocabulary).encode(short),
        repeats=max(100, 20_000 // length),
        seconds=3.0,
    )


def decoding(form: str, vocabulary: Vocabulary, kind: str, text: Text) -> TextJob:
    whole = text.whole
    ids = tiktoken(vocabulary).encode(whole)
    return TextJob(
        op=f"{vocabulary}: {kind}",
        pass_="decode a list to str" if form == "decode" else "decode a list to bytes",
        entrants=lambda: calls_of(vocabulary, form, lambda library: partial(getattr(library, form), ids)),
        expected=lambda: whole if form == "decode" else whole.encode(),
        bytes=text.bytes,
    )


def on_two_threads(vocabulary: Vocabulary, kind: str, text: Text) -> TextJob:
    """Ours alone: shorter documents, shared by two threads."""
    whole = text.whole
    documents = [whole[start : start + THREADS_DOCUMENT] for start in range(0, len(whole), THREADS_DOCUMENT)]

    def entrants() -> dict[str, Callable[[], Any]]:
        ours = llmfast(vocabulary)
        return {
            "llmfast on 1": partial(ours.numpy, documents, 1),
            "llmfast": partial(ours.numpy, documents, 2),
        }

    return TextJob(
        op=f"{vocabulary}: {kind}",
        pass_="encode to NumPy on 2 threads",
        entrants=entrants,
        expected=lambda: tiktoken(vocabulary).lists(documents),
        bytes=text.bytes,
        seconds=2.0,
    )


def worst_cases(n: int = 1_000_000) -> dict[str, str]:
    """A megabyte of what makes others slow."""
    draw = random.Random(0)
    return {
        "one letter": "a" * n,
        "spaces": " " * n,
        "newlines": "\n" * n,
        "tabs and spaces": "".join(draw.choices(" \t", k=n)),
        "random letters": "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=n)),
        "emoji": "".join(chr(draw.randrange(0x1F600, 0x1F640)) for _ in range(n // 4)),
        "base64": "".join(draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=n)),
        "kanji without spaces": "".join(chr(draw.randrange(0x4E00, 0x9FA0)) for _ in range(n // 3)),
        "a word of 10 MB": "".join(draw.choices("etaoinshrdlu", k=10 * n)),
    }


def worst_case(vocabulary: Vocabulary, name: str, text: str) -> TextJob:
    """Ours alone, for others may take minutes: that the ids stand for the text is what is checked."""
    ours = our_encoding(vocabulary)
    return TextJob(
        op=f"{vocabulary}: {name}",
        pass_="worst cases to NumPy",
        entrants=lambda: {"llmfast": lambda: ours.encode_documents([text], append_eot=False, num_threads=1)[0]},
        expected=lambda: text,
        read=ours.decode,
        bytes=len(text.encode()),
        seconds=0.5,
    )


# ------------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class Loading:
    """From the imported library to the first ids, in a process of its own each time."""

    vocabulary: Vocabulary
    rounds: int

    def __str__(self) -> str:
        return f"{self.vocabulary}, load"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        absent = {
            name: library for name, library in libraries(self.vocabulary, "encode") if isinstance(library, Absent)
        }
        taken: dict[str, list[float]] = {name: [] for name in LIBRARIES if name not in absent}
        failed: dict[str, str] = {}
        for _ in range(self.rounds):
            for name in [each for each in taken if each not in failed]:
                done = load_apart(name, self.vocabulary)
                if done.returncode == 0:
                    taken[name].append(float(done.stdout.split()[-1]))
                else:
                    failed[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
        results = [self.result(name, each.status, each.reason) for name, each in absent.items()]
        results += [self.result(name, "failed", reason) for name, reason in failed.items()]
        return results + [self.result(name, "ok", "", times) for name, times in taken.items() if name not in failed]

    def result(self, name: str, status: str, note: str, times: Sequence[float] = ()) -> Result:
        if not times:
            return Result(str(self.vocabulary), {}, TEXT, "load", name, status, note)
        ordered, last = sorted(times), len(times) - 1
        return Result(
            str(self.vocabulary), {}, TEXT, "load", name, status, note, method="clock",
            median_s=statistics.median(ordered), p20_s=ordered[round(0.2 * last)], p80_s=ordered[round(0.8 * last)],
        )  # fmt: skip


def load_apart(library: str, vocabulary: Vocabulary) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.text.load_library",
        library,
        vocabulary.name,
        str(vocabulary.ranks),
    ]
    if library == "tokenizers":  # which has a file of its own
        command.append(str(hugging_face_file(vocabulary)))
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
