"""Published encodings by name, from tiktoken's own registry and cache of rank files."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable
from typing import Any

from llmfast.tokenizer import published
from llmfast.tokenizer.encoding import Encoding


class PublishedEncoding(Encoding):
    """An encoding of the registry. pickle and copy keep its registered name only, and get the same object again."""

    def __init__(self, registered_name: str, **parts: Any):
        super().__init__(**parts)
        self._registered_name = registered_name

    def __reduce__(self) -> tuple[Callable[[str], Encoding], tuple[str]]:
        return get_encoding, (self._registered_name,)


ENCODINGS: dict[str, Encoding] = {}
_lock = threading.RLock()
_constructors: dict[str, Callable[[], dict[str, Any]]] | None = None


def _find_constructors() -> dict[str, Callable[[], dict[str, Any]]]:
    """The constructors of every module in the namespace package `tiktoken_ext`, plugins included."""
    global _constructors
    with _lock:
        if _constructors is None:
            import tiktoken_ext

            found: dict[str, Callable[[], dict[str, Any]]] = {}
            for module in pkgutil.iter_modules(tiktoken_ext.__path__, tiktoken_ext.__name__ + "."):
                plugin = importlib.import_module(module.name)
                if not hasattr(plugin, "ENCODING_CONSTRUCTORS"):
                    raise ValueError(f"tiktoken plugin {module.name} does not define ENCODING_CONSTRUCTORS")
                for name, constructor in plugin.ENCODING_CONSTRUCTORS.items():
                    if name in found:
                        raise ValueError(f"Duplicate encoding name {name} in tiktoken plugin {module.name}")
                    found[name] = published.with_fast_loaders(constructor)
            _constructors = found
        return _constructors


def get_encoding(encoding_name: str) -> Encoding:
    """The encoding of that name, built once; ``ValueError`` where there is none."""
    if not isinstance(encoding_name, str):
        raise ValueError(f"Expected a string in get_encoding, got {type(encoding_name)}")
    with _lock:
        if encoding_name not in ENCODINGS:
            constructors = _find_constructors()
            if encoding_name not in constructors:
                raise ValueError(f"Unknown encoding {encoding_name}. Known: {', '.join(sorted(constructors))}")
            ENCODINGS[encoding_name] = PublishedEncoding(encoding_name, **constructors[encoding_name]())
        return ENCODINGS[encoding_name]


def list_encoding_names() -> list[str]:
    """The names that `get_encoding` knows."""
    return list(_find_constructors())
