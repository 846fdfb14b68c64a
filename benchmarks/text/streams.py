"""Libraries that encode a stream of fresh text: each in a process of its own, part by part in turn.

The first part is what a fresh library does cold. The others, each encoded once, are its steady state: what it has kept
of words helps, as in use. The ids of every part are compared with tiktoken's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare import without_paths
from ..results import ROOT, TEXT, Result
from .stream_library import digest, parts
from .texts import Text
from .tokenizers import LIBRARIES, Vocabulary, missing, tiktoken

PASSES = {"numpy": "encode to NumPy", "lists": "encode to lists"}
COLD = "the first time"
FEWEST, SECONDS = 3, 6.0  # a library that has encoded so many parts, for so long, encodes no more

Expected = list[tuple[int, str]]  # of each part: its bytes, and the digest of its ids


@dataclass(frozen=True)
class Streaming:
    """A stream of text under one vocabulary. Its first part is encoded by ``colds`` fresh processes of each library."""

    vocabulary: Vocabulary
    kind: str
    form: str
    text: Text
    part_bytes: int
    colds: int

    def __str__(self) -> str:
        return f"{self.vocabulary}: {self.kind}, {PASSES[self.form]}"

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        with tempfile.TemporaryDirectory(prefix="llmfast-benchmarks-") as folder:
            path = Path(folder) / "stream.txt"
            path.write_bytes(self.text.whole.encode())
            expected = expected_of(self.vocabulary, self.part_bytes, self.text.whole)
            races = [self.race(path, expected[:1]) for _ in range(self.colds - 1)]
            races.append(self.race(path, expected))
        return [result for name in LIBRARIES for result in self.results([race[name] for race in races])]

    def race(self, path: Path, expected: Expected) -> dict[str, Worker]:
        """All libraries, when they have encoded these parts in turn."""
        workers = {name: Worker(name) for name in LIBRARIES}
        with contextlib.ExitStack() as stack:
            started = [worker for worker in workers.values() if worker.status == "ok"]
            for worker in started:
                stack.enter_context(worker.started(self, path))
            for worker in started:  # they load beside each other
                worker.await_start()
            for number, (size, ids) in enumerate(expected):
                for worker in started:
                    worker.encode(number, size, ids)
        return workers

    def results(self, workers: Sequence[Worker]) -> Iterator[Result]:
        """Of the processes of one library."""
        worker = next((each for each in workers if each.status != "ok"), workers[-1])
        times = worker.status in ("ok", "wrong")
        yield self.result(worker, "", [*workers[-1].times[1:]] if times else [])
        if times:
            yield self.result(worker, f" {COLD}", [each.times[0] for each in workers if each.times])

    def result(self, worker: Worker, suffix: str, times: Sequence[float]) -> Result:
        """`times` are seconds for a byte; a result's are those of a part of the usual size."""
        measured: dict[str, Any] = {}
        if times:
            ordered, last = sorted(time * self.part_bytes for time in times), len(times) - 1
            measured = {
                "method": "clock",
                "median_s": statistics.median(ordered),
                "p20_s": ordered[round(0.2 * last)],
                "p80_s": ordered[round(0.8 * last)],
                "bytes": self.part_bytes,
            }
        op = f"{self.vocabulary}: {self.kind}"
        pass_ = PASSES[self.form] + suffix
        return Result(op, {}, TEXT, pass_, worker.name, worker.status, worker.note, **measured)


class Worker:
    """A library in a process of its own, and what is known of it."""

    def __init__(self, name: str):
        absent = missing(name)
        self.name = name
        self.status, self.note = (absent.status, absent.reason) if absent else ("ok", "")
        self.seconds = 0.0
        self.times: list[float] = []  # of each part: seconds for a byte

    @contextlib.contextmanager
    def started(self, stream: Streaming, path: Path) -> Iterator[None]:
        command = [
            self.name,
            stream.vocabulary.name,
            stream.vocabulary.ranks,
            stream.form,
            stream.part_bytes,
            path,
        ]
        with (
            tempfile.TemporaryFile("w+") as self.errors,
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.text.stream_library", *map(str, command)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            ) as self.process,
        ):  # fmt: skip
            try:
                yield
            finally:
                self.process.kill()

    def await_start(self) -> None:
        said = self.answer()
        if "status" in said:
            self.status, self.note = said["status"], said["reason"]

    def encode(self, number: int, size: int, ids: str) -> None:
        enough = len(self.times) > FEWEST and self.seconds > SECONDS
        if self.status not in ("ok", "wrong") or enough:
            return
        with contextlib.suppress(BrokenPipeError):
            print(number, file=self.process.stdin, flush=True)
        said = self.answer()
        if "seconds" in said:
            self.seconds += said["seconds"]
            self.times.append(said["seconds"] / size)
            if said["digest"] != ids and self.status == "ok":
                self.status, self.note = "wrong", f"other ids than tiktoken's in part {number + 1}"

    def answer(self) -> dict[str, Any]:
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.errors.seek(0)
        self.status = "failed"
        self.note = without_paths((self.errors.read().strip().splitlines() or ["no message"])[-1])
        return {}


@functools.lru_cache(maxsize=1)  # of the two forms of one stream, which follow each other
def expected_of(vocabulary: Vocabulary, part_bytes: int, text: str) -> Expected:
    reference = tiktoken(vocabulary)
    return [
        (sum(len(document.encode()) for document in part), digest(reference.numpy(part, 1)))
        for part in parts(text, part_bytes)
    ]
