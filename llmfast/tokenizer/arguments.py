"""Checks of the arguments that public methods share. Each error names the argument and what it was given."""

from __future__ import annotations

import codecs
import operator
import os
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any, NoReturn

_BYTES = (bytes, bytearray, memoryview)


def kind(value: object) -> str:
    """The name of the type of `value`, for an error message."""
    return type(value).__name__


def check_text(text: object, name: str = "text") -> None:
    """``TypeError`` unless `text` is a str."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {kind(text)}") from None


def check_texts(texts: object, name: str, *, allow_bytes: bool = False) -> None:
    """``TypeError`` unless `texts` is a sequence of str (or of bytes-like objects); a single text is not one."""
    refuse_single(texts, name)
    wanted, said = ((str, *_BYTES), "a str or bytes") if allow_bytes else (str, "a str")
    for i, text in enumerate(texts):  # type: ignore[arg-type]
        # A memory map, an array: what has the buffer protocol, which only trying finds out.
        if not isinstance(text, wanted) and not (allow_bytes and _is_buffer(text)):
            raise TypeError(f"{name}[{i}] must be {said}, got {kind(text)}") from None


def refuse_single(texts: object, name: str) -> None:
    """``TypeError`` for a single text where several are expected, and for objects that hold no texts."""
    if isinstance(texts, str | bytes | bytearray | memoryview):
        raise TypeError(f"{name} must be a sequence of texts, got one {kind(texts)}: put it in a list")
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping | Set):
        raise TypeError(f"{name} must be a sequence of texts, got {kind(texts)}")


def _is_buffer(value: object) -> bool:
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def check_specials(allowed: object, disallowed: object) -> None:
    """``TypeError`` unless each is ``"all"`` or a collection of str."""
    for name, names in (("allowed_special", allowed), ("disallowed_special", disallowed)):
        if isinstance(names, str):
            if names != "all":
                raise TypeError(f'{name} must be "all" or a set of special tokens, got {names!r}')
            continue
        if not isinstance(names, Collection) or isinstance(names, (*_BYTES, Mapping)):
            raise TypeError(f'{name} must be "all" or a set of special tokens, got {kind(names)}')
        for special in names:
            check_text(special, f"each special token in {name}")


def check_ids(tokens: object, name: str = "tokens") -> None:
    """``TypeError`` unless `tokens` can be a sequence of token ids; what it holds is checked where it is read."""
    if isinstance(tokens, str | bytes | bytearray | Mapping | Set) or not isinstance(tokens, Iterable):
        raise TypeError(f"{name} must be a sequence of token ids, got {kind(tokens)}")


def raise_for_ids(tokens: Iterable[Any], name: str = "tokens") -> NoReturn:
    """The ``TypeError`` for the first of `tokens` that is no integer; else the error that is being handled."""
    for i, token in enumerate(tokens):
        if not _is_integer(token):
            raise TypeError(f"{name} must be token ids, which are integers; {name}[{i}] is {_shown(token)}") from None
    raise


def _shown(value: object) -> str:
    shown = repr(value)
    return f"{shown} of type {kind(value)}" if len(shown) <= 60 else f"of type {kind(value)}"


def check_id(token: object, name: str = "token") -> None:
    """``TypeError`` unless `token` is an integer."""
    if not _is_integer(token):
        raise TypeError(f"{name} must be an int, got {kind(token)}") from None


def _is_integer(value: object) -> bool:
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def check_errors(errors: object) -> None:
    """``ValueError`` unless `errors` names an error handler of ``bytes.decode``, even where no byte is at fault."""
    if not isinstance(errors, str):
        raise TypeError(f"errors must be a str, got {kind(errors)}")
    try:
        codecs.lookup_error(errors)
    except LookupError:
        raise ValueError(f'errors must name an error handler, such as "replace" or "strict"; got {errors!r}') from None


def check_count(value: object, name: str, least: int) -> None:
    """``TypeError`` unless `value` is an integer, ``ValueError`` where it is below `least`."""
    check_id(value, name)
    if value < least:  # type: ignore[operator]
        raise ValueError(f"{name} must be at least {least}, got {value}")


def thread_count(num_threads: int | None) -> int:
    """How many threads to use: all cores for None."""
    if num_threads is None:
        return available_cores()
    check_count(num_threads, "num_threads", 1)
    return int(num_threads)


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
