"""All that a CPU can tell, part by part, and the report of it.

python -m benchmarks cpu [PART ...] [--quick]

Each part is a process of its own, in which its contenders take turns: what one part leaves in memory slows no other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from .programs import tokenizer_report, tokenizer_train_report
from .report import render
from .results import FOLDER, ROOT
from .suites import PROGRAMS, SUITES

PARTS = [name for name, suite in SUITES.items() if "cpu" in suite.devices] + list(PROGRAMS)
DATA = Path(os.environ.get("LLMFAST_TEST_DATA") or ROOT.parent / "shared" / "data")
RANK_FILES = DATA / "tiktoken"
TEXT_MEGABYTES = {"cpu": 20, "cpu-quick": 1}
VOCABULARY = {"cpu": 16384, "cpu-quick": 1024}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cpu", description="All that a CPU can tell, and its report."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all if left out: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a minute; nothing is compiled")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    out = options.out.resolve()
    size = "cpu-quick" if options.quick else "cpu"
    failed = []
    for part in options.parts or PARTS:
        print(f"== {part}", flush=True)
        run = run_program if part in PROGRAMS else run_suite
        if not run(part, size, out):
            failed.append(part)
    print(f"\n{render(out, sizes=(size,))}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def start(*arguments: object) -> bool:
    """Whether ``python -m benchmarks ARGUMENTS`` succeeded."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def run_suite(name: str, size: str, out: Path) -> bool:
    quick = ["--quick"] if size == "cpu-quick" else []
    return start(name, "--device", "cpu", "--out", out, *quick)


def run_program(name: str, size: str, out: Path) -> bool:
    """Runs a program of the tokenizer and keeps what it measured as a result file."""
    if name == "tokenizer" and not RANK_FILES.is_dir():
        print(
            f"skipped: tiktoken's rank files are not in {RANK_FILES} (LLMFAST_TEST_DATA names the folder above)"
        )
        return True
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "measured.json"
        if name == "tokenizer_train":
            text = standard_library(TEXT_MEGABYTES[size], Path(folder))
            few = ["--rounds", 1, "--threads", 1] if size == "cpu-quick" else []
            done = start(name, text, "--vocab-size", VOCABULARY[size], "--out", measured, *few)
            make = tokenizer_train_report
        else:
            done = start(name, "--quick", "--out", measured)
            make = tokenizer_report
        if done and measured.exists():
            make(measured, size).write(out)
    return done


def standard_library(megabytes: int, folder: Path) -> Path:
    """A file of Python's own modules, text that every machine has."""
    path, left = folder / "standard_library.txt", megabytes * 1_000_000
    with path.open("wb") as file:
        for module in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            if left <= 0:
                break
            if "site-packages" not in module.parts:
                text = module.read_text(encoding="utf-8", errors="replace").encode()[:left]
                left -= file.write(text.decode(errors="ignore").encode())
    return path
