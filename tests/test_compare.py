"""``llmfast compare``: runs of any kind side by side, with what they reached and what they cost."""

import json
import re
import shutil

import pytest
from small_labels import labels_config, new_labels_run, write_labels
from small_run import new_run

from llmfast import config as config_files
from llmfast.cli import main
from llmfast.finetuning.classification import Classification
from llmfast.training.loop import fit
from llmfast.training.session import resumed_session
from llmfast.training.summary import read_summary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretraining run, and a classifier of which the head alone is trained, started from it."""
    folder = tmp_path_factory.mktemp("runs")
    fit(new_run(folder / "pretrained", steps=4, evaluate_every=2, sample_every=0))
    start = str(next(folder.glob("pretrained/**/config.yaml")).parent)
    config = labels_config(write_labels(folder / "texts.tsv"), steps=4, evaluate_every=0, sample_every=0, start=start)
    config.freeze = ("decoder",)
    config_files.save(config, folder / "config.yaml")
    assert main(["classify", "--config", str(folder / "config.yaml"), "--out", str(folder / "head")]) == 0
    return folder


def rows(text):
    """Cells by the names of their columns, for each run; without the sentences below the table."""
    head, *lines = (
        line for line in text.splitlines() if line.strip() and not re.search(r": no |^wrote |so that", line)
    )
    names, *cells = (re.split(r"\s{2,}", line.strip()) for line in [head, *lines])
    return [dict(zip(names, row, strict=True)) for row in cells]


def test_runs_of_different_kinds_are_in_one_table(folder, capsys):
    pretrained = next(folder.glob("pretrained/**/config.yaml")).parent
    capsys.readouterr()
    assert main(["compare", str(pretrained), str(folder / "head")]) == 0
    first, second = rows(capsys.readouterr().out)
    assert (first["kind"], second["kind"]) == ("train", "classify")
    assert (first["steps"], second["steps"]) == ("4", "4")
    assert first["of all"] == "100.00%"
    assert second["trained"] == "34"  # the head: 2 · 16 + 2
    assert first["accuracy"] == second["bits per byte"] == "–"
    assert first["loss"].startswith("~")  # fit alone evaluates no finished run
    accuracy = json.loads((folder / "head" / "evaluation.json").read_text())["splits"]["validation"]["accuracy"]
    assert second["accuracy"] == f"{accuracy:.4f}"
    for row in (first, second):
        assert row["memory"]
        assert float(row["tokens/s"].replace(",", "")) > 0
        assert ":" in row["time"]


def test_everything_is_in_the_json_and_what_is_missing_is_named(folder, tmp_path, capsys):
    pretrained, out = next(folder.glob("pretrained/**/config.yaml")).parent, tmp_path / "new" / "out"
    text = tmp_path / "text.txt"
    text.write_text("The fox saw the lamp.", encoding="utf-8")
    assert main(["eval", str(pretrained), "--tasks", "text", "--data", str(text)]) == 0
    capsys.readouterr()
    assert main(["compare", str(pretrained), str(folder / "head"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert {each.name for each in out.iterdir()} == {"compare.json", "losses.png", "costs.png"}
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in out.glob("*.png"))
    content = json.loads((out / "compare.json").read_text("utf-8"), parse_constant=pytest.fail)
    first, second = content["runs"]
    assert first["config"]["training"]["steps"] == second["config"]["training"]["steps"] == 4
    assert [record["step"] for record in first["log"] if "loss" in record] == [1, 2, 3, 4]
    assert first["evaluations"][0]["results"]["text"]["figures"]["loss"]["value"] > 0
    assert second["summary"]["tokens_per_second"] > 0
    assert (first["is_final"], second["is_final"]) == (False, True)
    assert content["notes"] == [f"{folder / 'head'}: no results of llmfast eval"]
    assert content["notes"][0] in printed
    row = rows(printed)[0]
    assert row["text loss"] == f"{first['evaluations'][0]['results']['text']['figures']['loss']['value']:.4f}"
    # Measured on other text, the two figures say nothing about which run is better.
    text.with_name("other.txt").write_text("The lamp.", encoding="utf-8")
    other = tmp_path / "other"
    shutil.copytree(pretrained, other)
    shutil.rmtree(other / "evaluations")
    assert main(["eval", str(other), "--tasks", "text", "--data", str(text.with_name("other.txt"))]) == 0
    capsys.readouterr()
    assert main(["compare", str(pretrained), str(other)]) == 0
    assert "text was measured with different settings or data" in capsys.readouterr().out
    (next(other.glob("evaluations/*.json"))).write_text("{}")
    assert main(["compare", str(other)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_the_time_of_a_resumed_run_is_that_of_its_parts(tmp_path):
    session = new_labels_run(tmp_path, steps=4, evaluate_every=0, sample_every=0)
    fit(session)
    folder = session.run.folder
    first = read_summary(folder)
    resumed = resumed_session(folder, task=Classification)
    resumed.trainer.training.steps = 6
    fit(resumed)
    both = read_summary(folder)
    assert [(each.first_step, each.last_step) for each in both.stretches] == [(0, 4), (4, 6)]
    assert both.stretches[0] == first.stretches[0]
    assert both.seconds > first.seconds > 0
    fit(resumed_session(folder, task=Classification))  # nothing left to do
    assert read_summary(folder).stretches == both.stretches


def test_what_is_no_run_is_refused_and_what_is_not_known_is_left_out(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    session = new_labels_run(tmp_path)
    assert main(["compare", str(session.run.folder), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    (row,) = rows(printed)
    assert set(row.values()) == {str(session.run.folder), "–", "0"}
    for words in ("parameters, memory, time and speed: there is no summary.json", "loss curve", "quality", "eval"):
        assert f"{session.run.folder}: no " in printed
        assert words in printed
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"compare.json", "costs.png"}
    assert main(["compare", str(session.run.folder), str(session.run.folder)]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert main(["compare"]) == 2
    (session.run.folder / "summary.json").write_text("{}")
    assert main(["compare", str(session.run.folder)]) == 2
    assert "summary.json is damaged" in capsys.readouterr().err
