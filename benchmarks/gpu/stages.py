"""What a call does, stage by stage, each a command of its own that may be killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..suites import SUITES
from .tests import CHOSEN, gpu_test_files

MODULE = (sys.executable, "-m")
TESTS = (*MODULE, "pytest", "-m", "gpu", "-q", "-rfE", "--tb=short", "-o", "addopts=", "--import-mode=importlib")
PLUGINS = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.recorder")
WORKERS = ("-n", str(min(os.cpu_count() or 1, 8)))  # each holds a context of CUDA's and imports torch
# The suites of ``cases``.
SUITES_OF_CASES = ("attention", "linear_cross_entropy", "nf4", "cross_entropy", "norm", "optimizer")
OTHER_SUITES = [name for name, suite in SUITES.items() if "cuda" in suite.devices and name not in SUITES_OF_CASES]


@dataclass(frozen=True)
class Stage:
    """A command that takes at most ``most`` seconds of a call, and is not begun with fewer than ``least`` left.

    ``command`` is a function of the folder of results, the seconds that it has, and whether this is a rehearsal.
    """

    name: str
    most: float
    least: float
    command: Callable[[Path, float, bool], list[str]]

    def __str__(self) -> str:
        return self.name


def compile_all(results: Path, seconds: float, rehearsal: bool) -> list[str]:
    """In a rehearsal, for 9.0, and of each family of ops the first case."""
    return [*MODULE, "benchmarks.gpu.compile_all", *(("--few",) if rehearsal else ())]


def chosen_tests(results: Path, seconds: float, rehearsal: bool) -> list[str]:
    """In a rehearsal, the twins of every eighth in Triton's interpreter, which takes minutes for more."""
    if rehearsal:
        return [*TESTS, *PLUGINS, "-m", "not gpu", *WORKERS, *CHOSEN[::8]]
    return [*TESTS, *PLUGINS, *WORKERS, *CHOSEN]


def other_tests(results: Path, seconds: float, rehearsal: bool) -> list[str]:
    return [*TESTS, *PLUGINS, *WORKERS, "--continue-on-collection-errors", *gpu_test_files()]


def cases(results: Path, seconds: float, rehearsal: bool) -> list[str]:
    return [*MODULE, "benchmarks.gpu.cases", "--out", str(results), *limited(seconds), *tiny(rehearsal)]


def compiled_peers(results: Path, seconds: float, rehearsal: bool) -> list[str]:
    return [*cases(results, seconds, rehearsal), "--compiled"]


def tune(results: Path, seconds: float, rehearsal: bool) -> list[str]:
    return [*MODULE, "benchmarks", "tune", "attention", "--out", str(results / "tables"), *tiny(rehearsal)]


def other_suites(results: Path, seconds: float, rehearsal: bool) -> list[str]:
    options = ("--quick", "--out", str(results), *limited(seconds / len(OTHER_SUITES)), *tiny(rehearsal))
    return [*MODULE, "benchmarks", *OTHER_SUITES, *options]


def limited(seconds: float) -> tuple[str, ...]:
    """A case that would end later is not begun."""
    return ("--limit", str(max(seconds - 10, 1)))


def tiny(rehearsal: bool) -> tuple[str, ...]:
    return ("--tiny",) if rehearsal else ()


STAGES = (
    Stage("compile", 100, 20, compile_all),
    Stage("chosen tests", 130, 20, chosen_tests),
    Stage("cases", 215, 30, cases),
    Stage("tune", float("inf"), 30, tune),
    Stage("other tests", 90, 25, other_tests),
    Stage("compiled peers", 120, 30, compiled_peers),
    Stage("other suites", float("inf"), 120, other_suites),
)
# What was cut short waits in the next call for what was never begun: the other tests include the chosen ones, what was
# not compiled is compiled where it is launched, and the tuner would fill the next call, too.
AGAIN_LAST = ("compile", "chosen tests", "tune")
