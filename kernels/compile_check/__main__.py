"""``python -m llmfast.kernels.compile_check``: see ``llmfast.kernels.compile_check``."""

import argparse
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from ..frame import launch
from ..frame._triton import HAS_TRITON, INTERPRETING

PROCESSES = 2


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if not HAS_TRITON:
        sys.exit("the compile check needs the package triton, which is not installed")
    if INTERPRETING:
        sys.exit("the compile check compiles: unset TRITON_INTERPRET")
    import triton

    from .measure import AMD, Row, measure_family, op_families
    from .table import faults, load, regressions, save

    start = time.monotonic()
    names = [name for name in op_families() if options.op in ("", name)]
    version, committed = load()
    same_triton = version == triton.__version__
    trusted = same_triton and options.again < 1
    known = {row.source: row for row in committed.values() if trusted and random.random() >= options.again}
    tasks = [(name, target, known) for name in names for target in options.capability]
    if len(tasks) == 1:
        measured = measure_family(tasks[0])
    else:
        with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), get_context("spawn")) as pool:
            measured = [pair for pairs in pool.map(measure_family, tasks) for pair in pairs]

    if options.write:
        renewed = {(row.op, row.target) for row, _ in measured}
        kept = [row for row in committed.values() if (row.op, row.target) not in renewed]
        save(triton.__version__, [*kept, *(row for row, _ in measured if isinstance(row, Row))])
    failures = 0
    for row, unmet in sorted(measured, key=lambda pair: pair[0].key):
        found = faults(row, unmet)
        if isinstance(row, Row) and not options.write:
            found += regressions(row, committed, same_triton)
        for fault in found:
            print(f"{'note' if row.target == AMD else 'FAIL'} {' · '.join(row.key)}: {fault}")
            failures += row.target != AMD
    seconds = time.monotonic() - start
    unchanged = sum(isinstance(row, Row) and row.source in known for row, _ in measured)
    by_table = f" ({unchanged} not compiled: their source is that of the table)" if trusted else ""
    print(f"{len(measured)} kernels on {', '.join(options.capability)}{by_table}: {failures} faults, {seconds:.0f} s")
    return 1 if failures else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    from .measure import AMD

    chips = [str(capability) for capability in launch.CHIPS]
    parser = argparse.ArgumentParser(
        prog="python -m llmfast.kernels.compile_check",
        description="Compiles every launch the kernels can make, for every chip, and checks what came out.",
    )
    parser.add_argument(
        "--capability",
        nargs="+",
        choices=[*chips, AMD],
        default=None,
        help="only these chips, as 120 for compute capability 12.0 (default: all of NVIDIA's)",
    )
    parser.add_argument("--op", default="", help="only this family of ops, as norm")
    parser.add_argument(
        "--again",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="compile what has changed since the table was written, and this share of the rest, chosen at random "
        "(default: 1, everything)",
    )
    parser.add_argument("--write", action="store_true", help="renew the committed table")
    options = parser.parse_args(arguments)
    options.capability = options.capability or (chips + [AMD] if options.write else chips)
    return options


if __name__ == "__main__":
    sys.exit(main())
