"""A JSON file that somebody else wrote, and its fields: of the type that is meant, or a ValueError that names them."""

from __future__ import annotations

import json
import re
from typing import Any

LARGEST_ID = (1 << 24) - 1  # of the engine


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parsed(content: bytes) -> Any:
    """The value that a JSON file of UTF-8 holds; ValueError also for one half of a surrogate pair, which is no text.

    >>> parsed(b'{"a": "\\ud83d\\ude00"}')
    {'a': '😀'}
    """
    text = content.decode("utf-8")
    value = json.loads(text)
    if _SURROGATE.search(text):  # nearly always of whole pairs
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(
                f"it has a text with {half!r}, which is half of a character, and no UTF-8 writes it"
            ) from None
    return value


def field(obj: Any, name: str, kind: type) -> Any:
    """A field that must be there."""
    if not isinstance(obj, dict) or not isinstance(obj.get(name), kind):
        raise ValueError(f"it has no {name!r} of type {kind.__name__}")
    return obj[name]


def optional(obj: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """A field that may be missing or null; then it is `default`."""
    value = obj.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise ValueError(f"its {name!r} is {shown(value)}, not of type {kind.__name__}")
    return value


def kind_of(obj: Any) -> str | None:
    """The type that a part of the file says it is of; None where there is no such part."""
    if obj is None:
        return None
    return field(obj, "type", str)


def token_id(value: Any, what: str) -> int:
    """An id that the engine can have."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} is {shown(value)}")
    if value > LARGEST_ID:
        raise ValueError(f"{what} is {value if value < 1 << 64 else 'a huge number'}; the largest id is {LARGEST_ID}")
    return value


def shown(value: Any) -> str:
    """A value as errors show it: not too long, and without following it down to any depth."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if type(value) is int and value.bit_length() > 64:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
