"""What README.md and docs/ show exists and runs: examples, commands with their options, paths, names."""

import contextlib
import functools
import importlib
import io
import json
import re
import subprocess
from pathlib import Path

import pytest
from pages import PAGES, ROOT, command_lines, fences, inline_code, links, name_of, shell_lines

from llmfast import cli

PAGE_IDS = [name_of(page) for page in PAGES]
PYTHON = [
    pytest.param(page, code, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, code in enumerate(fences(page.read_text(encoding="utf-8"), "python"))
]
TOP = ("kernels", "llmfast", "csrc", "benchmarks", "tests", "recipes", "docs", "examples", ".ci", ".github")
IN_REPOSITORY = re.compile(rf"(?:{'|'.join(map(re.escape, TOP))})/[\w./*-]*")
PACKAGES = {path.parent.name for path in (ROOT / "llmfast").glob("*/__init__.py")} - {"app", "commands"}
REFERENCE = {"commands", "kernels", "llmfast", *PACKAGES}  # the pages that docs/tools/hooks.py writes


@functools.cache
def options_of(command: str) -> set[str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*command.split(), "--help"])
    return set(re.findall(r"(?<![\w-])--[\w.]+", printed.getvalue())) | {"--help"}


def wrong_commands(text: str) -> list[str]:
    """The commands and options on a page that the command line does not have."""
    wrong = []
    for words in command_lines(text):
        if words[0].startswith("-") or words[0].isupper():  # llmfast --help, llmfast COMMAND
            continue
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in cli.COMMANDS), None)
        group = [each for each in cli.COMMANDS if each.startswith(f"{words[0]} ")]
        if name is None and not (group and len(words) == 1):
            wrong.append(" ".join(words))
        elif name and not cli.COMMANDS[name].own_arguments:
            asked = {word.partition("=")[0] for word in words if word.startswith("--")}
            wrong += [f"{name} {option}" for option in sorted(asked - options_of(name))]
    return wrong


def missing_paths(text: str) -> list[str]:
    """The paths into the repository, in inline code and in shell blocks, that lead nowhere."""
    words = [word for block in fences(text, "bash") for word in re.findall(r"[^\s'\"=]+", block)]
    paths = [word for word in words + inline_code(text) if IN_REPOSITORY.fullmatch(word)]
    return [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]


def broken_links(page: Path, text: str) -> list[str]:
    """The links that lead nowhere; the pages under docs/reference exist once the site is built."""
    broken = []
    for target in links(text):
        path = Path(target.partition("#")[0])
        generated = path.parent.name == "reference" and path.stem in REFERENCE
        on_github = target.startswith("../../actions/")
        if not generated and not on_github and not (page.parent / path).exists():
            broken.append(target)
    return broken


def unknown_names(text: str) -> list[str]:
    """The names such as ``llmfast.kernels.rope`` in inline code that cannot be imported."""
    names = [re.match(r"llmfast(?:\.\w+)+", code) for code in inline_code(text)]
    return [found.group() for found in names if found and not exists(found.group())]


def exists(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            functools.reduce(getattr, parts[length:], value)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_examples_run(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_the_tutorials_cells_run(tmp_path, monkeypatch):
    """The site's build runs them in Jupyter; here they run without it."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {"__name__": "__main__"}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    for number, text in enumerate(code):
        exec(compile(text, f"cell {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_shell_examples_parse(page):
    for block in fences(page.read_text(encoding="utf-8"), "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
@pytest.mark.parametrize("find", [wrong_commands, missing_paths, unknown_names])
def test_commands_paths_and_names_exist(page, find):
    """Trap: a page left behind by a rename."""
    assert find(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_command_lines_are_understood(page, monkeypatch):
    """Trap: a value that an option does not take, or a positional argument that is missing. Nothing is called."""
    monkeypatch.chdir(ROOT)
    for words in shell_lines(page.read_text(encoding="utf-8")):
        if words[0].startswith("-") or words[0].isupper() or "--help" in words:
            continue
        if "--config" in words and not Path(words[words.index("--config") + 1]).is_file():
            continue  # the reader's own
        try:
            cli.parse(words)
        except (ValueError, OSError, SystemExit) as error:
            pytest.fail(f"llmfast {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_every_page_is_in_the_navigation():
    """Trap: a page that nobody finds."""
    listed = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    docs = ROOT / "docs"
    written = {str(path.relative_to(docs)) for kind in ("*.md", "*.ipynb") for path in docs.rglob(kind)}
    assert listed == written | {f"reference/{name}.md" for name in REFERENCE}


@pytest.mark.parametrize(
    ("find", "text", "found"),
    [
        (wrong_commands, "```bash\nllmfast tarin --config x.yaml\n```\n", ["tarin --config x.yaml"]),
        (wrong_commands, "```bash\ntorchrun -m llmfast.cli train --confg x\n```\n", ["train --confg"]),
        (wrong_commands, "Run `llmfast quickstart --hours 2`.", ["quickstart --hours"]),
        (wrong_commands, "Run `llmfast quickstart --minutes 2`, `llmfast tokenizer`, `llmfast COMMAND`.", []),
        (missing_paths, "See `kernels/no_such_file.py` and `kernels/`.", ["kernels/no_such_file.py"]),
        (missing_paths, "```bash\ncat recipes/none.yaml recipes/*/*.yaml\n```\n", ["recipes/none.yaml"]),
        (
            unknown_names,
            "`llmfast.kernels.rms_nrom(x)` or `llmfast.kernels.rms_norm(x)`",
            ["llmfast.kernels.rms_nrom"],
        ),
    ],
)
def test_what_does_not_exist_is_found(find, text, found):
    assert find(text) == found
