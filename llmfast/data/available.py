"""Whether sources of data can be read on this machine, told before anything is read or made."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmfast.data.examples.gym import PREFIX, environment, is_gym
from llmfast.data.reading.corpus import files_of
from llmfast.data.reading.datasets_hub import is_dataset
from llmfast.data.reading.readers import check_libraries
from llmfast.remote import check_address, is_address


def check_sources(sources: Sequence[Any], *, will_exist: Callable[[Path], bool] = lambda path: False) -> None:
    """Check that the libraries for ``sources`` are installed and that their files exist; nothing is read.

    Datasets and addresses are not contacted: their libraries alone are checked.

    Args:
        sources: files, folders, patterns, ``LABEL=FILE``, addresses, datasets and environments by name. What is not a
            string is left alone.
        will_exist: whether a path is made before it is read, so that it may be absent now.

    Raises:
        ValueError: a file, folder or pattern names nothing, or an address cannot be opened.
        ModuleNotFoundError: a library that a source needs is not installed.
    """
    for source in sources:
        if not isinstance(source, str | Path):
            continue
        name = str(source)
        if is_gym(name):
            environment(name.removeprefix(PREFIX).partition(":")[0], 1)
        elif is_dataset(name):
            import datasets  # noqa: F401
        elif is_address(name):
            check_address(name)
        else:
            path = _file(name)
            for file in () if will_exist(Path(path)) else files_of(path):
                check_libraries(file)


def _file(source: str) -> str:
    """The file of ``LABEL=FILE``, or else the source itself."""
    _, equals, file = source.partition("=")
    return file if equals and not Path(source).exists() and not glob.glob(source, recursive=True) else source
