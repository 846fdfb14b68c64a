"""One full folder for all tests of the dashboard, which leave Python's main module as it was."""

import sys

import pytest
from small_app import write_full_folder


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    return write_full_folder(tmp_path_factory.mktemp("full"))


@pytest.fixture(autouse=True)
def same_main_module(monkeypatch):
    """Streamlit puts the page in its place, and a process that a later test starts would run the page first."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
