"""The benchmarks, which are no part of the installed package, imported for their tests."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bench():
    """``benchmarks.run``; the repository root, where ./kernels would shadow Hugging Face's, leaves the path again."""
    sys.path.append(str(ROOT))
    module = importlib.import_module("benchmarks.run")
    sys.path[:] = [entry for entry in sys.path if entry != str(ROOT)]
    return module
