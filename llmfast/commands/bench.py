"""``llmfast bench``: ``python -m benchmarks`` of the clone that llmfast is installed from."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import llmfast


def bench(arguments: list[str]) -> None:
    """Measure llmfast beside its peers; without arguments, list what can be measured.

    Args:
        arguments: Those of ``python -m benchmarks``.

    Raises:
        ValueError: llmfast is installed without its repository, which alone holds the benchmarks.
        SystemExit: at the end, with the exit code of the benchmarks.
    """
    root = Path(llmfast.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise ValueError(
            "the benchmarks are not part of the installed package: clone the repository, "
            "`pip install -e .` there, and run llmfast bench again"
        )
    # On the path for as long as it takes to find the package, which removes it again: ./kernels lies there, too.
    sys.path.insert(0, str(root))
    sys.argv = ["llmfast bench", *arguments]
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
