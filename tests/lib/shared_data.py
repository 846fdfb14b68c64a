"""Finds the larger files that some tests read and a clone need not have."""

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The path of a file or folder of the shared test data; where it is absent, the test is skipped.

    The data lie in the folder that LLMFAST_TEST_DATA names, or in ../shared/data beside the repository.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LLMFAST_TEST_DATA") or beside)
    path = folder / name
    if not path.exists():
        pytest.skip(f"needs {name}, which is not in {folder}; LLMFAST_TEST_DATA names another folder")
    return path
