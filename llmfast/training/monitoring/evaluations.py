"""The functions that ``training.evaluations`` names."""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path
from typing import Any


def named_evaluation(name: str) -> Any:
    """The function that ``module:function`` names; with ``module:function:FILE``, it is called with ``data``, the file.

    Raises:
        ValueError: there is no such function or file, or the function takes none.
    """
    module, _, rest = name.partition(":")
    function, _, file = rest.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"training.evaluations: {name!r} is neither module:function nor module:function:FILE ({error})"
        ) from None
    if not file:
        return found
    if "data" not in inspect.signature(found).parameters:
        raise ValueError(f"training.evaluations: {name!r} names a file, but {function} has no argument data to take it")
    if not Path(file).is_file():
        raise ValueError(f"training.evaluations: {name!r}: there is no file {file}")
    return functools.partial(found, data=Path(file))
