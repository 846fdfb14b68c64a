"""Every speed figure of README.md stands in a table that is rendered from a file of results."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme(bench):
    return importlib.import_module("benchmarks.readme")


@pytest.fixture
def results(bench, tmp_path):
    """The file of a small measurement, and a page that asks for it."""
    norm = importlib.import_module("benchmarks.suites.norm")
    case = norm.rms_norm_case(8, 16)
    options = bench.Options("cpu", out=tmp_path)
    report = bench.run_cases(
        "norm", [replace(case, contenders=case.contenders[:2])], options, say=lambda _: None
    )
    return tmp_path / report.file_name


def page(how):
    return f"# A title\n\n<!-- results: {how} -->\n<!-- end of results -->\n\nmore\n"


def test_tables_of_the_readme_are_those_of_its_result_files(readme):
    """Trap: figures edited by hand, or left behind by a newer measurement."""
    assert readme.refreshed(README) == README, "python -m benchmarks report --readme writes them anew"


def test_no_speed_is_claimed_that_no_file_backs(readme):
    assert readme.unbacked(README) == []


def test_a_table_is_rendered_and_stays_when_rendered_again(readme, results):
    once = readme.refreshed(page(results.name), results.parent)
    assert "| rms_norm | N=8 E=16 | forward, bfloat16 |" in once
    assert readme.refreshed(once, results.parent) == once
    assert readme.unbacked(once) == []


def test_conditions_choose_rows(readme, results):
    text = readme.refreshed(page(f"{results.name} op=rms_norm pass=backward"), results.parent)
    assert "backward, bfloat16" in text
    assert "forward, bfloat16" not in text
    with pytest.raises(ValueError, match="holds no result"):
        readme.refreshed(page(f"{results.name} op=rope"), results.parent)
    with pytest.raises(ValueError, match="a condition is"):
        readme.refreshed(page(f"{results.name} opp=rope"), results.parent)


def test_a_changed_figure_is_found(readme, results):
    text = readme.refreshed(page(results.name), results.parent)
    content = json.loads(results.read_text())
    for row in content["results"]:
        row["median_s"] *= 2
    results.write_text(json.dumps(content))
    assert readme.refreshed(text, results.parent) != text


def test_a_missing_file_is_named(readme, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json: there is no such file"):
        readme.refreshed(page("gone.json"), tmp_path)


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
def test_claims_in_prose_are_found(readme, claim):
    assert readme.unbacked(f"llmfast {claim}.\n")


@pytest.mark.parametrize(
    "said", ["for about two minutes", "a 4,096-token vocabulary", "2-core", "5 minutes", "64x64"]
)
def test_what_is_no_speed_is_not_taken_for_one(readme, said):
    assert readme.unbacked(f"llmfast {said}.\n") == []
