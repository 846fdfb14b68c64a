"""Writes the reference pages while mkdocs builds the site: every public name of the packages, and every command."""

from __future__ import annotations

import ast
import atexit
import contextlib
import importlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# Each package and where its source is. mkdocs.yml lists their pages. The commands have a page of another kind.
PACKAGES = {"llmfast.kernels": ROOT / "kernels"} | {
    f"llmfast.{path.parent.name}": path.parent
    for path in sorted((ROOT / "llmfast").glob("*/__init__.py"))
    if path.parent.name not in ("app", "commands")  # programs
}


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Shows mkdocstrings a tree in which kernels/ is llmfast/kernels, as it is once installed."""
    folder = tempfile.mkdtemp(prefix="llmfast-docs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tree = Path(folder) / "llmfast"
    tree.mkdir()
    for path in (ROOT / "llmfast").iterdir():
        (tree / path.name).symlink_to(path)
    (tree / "kernels").symlink_to(ROOT / "kernels")
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(tree.parent)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"commands": commands_page(), "llmfast": top_level_page()}
    pages |= {name.rpartition(".")[2]: package_page(name, path) for name, path in PACKAGES.items()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def top_level_page() -> str:
    import llmfast

    rows = [
        f"| `llmfast.{name}` | [`{home}`]({home.split('.')[1]}.md) |" for name, home in sorted(llmfast._HOMES.items())
    ]
    return "\n".join(
        [
            "# llmfast",
            "",
            "`import llmfast` loads no heavy library and touches no GPU. These names are imported on first use:",
            "",
            "| name | is defined in |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def package_page(name: str, folder: Path) -> str:
    """The names in ``__all__`` of the package; where it has none, the public names of each of its modules."""
    lines = [f"# {name}", "", ast.get_docstring(ast.parse(source(folder / "__init__.py"))) or "", ""]
    if public := exported(folder / "__init__.py"):
        return "\n".join([*lines, *(entry(name, each) for each in public)])
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join([name, *(part for part in parts if part != "__init__")])
        if module != name and (names := defined(path)):
            lines += [f"## {module}", "", ast.get_docstring(ast.parse(source(path))) or "", ""]
            lines += [f"::: {module}.{each}\n" for each in names]
    return "\n".join(lines)


def entry(package: str, name: str) -> str:
    """The directive for a public name. mkdocstrings needs the path in its module of a function that shares its name
    with a module, as ``rope`` does, and of what the package imports on first use."""
    shared, module = f"{package}.{name}", importlib.import_module(package)
    if shared not in sys.modules and name in vars(module):
        return f"::: {shared}\n"
    value = getattr(module, name)
    return f'<span id="{shared}"></span>\n\n::: {value.__module__}.{name}\n'


def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def exported(path: Path) -> list[str]:
    """The names of ``__all__`` that are functions or classes of llmfast."""
    package = importlib.import_module(package_name(path))
    return [name for name in getattr(package, "__all__", ()) if is_ours(getattr(package, name))]


def is_ours(value: object) -> bool:
    return callable(value) and value.__module__.startswith("llmfast.")


def package_name(path: Path) -> str:
    return next(name for name, folder in PACKAGES.items() if folder == path.parent)


def defined(path: Path) -> list[str]:
    """The public functions and classes of a module that have a docstring."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.parse(source(path)).body if isinstance(node, kinds)]
    return [node.name for node in nodes if not node.name.startswith("_") and ast.get_docstring(node)]


def commands_page() -> str:
    """The help of every command."""
    from llmfast.cli import COMMANDS

    lines = ["# Commands", "", "Every command is a function as well, with the same arguments.", ""]
    for name, command in COMMANDS.items():
        lines += [f"## llmfast {name}", "", command.help, ""]
        if not command.own_arguments:
            lines += ["```text", *help_of(name), "```", ""]
    return "\n".join(lines)


def help_of(name: str) -> Iterator[str]:
    from llmfast import cli

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*name.split(), "--help"])
    for line in printed.getvalue().splitlines():
        yield line.rstrip()
