"""What a stage depends on: its command, the files that it reads, the stages before it, and versions."""

from __future__ import annotations

import glob
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmfast import __version__
from llmfast.config import read_yaml
from llmfast.files import file_sha256, json_sha256
from llmfast.pipeline.recipe import PLACEHOLDER, Step

HERE = "{here}"


def dependencies(step: Step, keys: dict[str, str]) -> dict[str, Any]:
    """Everything that a stage depends on, as plain values; its hash is the key of the stage.

    Args:
        step: the stage.
        keys: the keys of the stages before it.

    Raises:
        ValueError: a configuration that the command names is not YAML.
        OSError: a file that the command names cannot be read.
    """
    return {
        "command": step.portable + ([f"processes={step.processes}"] if step.processes > 1 else []),
        "files": files_of(step),
        "stages": {name: keys[name] for name in step.needs},
        "llmfast": __version__,
        "python": platform.python_version(),  # its standard library is what llmfast reads where no text is named
    }


def files_of(step: Step) -> dict[str, str]:
    """The hash of every file and folder that the words of a command name, by the word.

    A word names a file as a whole or behind an ``=``. Of a YAML file it is the values that count, and the files that
    these name. A folder is taken for one if the word has a slash, a pattern if it has a star. What stages make is left
    out.
    """
    found: dict[str, str] = {}
    for word, portable in zip(step.words, step.portable, strict=True):
        if not set(PLACEHOLDER.findall(portable)) - {"here"}:
            found |= _hashes(word, portable)
    return found


def recipe_sha256(steps: list[Step]) -> str:
    """The hash of the commands and of the files beside the recipe that they name: what a committed result is of."""
    return json_sha256([[step.name, step.portable, step.processes, _beside(step)] for step in steps])


def _beside(step: Step) -> dict[str, str]:
    return {name: value for name, value in files_of(step).items() if name.startswith(HERE) and " in " not in name}


def _hashes(word: str, name: str, *, is_nested: bool = False) -> dict[str, str]:
    found: dict[str, str] = {}
    for text, shown in {word: name, word.partition("=")[2]: name.partition("=")[2]}.items():
        for path in _paths(text):
            label = str(path) if "*" in text else shown
            found[label] = _hash(path)
            if _is_yaml(path) and not is_nested:
                for value in _texts(read_yaml(path)):
                    inner = _hashes(value, value, is_nested=True)
                    found |= {f"{each} in {label}": digest for each, digest in inner.items()}
    return found


def _paths(text: str) -> list[Path]:
    """The files and folders that a text names."""
    if not text or "\n" in text or "\0" in text:
        return []
    matches = sorted(glob.glob(text, recursive=True)) if "*" in text else [text]
    return [Path(each) for each in matches if _names_one(each)]


def _names_one(text: str) -> bool:
    try:
        return Path(text).is_file() or ("/" in text and Path(text).is_dir())
    except OSError:  # as a prompt that is too long for a name
        return False


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and path.is_file()


def _hash(path: Path) -> str:
    if _is_yaml(path):
        return json_sha256(repr(read_yaml(path)))
    if path.is_file():
        return file_sha256(path)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return json_sha256([[str(each.relative_to(path)), file_sha256(each)] for each in files])


def _texts(tree: Any) -> Iterator[str]:
    """The texts among the values of a YAML file."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(value)
