"""python -m benchmarks: lists the suites, runs them, renders their results.

python -m benchmarks                         what there is
python -m benchmarks norm attention --quick  runs suites, a file of results each
python -m benchmarks report [DIR] [--short]  Markdown tables of the files in DIR
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from .results import FOLDER
from .suites import OPS, PROGRAMS


def listing() -> str:
    lines = ["Ops, on a GPU (python -m benchmarks NAME ... [--quick]; NAME --help has all options):", ""]
    lines += [f"  {name:<22}{about}" for name, about in OPS.items()]
    lines += ["", "On the CPU, each with options of its own (NAME --help):", ""]
    lines += [f"  {name:<22}{about}" for name, about in PROGRAMS.items()]
    return "\n".join([*lines, "", "Results: python -m benchmarks report [DIR] [--short]"])


def without_gpu() -> str | None:
    """Why nothing can be measured on a GPU here; None where it can."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return f"PyTorch {torch.__version__} finds no CUDA device"


def report(arguments: list[str]) -> None:
    from .report import render

    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="of result files")
    parser.add_argument("--short", action="store_true", help="one table: ours beside the best other")
    options = parser.parse_args(arguments)
    print(render(options.folder, options.short))


def run(arguments: list[str]) -> int:
    from .run import NO_TIME, Options, run_suite

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Runs suites.")
    parser.add_argument("suites", nargs="+", choices=list(OPS), metavar="SUITE", help=", ".join(OPS))
    parser.add_argument("--quick", action="store_true", help="fewer shapes: under a minute a suite")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, only to try it out"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="for each suite")
    options = parser.parse_args(arguments)
    reason = without_gpu() if options.device == "cuda" else None
    if reason:
        print(f"{', '.join(options.suites)}: skipped: {reason} (--device cpu tries a suite out without one)")
        return 0
    chosen = Options(options.device, options.quick, options.out, options.limit)
    reports = [run_suite(name, chosen) for name in options.suites]
    return int(any(reason != NO_TIME for report in reports for reason in report.not_run.values()))


def main(arguments: list[str]) -> int:
    if not arguments:
        print(listing())
        return 0
    if arguments[0] == "report":
        report(arguments[1:])
    elif arguments[0] in PROGRAMS:
        sys.argv = arguments
        runpy.run_module(f"{__package__}.suites.{arguments[0]}", run_name="__main__", alter_sys=True)
    elif arguments == ["names"]:
        print(*OPS, sep="\n")
    elif arguments == ["check-gpu"]:
        import llmfast.kernels  # noqa: F401  what is to be measured: without it, nothing else need be tried

        print(without_gpu() or "", end="")
    else:
        return run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
