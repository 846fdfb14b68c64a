"""What a finished pipeline gathers in ``OUT/results.json``."""

from __future__ import annotations

import datetime
import glob
import json
from pathlib import Path
from typing import Any

from llmfast.files import atomic_write
from llmfast.pipeline.inputs import recipe_sha256
from llmfast.pipeline.machine import machine, versions
from llmfast.pipeline.recipe import Plan
from llmfast.pipeline.state import State

RESULTS_FILE = "results.json"
MOST_POINTS = 100


def write_results(plan: Plan, state: State, out: Path) -> dict[str, Any]:
    """Gather the results of a pipeline whose stages are all done; returns what it writes.

    Raises:
        ValueError: a result that is not in its file; names it.
    """
    results = {name: gathered(name, source) for name, source in plan.results.items()}
    content = {
        "pipeline": plan.name,
        "size": plan.size,
        "recipe": recipe_sha256(plan.steps),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "variables": plan.variables,
        "seconds": {step.name: state.stages[step.name].seconds for step in plan.steps},
        "processor_seconds": {step.name: state.stages[step.name].processor_seconds for step in plan.steps},
        "results": _relative(results, f"{out}/"),
    }
    atomic_write(out / RESULTS_FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return content


def gathered(name: str, source: str) -> Any:
    """One result: the value of a key in a JSON file, or the text of another file.

    Of a file of JSON lines it is pairs of the step and the value of the key, at most 100 of them. For a pattern with a
    star it is a table: the result of each file, by what stands for the star.

    Args:
        name: how the result is called.
        source: FILE, or FILE:KEY as in :func:`lookup`.

    Raises:
        ValueError: there is no such file or key.
    """
    file, _, key = source.partition(":")
    if "*" not in file:
        return _read(name, Path(file), key)
    before, _, after = file.partition("*")
    paths = sorted(glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
    if not paths:
        raise ValueError(f"result {name}: there is no file {file}")
    return {path[len(before) : len(path) - len(after)]: _read(name, Path(path), key) for path in paths}


def _read(name: str, file: Path, key: str) -> Any:
    if not file.is_file():
        raise ValueError(f"result {name}: there is no file {file}")
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix == ".jsonl":
            return _points([json.loads(line) for line in text.splitlines()], key)
        if file.suffix == ".json":
            return lookup(json.loads(text), key)
    except KeyError:
        raise ValueError(f"result {name}: {file} has no {key}") from None
    except ValueError as error:
        raise ValueError(f"result {name}: {file} is damaged: {error}") from None
    if key:
        raise ValueError(f"result {name}: {file} is no JSON file: leave out :{key}")
    return text.strip()


def _points(records: list[dict[str, Any]], key: str) -> list[list[Any]]:
    """Pairs of a step and a value, thinned evenly from the last one backwards."""
    pairs = [[record["step"], record[key]] for record in records if key in record]
    if not pairs:
        raise KeyError(key)
    return pairs[:: -max(1, -(-len(pairs) // MOST_POINTS))][::-1]


def lookup(tree: Any, key: str) -> Any:
    """The value at a path of keys with dots between; a key may have dots itself, and places in a list are numbers.

    >>> lookup({"settings": {"training.steps": 3}}, "settings.training.steps")
    3
    >>> lookup({"runs": [{"loss": 2.5}]}, "runs.0.loss")
    2.5

    Raises:
        KeyError: there is no such value.
    """
    if not key:
        return tree
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        first, rest = ".".join(parts[:count]), ".".join(parts[count:])
        if isinstance(tree, dict) and first in tree:
            return lookup(tree[first], rest)
        if isinstance(tree, list) and first.isdecimal() and int(first) < len(tree):
            return lookup(tree[int(first)], rest)
    raise KeyError(key)


def _relative(tree: Any, folder: str) -> Any:
    """The same with paths below ``folder`` relative to it: a result tells nothing of the machine's folders."""
    if isinstance(tree, dict):
        return {name: _relative(value, folder) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_relative(value, folder) for value in tree]
    return tree.replace(folder, "") if isinstance(tree, str) else tree
