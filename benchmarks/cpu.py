"""Runs every CPU benchmark and prints a report.

python -m benchmarks cpu [PART ...] [--quick]

Each suite runs in a process of its own, so that memory left behind by one does not slow another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from .reporting.report import render
from .results import FOLDER, ROOT
from .suites import SUITES

PARTS = [name for name, suite in SUITES.items() if "cpu" in suite.devices]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cpu", description="Runs every CPU benchmark and prints a report."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all if left out: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test of about a minute, without torch.compile")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    out = options.out.resolve()
    size = "cpu-quick" if options.quick else "cpu"
    failed = []
    for part in options.parts or PARTS:
        print(f"== {part}", flush=True)
        if not start(part, "--device", "cpu", "--out", out, *(["--quick"] if options.quick else [])):
            failed.append(part)
    print(f"\n{render(out, sizes=(size,))}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def start(*arguments: object) -> bool:
    """Runs ``python -m benchmarks ARGUMENTS`` and returns whether it succeeded."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0
