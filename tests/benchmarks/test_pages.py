"""Every figure of README.md and docs/ is rendered from a file of results, and so are the charts."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def pages(bench):
    return importlib.import_module("benchmarks.reporting.pages")


@pytest.fixture
def results(bench, tmp_path):
    """The file of a small measurement, and a page that asks for it."""
    norm = importlib.import_module("benchmarks.suites.norm")
    case = norm.rms_norm_case(8, 16)
    options = bench.Options("cpu", out=tmp_path)
    report = bench.run_cases("norm", [replace(case, contenders=case.contenders[:2])], options, say=lambda _: None)
    return tmp_path / report.file_name


def page(how):
    return f"# A title\n\n<!-- results: {how} -->\n<!-- end of results -->\n\nmore\n"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_and_figures_are_those_of_the_result_files(pages, path):
    """Trap: figures edited by hand, or left behind by a newer measurement."""
    text = path.read_text(encoding="utf-8")
    assert pages.refreshed(text) == text, "python -m benchmarks report --readme updates them"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_speed_is_claimed_that_no_file_backs(pages, path):
    assert pages.unbacked(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_begins_with_a_figure(path):
    """Trap: Markdown takes a line that begins with a comment for a block of HTML, and shows the rest of it raw."""
    assert not re.search(r"^\s*<!-- figure", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_charts_show_the_figures_of_the_result_file(pages, tmp_path):
    """Trap: a chart left behind by a newer measurement. Versions of matplotlib differ in anything but the text."""
    charts = importlib.import_module("benchmarks.reporting.charts")
    for drawn in charts.draw_charts(out=tmp_path):
        committed = ROOT / "docs" / "images" / drawn.name
        assert words(drawn) == words(committed), "python -m benchmarks report --readme draws it"
        assert "llmfast" in words(drawn)


def words(svg):
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg.read_text(encoding="utf-8"))


def test_figures_are_taken_from_rows_that_have_a_peer(pages, results):
    text = f"<!-- figure: {results.name} pass=forward ratio=least --><!-- end of figure -->"
    rows = [row for row in json.loads(results.read_text())["results"] if row["pass"] == "forward"]
    ours, other = ([r["median_s"] for r in rows if (r["contender"] == "llmfast") is own] for own in (True, False))
    expected = f"-->{min(other) / min(ours):.2g}<!--"
    assert expected in pages.refreshed(text, results.parent)
    with pytest.raises(ValueError, match="ask for ratio="):
        pages.refreshed(text.replace("ratio=least", "ratio=best"), results.parent)


def test_a_table_is_rendered_and_stays_when_rendered_again(pages, results):
    once = pages.refreshed(page(results.name), results.parent)
    assert "| rms_norm | N=8 E=16 | forward, bfloat16 |" in once
    assert pages.refreshed(once, results.parent) == once
    assert pages.unbacked(once) == []


def test_conditions_choose_rows(pages, results):
    text = pages.refreshed(page(f"{results.name} op=rms_norm pass=backward"), results.parent)
    assert "backward, bfloat16" in text
    assert "forward, bfloat16" not in text
    with pytest.raises(ValueError, match="holds no such result"):
        pages.refreshed(page(f"{results.name} op=rope"), results.parent)
    with pytest.raises(ValueError, match="a condition is"):
        pages.refreshed(page(f"{results.name} opp=rope"), results.parent)


def test_a_changed_figure_is_found(pages, results):
    text = pages.refreshed(page(results.name), results.parent)
    content = json.loads(results.read_text())
    for row in content["results"]:
        row["median_s"] *= 2
    results.write_text(json.dumps(content))
    assert pages.refreshed(text, results.parent) != text


def test_a_missing_file_is_named(pages, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json: there is no such file"):
        pages.refreshed(page("gone.json"), tmp_path)


@pytest.mark.parametrize(
    "claim",
    [
        "is 2.5× as fast",
        "trains at 17.1k tokens/s",
        "1,200 tokens per second",
        "reads 3 GB/s",
        "reaches 640 TFLOP/s",
        "takes 12 µs a call",
        "three times as fast, or 3 times faster",
        "20% faster than",
        "92% of the peak",
    ],
)
def test_claims_in_prose_are_found(pages, claim):
    assert pages.unbacked(f"llmfast {claim}.\n")


@pytest.mark.parametrize("said", ["for about two minutes", "a 4,096-token vocabulary", "2-core", "5 minutes", "64x64"])
def test_what_is_no_speed_is_not_taken_for_one(pages, said):
    assert pages.unbacked(f"llmfast {said}.\n") == []
