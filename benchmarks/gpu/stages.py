"""What a call does, stage by stage, each a command of its own that may be killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .chosen_tests import CHOSEN, gpu_test_files
from .place import WORK

RESULTS = WORK / "results"
MODULE = (sys.executable, "-m")
TESTS = (*MODULE, "pytest", "-m", "gpu", "-q", "-rfE", "--tb=short", "-o", "addopts=", "--import-mode=importlib")
PLUGINS = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.recorder")
WORKERS = ("-n", str(min(os.cpu_count() or 1, 8)))  # each holds a context of CUDA's and imports torch


@dataclass(frozen=True)
class Stage:
    """A command that takes at most ``most`` seconds of a call, and is not begun with fewer than ``least`` left."""

    name: str
    most: float
    least: float
    command: Callable[[float, bool], list[str]]  # of the seconds it has, and whether it is a rehearsal

    def __str__(self) -> str:
        return self.name


def compile_all(seconds: float, rehearsal: bool) -> list[str]:
    return [*MODULE, "benchmarks.gpu.compile_all"]


def chosen_tests(seconds: float, rehearsal: bool) -> list[str]:
    """In a rehearsal, their twins in Triton's interpreter."""
    marks = ("-m", "not gpu") if rehearsal else ()
    return [*TESTS, *PLUGINS, *marks, *WORKERS, *CHOSEN]


def other_tests(seconds: float, rehearsal: bool) -> list[str]:
    return [*TESTS, *PLUGINS, *WORKERS, "--continue-on-collection-errors", *gpu_test_files()]


def cases(seconds: float, rehearsal: bool) -> list[str]:
    return [*MODULE, "benchmarks.gpu.cases", *limited(seconds), *tiny(rehearsal)]


def compiled_peers(seconds: float, rehearsal: bool) -> list[str]:
    return [*cases(seconds, rehearsal), "--compiled"]


def tune(seconds: float, rehearsal: bool) -> list[str]:
    return [*MODULE, "benchmarks", "tune", "attention", "--out", str(RESULTS / "tables"), *tiny(rehearsal)]


def limited(seconds: float) -> tuple[str, ...]:
    """A case that would end later is not begun."""
    return ("--limit", str(max(seconds - 3, 1)), "--out", str(RESULTS))


def tiny(rehearsal: bool) -> tuple[str, ...]:
    return ("--tiny",) if rehearsal else ()


STAGES = (
    Stage("compile", 100, 20, compile_all),
    Stage("chosen tests", 130, 20, chosen_tests),
    Stage("cases", 215, 30, cases),
    Stage("tune", float("inf"), 30, tune),
    Stage("other tests", 90, 25, other_tests),
    Stage("compiled peers", 120, 30, compiled_peers),
)
AGAIN_LAST = ("tune",)  # it would fill the next call, too
