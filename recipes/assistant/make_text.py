"""Writes the docstrings of the standard library, a text about Python that is on every machine:

    python make_text.py FILES FOLDER

FOLDER/docstrings.jsonl has one for each line, after the name of what it documents; of at most FILES files.
"""

import ast
import itertools
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))
WITHOUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


def sources() -> Iterator[Path]:
    """The files of the standard library that are neither tests nor installed packages, in a fixed order."""
    for path in sorted(LIBRARY.rglob("*.py")):
        if not WITHOUT & set(path.relative_to(LIBRARY).parts):
            yield path


def docstrings(path: Path) -> Iterator[str]:
    """What a module, its classes and its functions say about themselves, each after its name."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    module = ".".join(part for part in parts if part != "__init__")
    tree = ast.parse(path.read_bytes())
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node)
            if said:
                yield f"{name}: {said}"
            waiting += [
                (f"{name}.{child.name}", child)
                for child in node.body
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            ]


def main(most: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with open(folder / "docstrings.jsonl", "w", encoding="utf-8") as file:
        for path in itertools.islice(sources(), most):
            for text in docstrings(path):
                file.write(json.dumps({"text": text}) + "\n")
                count += 1
    print(f"{count:,} docstrings")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
