"""python -m benchmarks: lists the suites, runs them, renders their results.

python -m benchmarks                         lists the suites
python -m benchmarks norm attention --quick  runs suites; each writes one result file
python -m benchmarks cpu [--quick]           every benchmark of a CPU, and a report
python -m benchmarks tune OP                 times the launch choices of an op on this GPU
python -m benchmarks report [DIR] [--short]  Markdown tables of the files in DIR; --plots, --readme
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .results import FOLDER
from .suites import SUITES

COMPOSED = {"cpu": "every CPU benchmark, with train_step and generate, and a report"}


def listing() -> str:
    ops = {name: suite.about for name, suite in SUITES.items() if "cuda" in suite.devices}
    parts = {name: suite.about for name, suite in SUITES.items() if "cuda" not in suite.devices}
    lines = ["On a GPU (python -m benchmarks NAME ... [--quick]; NAME --help has all options):", ""]
    lines += [f"  {name:<22}{about}" for name, about in ops.items()]
    lines += ["", "On the CPU:", ""]
    lines += [f"  {name:<22}{about}" for name, about in (COMPOSED | parts).items()]
    lines += ["", "To time an op's launch choices on this GPU: python -m benchmarks tune OP"]
    return "\n".join([*lines, "Results: python -m benchmarks report [DIR] [--short]"])


def without_gpu() -> str | None:
    """The reason that nothing can be measured on a GPU here, or None."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return f"PyTorch {torch.__version__} finds no CUDA device"


def report(arguments: list[str]) -> int:
    from .reporting.report import render

    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="folder of result files")
    parser.add_argument("--short", action="store_true", help="one table: llmfast beside the best other contender")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into this folder")
    parser.add_argument(
        "--readme", action="store_true", help="update the tables, figures and charts of README.md and docs/"
    )
    options = parser.parse_args(arguments)
    problems: list[str] = []
    if options.readme:
        from .reporting.charts import draw_charts
        from .reporting.pages import pages, refreshed
        from .reporting.study_plots import draw_plots

        for page in pages():
            page.write_text(refreshed(page.read_text(encoding="utf-8"), options.folder, problems), encoding="utf-8")
        draw_charts(options.folder)
        draw_plots(problems=problems)
    if options.plots:
        from .reporting.plots import draw

        for path in draw(options.folder, options.plots):
            print(path)
    if not (options.readme or options.plots):
        print(render(options.folder, options.short))
    for problem in dict.fromkeys(problems):
        print(f"not renewed: {problem}", file=sys.stderr)
    return int(bool(problems))


def run(arguments: list[str]) -> int:
    from .run import NO_TIME, Options, run_suite

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Runs suites.")
    parser.add_argument("suites", nargs="+", choices=list(SUITES), metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="fewer shapes, under a minute per suite")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        help="cuda by default, except for CPU suites; a kernel suite on a CPU runs as with --tiny",
    )
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU, whose figures mean nothing")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="for each suite")
    parser.add_argument("--resume", action="store_true", help="measure only what the result file lacks")
    parser.add_argument("--text", type=Path, nargs="+", default=(), metavar="FILE", help="UTF-8 text to measure on")
    options = parser.parse_args(arguments)
    failed = False
    for name in options.suites:
        device = "cpu" if options.tiny else options.device or SUITES[name].devices[0]
        reason = without_gpu() if device == "cuda" else None
        if reason:
            print(f"{name}: skipped: {reason} (--device cpu tries a suite out without one)")
            continue
        chosen = Options(
            device,
            options.quick,
            options.tiny,
            options.out,
            options.limit,
            tuple(options.text),
            options.resume,
        )
        report = run_suite(name, chosen)
        failed |= any(reason != NO_TIME for reason in report.not_run.values())
    return int(failed)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    if arguments[0] == "report":
        return report(arguments[1:])
    if arguments[0] == "cpu":
        from .cpu import main as run_parts

        return run_parts(arguments[1:])
    if arguments[0] == "tune":
        from .tune import main as tune

        return tune(arguments[1:])
    return run(arguments)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(
            "interrupted: the result file holds what was measured; --resume measures the rest",
            file=sys.stderr,
        )
        code = 130
    except BrokenPipeError:  # the reader closed the pipe, as in `... report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
