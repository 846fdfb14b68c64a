"""Runs a suite: ceilings first, then case by case; the file of results is written anew after each."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import measure
from .compare import one_line, release_memory
from .report import ceilings_line
from .results import FOLDER, Report, Result, describe_machine
from .suites import SUITES

NO_TIME = "no time left"
ROUNDS = {"full": 25, "quick": 11, "cpu": 15, "cpu-quick": 5, "tiny": 3}


class Measurable(Protocol):
    """An op at a shape (``compare.Case``) or a whole job (``jobs.Job``)."""

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        """The results of all its contenders."""


@dataclass(frozen=True)
class Options:
    device: str = "cuda"
    quick: bool = False
    tiny: bool = False  # a rehearsal, whose figures mean nothing
    out: Path = FOLDER
    limit_s: float = float("inf")

    def size(self, name: str) -> str:
        """A suite of kernels has nothing to say about a CPU: there it is only tried out."""
        if self.tiny or self.device not in SUITES[name].devices:
            return "tiny"
        if self.device == "cpu":
            return "cpu-quick" if self.quick else "cpu"
        return "quick" if self.quick else "full"


def run_suite(name: str, options: Options, say: Callable[[str], None] = print) -> Report:
    """Results of every case that there is time for; the others are named in ``not_run``."""
    suite = importlib.import_module(f"{__package__}.suites.{name}")
    return run_cases(name, suite.cases(options.size(name)), options, say)


def run_cases(
    name: str, cases: Iterable[Measurable], options: Options, say: Callable[[str], None] = print
) -> Report:
    end = time.monotonic() + options.limit_s
    size = options.size(name)
    ceilings = measure.ceilings(options.device, tiny=size == "tiny")
    report = Report(name, size, describe_machine(options.device), ceilings)
    say(f"{name}: {ceilings_line(ceilings)}")
    longest = 0.0
    for case in cases:
        start = time.monotonic()
        if start + longest > end:
            report.not_run[str(case)] = NO_TIME
            continue
        try:
            report.results += case.run(options.device, ROUNDS[size], report.ceilings)
        except Exception as error:  # too little memory for its reference, most of the time: the others go on
            report.not_run[str(case)] = one_line(error)
        release_memory(options.device)
        longest = max(longest, time.monotonic() - start)
        report.write(options.out)
        say(f"{name}: {case}: {report.not_run.get(str(case)) or f'{time.monotonic() - start:.1f} s'}")
    out_of_time = [case for case, reason in report.not_run.items() if reason == NO_TIME]
    if out_of_time:
        say(f"{name}: {NO_TIME} for {'; '.join(out_of_time)}")
    report.write(options.out)
    return report
