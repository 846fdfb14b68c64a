"""The cases that tell most, in order of importance, measured in one process, which imports and measures ceilings once.

    python -m benchmarks.gpu.cases --limit S --out DIR [--compiled] [--tiny]

``--compiled`` measures llmfast beside what PyTorch compiles and nothing else, into files of their own: compiling takes
minutes. What DIR holds already is not measured again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .. import measure
from ..compare import Case
from ..contenders import COMPILED
from ..results import OURS, Report, describe_machine, read
from ..run import NO_TIME, Clock, measure_case
from .stages import SUITES_OF_CASES

NEED_COMPILING = (COMPILED, "FlexAttention")
ROUNDS = {"cuda": 11, "cpu": 3}
COMPILED_PEERS = "compiled"  # the size of a report of them


def chosen_cases() -> Iterator[tuple[str, Case]]:
    """(suite, case). 16,384 tokens of attention; the layers are those of Llama 3 8B."""

    def suite(name: str):
        return importlib.import_module(f"benchmarks.suites.{name}")

    attention, losses, nf4 = suite("attention"), suite("linear_cross_entropy"), suite("nf4")
    yield "attention", attention.training(8192, 128, True)
    yield "linear_cross_entropy", losses.case(4096, 4096, 128256)
    yield "attention", attention.training(8192, 128, False)
    yield "attention", attention.training(8192, 64, True)
    yield "attention", attention.decode(16, 8192, 32, 8, 128)
    yield from (("nf4", nf4.linear_case(tokens, 14336, 4096)) for tokens in (1, 8, 64, 1024))
    yield "cross_entropy", suite("cross_entropy").case(4096, 128256)
    yield "norm", suite("norm").rms_norm_case(8192, 4096)
    yield "optimizer", suite("optimizer").adamw_case(24, 2**24, torch.bfloat16)
    yield "attention", attention.training(2048, 128, True)
    yield "attention", attention.decode(1, 131072, 32, 8, 128)
    yield "attention", attention.training(512, 128, True)
    yield "attention", attention.training(2048, 128, False)
    yield "attention", attention.training(2048, 64, True)


def rehearsed_cases() -> Iterator[tuple[str, Case]]:
    """Tiny cases of the same suites."""
    for name in SUITES_OF_CASES:
        yield from ((name, case) for case in importlib.import_module(f"benchmarks.suites.{name}").cases("tiny"))


def with_contenders(case: Case, compiled: bool) -> Case | None:
    """The case without contenders that need compiling, or with llmfast and those alone; None where there are none."""
    slow = [each for each in case.contenders if each.name in NEED_COMPILING]
    if not compiled:
        return replace(case, contenders=[each for each in case.contenders if each not in slow])
    ours = [each for each in case.contenders if each.name == OURS]
    return replace(case, contenders=ours + slow) if slow else None


class Reports:
    """The report of each suite, with what an earlier call measured with the same sources on the same machine."""

    def __init__(self, device: str, size: str, folder: Path):
        self.size, self.folder = size, folder
        self.machine = describe_machine(device)
        self.ceilings = measure.ceilings(device, tiny=device == "cpu")
        self.reports: dict[str, Report] = {}

    def __getitem__(self, suite: str) -> Report:
        if suite not in self.reports:
            report = Report(suite, self.size, self.machine, self.ceilings)
            path = self.folder / report.file_name
            self.reports[suite] = read(path) if path.is_file() else report
        return self.reports[suite]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cases")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--compiled", action="store_true", help="llmfast beside what PyTorch compiles")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU, whose figures mean nothing")
    options = parser.parse_args(arguments)
    device = "cpu" if options.tiny else "cuda"
    clock = Clock(options.limit)
    size = COMPILED_PEERS if options.compiled else "tiny" if options.tiny else "full"
    reports = Reports(device, size, options.out)
    failed = False
    for suite, whole in rehearsed_cases() if options.tiny else chosen_cases():
        case = with_contenders(whole, options.compiled)
        if case is not None:
            reason = measure_case(reports[suite], case, device, ROUNDS[device], options.out, clock)
            failed |= reason not in (None, NO_TIME)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
