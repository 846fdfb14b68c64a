"""The tables, figures and plots of a study are those of its committed results."""

import importlib
import json
import re

import pytest

PAGE = """
tables:
  rates:
    rows: rates
    sort: settings.training.learning_rate
    columns: {learning rate: settings.training.learning_rate, loss: "loss | .2f", steps: "steps | ,"}
    beside: {original: {"0.01": diverged, "0.001": "1.38"}}
  sizes: {rows: {small: base, large: other}, columns: {model: name, loss: "loss | .1f | none"}}
plots:
  rates: {rows: rates, x: settings.training.learning_rate, y: loss, log: [x], labels: {x: learning rate}}
  curves: {lines: curves, labels: {x: step, y: loss}}
"""
CONTENT = {
    "size": "cpu",
    "date": "2026-01-02",
    "machine": {"processor": "AMD EPYC", "cores": 2, "threads": 1, "gpus": []},
    "versions": {"python": "3.11", "torch": "2.13"},
    "seconds": {"a": 60.0, "b": 30.0},
    "processor_seconds": {"a": 30.0, "b": 30.0},
    "results": {
        "rates": [
            {"settings": {"training.learning_rate": 0.01}, "loss": None, "steps": 1000},
            {"settings": {"training.learning_rate": 0.001}, "loss": 1.239, "steps": 1000},
        ],
        "base": {"loss": 2.25},
        "other": {"loss": None},
        "curves": {"slow": [[1, 3.0], [2, 2.5]], "fast": [[1, 3.0], [2, None]]},
    },
}


@pytest.fixture
def studies(bench):
    return importlib.import_module("benchmarks.reporting.studies")


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "page.yaml").write_text(PAGE)
    (folder / "results.json").write_text(json.dumps(CONTENT))
    (folder / "pipeline.yaml").write_text("sizes: {cpu: {}}\nminutes: {cpu: 0.7}\nstages: {a: {run: doctor}}\n")
    return tmp_path


def test_a_table_is_sorted_formatted_and_stands_beside_the_original(studies, recipes):
    """Trap: what diverged has no loss, and is no row to be left out."""
    assert studies.study_lines("lora rates", recipes) == [
        "| learning rate | loss | steps | original |",
        "| --- | --- | --- | --- |",
        "| 0.001 | 1.24 | 1,000 | 1.38 |",
        "| 0.01 | diverged | 1,000 | diverged |",
    ]
    assert studies.study_lines("lora sizes", recipes)[2:] == ["| small | 2.2 |", "| large | none |"]


def test_figures_and_where_they_are_from(studies, recipes):
    assert studies.study_figure("lora base.loss .1f", recipes) == "2.2"
    assert studies.study_figure("lora processor_seconds.b .0f", recipes) == "30"
    assert studies.study_figure("lora rates.1.settings.training.learning_rate", recipes) == "0.001"
    (line,) = studies.study_lines("lora setup", recipes)
    where, took, versions, date = line.split("; ")
    assert (where, took) == (
        "Takes about 0.7 minutes on two idle cores. Size cpu, AMD EPYC, 2 cores, 1 thread a process",
        "1.5 minutes in all stages, 1.0 of processor time beside other programs",
    )
    assert (versions, date) == ("python 3.11, torch 2.13", "2026-01-02.")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("lora rate", "page.yaml has no table 'rate'; there are rates, sizes, setup"),
        ("lore rates", "there is no .*lore/results.json"),
    ],
)
def test_what_is_not_there_is_named(studies, recipes, how, said):
    with pytest.raises(ValueError, match=said):
        studies.study_lines(how, recipes)


def test_a_row_of_the_original_that_ours_does_not_have_is_refused(studies, recipes):
    """Trap: a figure of the original that nobody sees, because its row is written otherwise."""
    page = recipes / "lora" / "page.yaml"
    page.write_text(page.read_text().replace('"0.001"', '"1e-3"'))
    with pytest.raises(ValueError, match=r"beside has rows that are not there: \['1e-3'\]"):
        studies.study_lines("lora rates", recipes)


def test_plots_are_drawn_for_light_and_dark_pages(studies, recipes, tmp_path):
    plots = importlib.import_module("benchmarks.reporting.study_plots")
    drawn = plots.draw_plots(recipes, tmp_path / "images")
    assert [path.name for path in drawn] == [
        f"lora-{plot}-{theme}.svg" for plot in ("rates", "curves") for theme in ("light", "dark")
    ]
    assert {"learning rate", "loss"} <= set(words(drawn[0]))
    assert {"slow", "fast", "step"} <= set(words(drawn[2]))
    assert drawn[2].read_text() != drawn[3].read_text()


def test_the_plots_of_the_pages_show_the_committed_results(studies, tmp_path):
    """Trap: a plot left behind by a newer run. Versions of matplotlib differ in anything but the text."""
    plots = importlib.import_module("benchmarks.reporting.study_plots")
    for drawn in plots.draw_plots(out=tmp_path):
        committed = plots.IMAGES / drawn.name
        assert words(drawn) == words(committed), "python -m benchmarks report --readme draws it"


def test_a_study_without_results_is_named_and_leaves_the_others_to_be_renewed(studies, recipes, tmp_path):
    """Trap: one study that was not run yet, which left every page as it was."""
    pages, plots = (importlib.import_module(f"benchmarks.reporting.{name}") for name in ("pages", "study_plots"))
    (recipes / "moe").mkdir()
    (recipes / "moe" / "page.yaml").write_text(PAGE)
    problems = []
    assert len(plots.draw_plots(recipes, tmp_path / "images", problems)) == 4
    gone, there = (
        f"<!-- figure: study {how} -->1<!-- end of figure -->" for how in ("none loss", "lora base_parameters")
    )
    renewed = pages.refreshed(f"{gone} {there}", tmp_path, problems)
    assert renewed.startswith(gone)
    assert not renewed.endswith(there)
    assert "made by: llmfast pipeline recipes/moe/pipeline.yaml" in problems[0]
    assert "made by: llmfast pipeline recipes/none/pipeline.yaml" in problems[1]
    with pytest.raises(ValueError, match="study moe: there is no"):
        plots.draw_plots(recipes, tmp_path / "images")


def words(svg):
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg.read_text(encoding="utf-8"))
