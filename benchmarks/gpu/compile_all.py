"""Compiles every launch choice for this chip on all cores, into Triton's cache, from which tests and benchmarks take
them; else each process would wait minutes for the compiler.

    python -m benchmarks.gpu.compile_all [--few]     for 9.0 where there is no GPU; --few: a case of each family of ops
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from .place import has_gpu

FIRST = ("attention", "losses", "nf4")  # the families whose kernels take longest to compile


def cases_of(family: str, target: str) -> list:
    from llmfast.kernels.compile_check.measure import chip_of

    module = importlib.import_module(f"llmfast.kernels.{family}.compile_cases")
    return list(module.compile_cases(chip_of(target)))


@functools.cache
def prepared(family: str, target: str) -> list:
    from llmfast.kernels.compile_check.measure import compile_for

    compile_for(target)
    return cases_of(family, target)


def compile_case(family: str, index: int, target: str) -> tuple[int, list[str]]:
    """How many kernels a case launches, and those that do not compile."""
    from llmfast.kernels.compile_check.measure import compiled

    case = prepared(family, target)[index]
    kernels = compiled(case, target)
    for _, kernel in kernels:
        build_launcher(kernel)
    return len(kernels), [f"{case.op} {case.case}: {name}: {k}" for name, k in kernels if isinstance(k, Exception)]


def build_launcher(kernel: object) -> None:
    """Triton up to 3.6 has the C compiler build a launcher for every signature, at the first launch."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher") and has_gpu() and not isinstance(kernel, Exception):
        driver.CudaLauncher(kernel.src, kernel.metadata)


def capability() -> str:
    import torch

    return "{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "90"


def main(arguments: list[str]) -> int:
    from llmfast.kernels.compile_check.measure import op_families

    target, few = capability(), 1 if "--few" in arguments else None
    start, kernels, faults = time.monotonic(), 0, []
    families = sorted(op_families(), key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    tasks = [(family, index) for family in families for index in range(len(cases_of(family, target)[:few]))]
    workers = min(os.cpu_count() or 1, len(tasks))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = [pool.submit(compile_case, *task, target) for task in tasks]
        for done, future in enumerate(as_completed(waiting), 1):
            count, failed = future.result()
            kernels += count
            faults += failed
            if done % 25 == 0 or done == len(tasks):
                print(f"{done} of {len(tasks)} cases, {kernels} kernels, {time.monotonic() - start:.0f} s")
    print(*faults, sep="\n", end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
