"""Runs an op suite: ceilings first, then case by case; the file of results is written anew after each."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from . import compare, measure
from .compare import Case
from .results import FOLDER, Report, describe_machine

NO_TIME = "no time left"
ROUNDS = {"full": 25, "quick": 11, "tiny": 3}


@dataclass(frozen=True)
class Options:
    device: str = "cuda"
    quick: bool = False
    out: Path = FOLDER
    limit_s: float = float("inf")

    @property
    def size(self) -> str:
        """On a CPU shapes are tiny: they show that a suite works, and no speed."""
        return "tiny" if self.device == "cpu" else "quick" if self.quick else "full"


def run_suite(name: str, options: Options, say: Callable[[str], None] = print) -> Report:
    """Results of every case that there is time for; the others are named in ``not_run``."""
    suite = importlib.import_module(f"{__package__}.suites.{name}")
    return run_cases(name, suite.cases(options.size), options, say)


def run_cases(
    name: str, cases: Iterable[Case], options: Options, say: Callable[[str], None] = print
) -> Report:
    end = time.monotonic() + options.limit_s
    report = Report(name, options.size, describe_machine(options.device), measure.ceilings(options.device))
    copy, gemm = report.ceilings["copy_bytes_per_s"], report.ceilings["gemm_flops_per_s"]
    say(f"{name}: copy {copy / 1e9:.0f} GB/s, matrix product {gemm / 1e12:.1f} TFLOP/s")
    longest = 0.0
    for case in cases:
        start = time.monotonic()
        if start + longest > end:
            report.not_run[str(case)] = NO_TIME
            continue
        try:
            report.results += compare.run_case(case, options.device, ROUNDS[options.size], report.ceilings)
        except Exception as error:  # too little memory for its reference, most of the time: the others go on
            report.not_run[str(case)] = compare.one_line(error)
        compare.release_memory(options.device)
        longest = max(longest, time.monotonic() - start)
        report.write(options.out)
        say(f"{name}: {case}: {report.not_run.get(str(case)) or f'{time.monotonic() - start:.1f} s'}")
    out_of_time = [case for case, reason in report.not_run.items() if reason == NO_TIME]
    if out_of_time:
        say(f"{name}: {NO_TIME} for {'; '.join(out_of_time)}")
    report.write(options.out)
    return report
