"""``benchmarks/gpu_run.sh``, which says what it does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .call import WORK, Call
from .place import has_gpu


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu_run.sh", description=__doc__)
    parser.add_argument("--limit", type=float, default=520, metavar="SECONDS", help="ends within them (520)")
    parser.add_argument("--out", type=Path, default=WORK / "out", help="folder of the log, the table and the results")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of peers to put on the path")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal without a GPU, whose figures mean nothing")
    options = parser.parse_args(arguments)
    if options.limit < 60:
        parser.error(f"--limit {options.limit:g} is too short for anything: give 60 seconds or more")
    if options.wheels and not list(options.wheels.glob("*.whl")):
        parser.error(f"--wheels {options.wheels} holds no wheel")
    if not options.cpu and not has_gpu():
        print("No GPU: there is no /dev/nvidiactl here, and nothing was run (--cpu rehearses without one)")
        return 0
    out = options.out.resolve()
    wheels = options.wheels and options.wheels.resolve()
    return Call(options.limit, out, rehearsal=options.cpu).run(wheels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
