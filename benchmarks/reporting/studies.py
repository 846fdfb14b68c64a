"""Tables and figures of the studies, rendered from ``recipes/NAME/results.json`` as ``recipes/NAME/page.yaml`` says.

The page of a study asks for them between comments, as all pages do (see ``pages``):

    <!-- results: study lora rates -->                     a table of page.yaml
    <!-- results: study lora setup -->                     where and when it was measured
    <!-- figure: study lora base.loss .3f -->              one of the results, perhaps with a format

Its plots are drawn by ``study_plots``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfast.config import load
from llmfast.pipeline.recipe import RECIPE_FILE, read_recipe
from llmfast.pipeline.results import RESULTS_FILE, lookup

from ..results import ROOT
from .report import table

RECIPES = ROOT / "recipes"
PAGE_FILE = "page.yaml"
DIVERGED = "diverged"  # how a result that is null is shown: a run that has no loss


@dataclass
class Table:
    """A table of a page.

    Attributes:
        rows: The name of a result that is a list or a table of records; or names of rows, each with its result.
        columns: The heading of each column with the key of its value, perhaps followed by | and a format.
        sort: The key by which rows are sorted.
        beside: More columns: the heading of each with its text by what the first column shows.
    """

    rows: str | dict[str, str]
    columns: dict[str, str]
    sort: str | None = None
    beside: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Plot:
    """A plot of a page.

    Attributes:
        rows: As of a table: the points are values of its records.
        x: The key of the horizontal value.
        y: The key of the vertical value.
        series: The key of what tells lines apart.
        lines: Instead of rows: the name of a result that is a table of lists of pairs; or names of lines, each with its
            result.
        labels: What the axes show, by x and y.
        log: The axes that are logarithmic.
    """

    rows: str | dict[str, str] | None = None
    x: str = ""
    y: str = ""
    series: str | None = None
    lines: str | dict[str, str] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    log: tuple[str, ...] = ()


@dataclass
class Page:
    """What the page of a study shows.

    Attributes:
        tables: By name.
        plots: By name.
    """

    tables: dict[str, Table] = field(default_factory=dict)
    plots: dict[str, Plot] = field(default_factory=dict)


def studies(recipes: Path = RECIPES) -> list[str]:
    """The studies that have a page to be rendered."""
    return sorted(file.parent.name for file in recipes.glob(f"*/{PAGE_FILE}"))


def read_page(name: str, recipes: Path = RECIPES) -> Page:
    return load(Page, recipes / name / PAGE_FILE)


def read_results(name: str, recipes: Path = RECIPES) -> dict[str, Any]:
    """What a pipeline gathered.

    Raises:
        ValueError: nothing is committed of it.
    """
    file = recipes / name / RESULTS_FILE
    if not file.is_file():
        raise ValueError(f"there is no {file}")
    return json.loads(file.read_text(encoding="utf-8"))


@contextlib.contextmanager
def named(study: str) -> Iterator[None]:
    """Errors inside name the study, and how its results are made again."""
    try:
        yield
    except ValueError as error:
        how = f"llmfast pipeline recipes/{study}/pipeline.yaml; copy runs/{study}-cpu/{RESULTS_FILE} to recipes/{study}"
        raise ValueError(f"study {study}: {error}. Its results are made by: {how}") from error


def study_lines(how: str, recipes: Path = RECIPES) -> list[str]:
    """The table ``NAME TABLE`` of a page, or what ``NAME setup`` says.

    Raises:
        ValueError: the page has no such table, or a record no such key; names the study.
    """
    name, _, wanted = how.partition(" ")
    with named(name):
        return _lines(name, wanted, recipes)


def _lines(name: str, wanted: str, recipes: Path) -> list[str]:
    content = read_results(name, recipes)
    if wanted == "setup":
        return [setup(content, read_recipe(recipes / name / RECIPE_FILE).minutes.get(content["size"]))]
    page = read_page(name, recipes)
    if wanted not in page.tables:
        raise ValueError(f"{PAGE_FILE} has no table {wanted!r}; there are {', '.join(page.tables)}, setup")
    spec = page.tables[wanted]
    shown = [
        [_cell(record, column) for column in spec.columns.values()]
        for record in records_of(content, spec.rows, spec.sort)
    ]
    for by_first in spec.beside.values():
        if unknown := set(by_first) - {row[0] for row in shown}:
            raise ValueError(f"table {wanted}: beside has rows that are not there: {sorted(unknown)}")
        for row in shown:
            row.append(by_first.get(row[0], ""))
    return list(table([*spec.columns, *spec.beside], shown))


def study_figure(how: str, recipes: Path = RECIPES) -> str:
    """The figure ``NAME KEY [FORMAT]``: one of the results, or ``processor_seconds.STAGE``."""
    name, key, *form = how.split(" ", 2)
    with named(name):
        content = read_results(name, recipes)
        times = {"processor_seconds": content.get("processor_seconds", {})}
        return _cell(content["results"] | times, f"{key} | {form[0]}" if form else key)


def setup(content: dict[str, Any], minutes: float | None) -> str:
    """Where, when and with what a study was run, and the minutes that its recipe states, in two sentences."""
    machine, versions = content["machine"], content["versions"]
    threads = (
        f", {machine['threads']} thread{'s' if machine['threads'] > 1 else ''} a process" if machine["threads"] else ""
    )
    where = ", ".join(machine["gpus"]) or f"{machine['processor']}, {machine['cores']} cores{threads}"
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    took, computed = (sum(content.get(key, {}).values()) / 60 for key in ("seconds", "processor_seconds"))
    # A stage that ran before processor time was recorded has none, and would make the sum of all too small.
    measured = all(
        content.get("processor_seconds", {}).get(name) for name, each in content["seconds"].items() if each > 5
    )
    time = f"{took:.1f} minutes in all stages" + (f", {computed:.1f} of processor time" if measured else "")
    stated = f"Takes about {minutes:g} minutes on two idle cores. " if minutes and not machine["gpus"] else ""
    beside = " beside other programs" if minutes and took > 1.5 * minutes else ""
    return f"{stated}Size {content['size']}, {where}; {time}{beside}; {libraries}; {content['date']}."


def records_of(content: dict[str, Any], rows: str | dict[str, str], sort: str | None = None) -> list[dict[str, Any]]:
    """The records of a result, each with its name if it has one."""
    results = content["results"]
    found = (
        found_in(results, rows)
        if isinstance(rows, str)
        else {name: found_in(results, key) for name, key in rows.items()}
    )
    if isinstance(found, dict):
        found = [
            {"name": name, **(each if isinstance(each, dict) else {"value": each})} for name, each in found.items()
        ]
    return sorted(found, key=lambda record: found_in(record, sort)) if sort else found


def found_in(tree: Any, key: str) -> Any:
    try:
        return lookup(tree, key)
    except KeyError:
        raise ValueError(f"there is no {key} among the results: {', '.join(map(str, tree))}") from None


def _cell(record: Any, column: str) -> str:
    """A value as ``KEY | FORMAT | TEXT`` shows it; the text is for a value that is null."""
    key, form, missing = ([part.strip() for part in column.split("|")] + ["", ""])[:3]
    value = found_in(record, key)
    if value is None:
        return missing or DIVERGED
    text = format(value, form) if form else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
