"""A plugin of pytest that records which tests passed, as they pass, and leaves out those that passed in an earlier run,
which may have been cut short."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PASSED = "LLMFAST_PASSED_TESTS"  # a file of the ids of tests, one a line


EARLIER = ".earlier"  # the end of the name of a copy that does not change while tests run


def remember_earlier(path: Path) -> None:
    """What has passed by now is left out by the runs that follow."""
    path.touch()
    shutil.copy(path, f"{path}{EARLIER}")


def passed_earlier() -> set[str]:
    return set(Path(f"{os.environ[PASSED]}{EARLIER}").read_text(encoding="utf-8").splitlines())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    passed = passed_earlier()
    left_out = [item for item in items if item.nodeid in passed]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report):
    # With xdist, its workers report to the process that started them, which alone writes.
    if report.when == "call" and report.passed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ[PASSED], "a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")
