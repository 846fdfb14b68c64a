"""Runs a suite: ceilings first, then case by case; the result file is rewritten after each case."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import measure
from .compare import one_line, release_memory
from .reporting.report import ceilings_line
from .results import FOLDER, LIBRARIES, TEXT_LIBRARIES, Report, Result, describe_machine, read
from .suites import SUITES

NO_TIME = "no time left"
ROUNDS = {"full": 25, "quick": 11, "cpu": 15, "cpu-quick": 5, "tiny": 3}


class Measurable(Protocol):
    """An op at a shape (``compare.Case``) or a whole job (``jobs.Job``)."""

    def run(self, device: str, rounds: int, ceilings: dict[str, float]) -> list[Result]:
        """Returns the results of all contenders."""


@dataclass(frozen=True)
class Options:
    device: str = "cuda"
    quick: bool = False
    tiny: bool = False  # a rehearsal whose figures mean nothing
    out: Path = FOLDER
    limit_s: float = float("inf")
    files: tuple[Path, ...] = ()  # texts of the user, for suites that measure on text
    resume: bool = False  # keep the results of the file and measure what is missing

    def size(self, name: str) -> str:
        """On a CPU, a suite of kernels is only rehearsed."""
        if self.tiny or self.device not in SUITES[name].devices:
            return "tiny"
        if self.device == "cpu":
            return "cpu-quick" if self.quick else "cpu"
        return "quick" if self.quick else "full"


def run_suite(name: str, options: Options, say: Callable[[str], None] = print) -> Report:
    """Measures every case within the time limit; the others are listed in ``not_run``."""
    suite = importlib.import_module(f"{__package__}.suites.{name}")
    size = options.size(name)
    if not hasattr(suite, "inputs"):
        if options.files:
            raise ValueError(f"{name} does not measure on text")
        return run_cases(name, suite.cases(size), options, say)
    inputs = suite.inputs(size, options.files)
    return run_cases(name, suite.cases(size, options.files), options, say, inputs)


class Clock:
    """Tells whether another case would still end in time, from how long the longest one took."""

    def __init__(self, limit_s: float):
        self.end, self.longest = time.monotonic() + limit_s, 0.0

    @property
    def has_time(self) -> bool:
        return time.monotonic() + self.longest <= self.end


def run_cases(
    name: str,
    cases: Iterable[Measurable],
    options: Options,
    say: Callable[[str], None] = print,
    inputs: dict[str, str] | None = None,
) -> Report:
    clock = Clock(options.limit_s)
    size = options.size(name)
    ceilings = measure.ceilings(options.device, tiny=size == "tiny")
    machine = describe_machine(options.device, TEXT_LIBRARIES if inputs else LIBRARIES)
    report = Report(name, size, machine, ceilings, inputs=inputs or {})
    say(f"{name}: {ceilings_line(ceilings)}")
    if options.resume:
        report = resumed(report, options.out)
    for case in cases:
        measure_case(report, case, options.device, ROUNDS[size], options.out, clock, say)
    out_of_time = [case for case, reason in report.not_run.items() if reason == NO_TIME]
    if out_of_time:
        say(f"{name}: {NO_TIME} for {len(out_of_time)} cases, from {out_of_time[0]} on")
    report.write(options.out)
    return report


def measure_case(
    report: Report,
    case: Measurable,
    device: str,
    rounds: int,
    folder: Path,
    clock: Clock,
    say: Callable[[str], None] = print,
) -> str | None:
    """Measures a case that the report lacks and writes the report. Returns why it was not measured, if it was not."""
    name = str(case)
    if name in report.measured:
        return None
    if not clock.has_time:
        report.not_run[name] = NO_TIME
        return NO_TIME
    report.not_run.pop(name, None)
    start = time.monotonic()
    try:
        report.results += case.run(device, rounds, report.ceilings)
        report.measured.append(name)
    except Exception as error:  # usually out of memory in the reference; the other cases still run
        report.not_run[name] = one_line(error)
    release_memory(device)
    seconds = time.monotonic() - start
    clock.longest = max(clock.longest, seconds)
    report.write(folder)
    say(f"{report.suite}: {name}: {report.not_run.get(name) or f'{seconds:.1f} s'}")
    return report.not_run.get(name)


def resumed(report: Report, folder: Path) -> Report:
    """The unfinished report in the folder, which can be resumed only on the same machine with the same versions.

    Raises:
        ValueError: the file comes from another machine, revision or version, or from other texts.
    """
    path = folder / report.file_name
    if not path.is_file():
        return report
    before = read(path)
    for name, now in {**report.machine, "inputs": report.inputs}.items():
        then = before.inputs if name == "inputs" else before.machine.get(name)
        if name != "time" and then != now:
            raise ValueError(f"{path.name} cannot be resumed: its {name} is {then}, here it is {now}")
    return before
