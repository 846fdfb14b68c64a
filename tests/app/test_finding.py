"""What the dashboard finds under a folder, and result files as rows."""

import json
import shutil

import pytest
from small_app import damage_run

from llmfast.app.finding import find
from llmfast.app.results import read_benchmark, read_evaluations

pytestmark = pytest.mark.xdist_group("app")


def test_everything_in_a_full_folder_is_found_by_what_it_is(full):
    """Traps: checkpoints listed beside their run, a classifier offered for generation, settings taken for results."""
    found = find(full)
    assert set(found.runs) == {"tiny/run", "labels/run"}
    assert set(found.language_models) == {"tiny/run", "models/chat"}
    assert set(found.classifiers) == {"labels/run"}
    assert {"tiny/run/data", "models/chat"} <= set(found.tokenizers)
    assert "tiny/run/data" in found.data
    assert found.evaluated == {"tiny/run": full / "tiny" / "run"}
    assert list(found.benchmarks) == ["results/cpu-intel-xeon-optimizer.json"]


def test_the_folder_may_be_a_run_itself(full):
    run = full / "tiny" / "run"
    found = find(run)
    assert found.runs == {"run": run}
    assert found.evaluated == {"run": run}


def test_the_newest_run_comes_first(full, tmp_path):
    for name in ("old", "new"):
        shutil.copytree(full / "tiny" / "run", tmp_path / name)
    (tmp_path / "new" / "log.jsonl").touch()
    assert list(find(tmp_path).runs) == ["new", "old"]


def test_an_empty_folder_has_nothing_and_a_file_is_refused(tmp_path):
    found = find(tmp_path)
    for each in (found.runs, found.models, found.tokenizers, found.data, found.evaluated, found.benchmarks):
        assert not each
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a folder"):
        find(tmp_path / "file")


def test_a_damaged_run_is_listed_so_that_opening_it_says_what_is_wrong(full, tmp_path):
    shutil.copytree(full / "tiny" / "run", tmp_path / "run")
    damage_run(tmp_path / "run")
    found = find(tmp_path)
    assert set(found.runs) == set(found.models) == {"run"}


def test_evaluations_are_beside_what_the_run_cost(full):
    run = full / "tiny" / "run"
    rows = read_evaluations(run, "tiny")
    (file,) = run.glob("evaluations/*.json")
    written = json.loads(file.read_text())["results"]["text"]["figures"]
    assert {row.figure: row.value for row in rows} == {name: figure["value"] for name, figure in written.items()}
    summary = json.loads((run / "summary.json").read_text())
    assert {row.parameters for row in rows} == {summary["parameters"]}
    assert {row.model for row in rows} == {"tiny"}


@pytest.mark.parametrize("content", ["{", "[]", '{"results": {"text": {"figures": {"loss": 3}}}}'])
def test_a_damaged_evaluation_is_named(tmp_path, content):
    file = tmp_path / "evaluations" / "text.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ValueError, match=r"text\.json is damaged"):
        read_evaluations(tmp_path, "model")


def test_benchmarks_are_told_beside_the_fastest_that_is_right(tmp_path):
    """Trap: a contender with wrong results counts as the fastest."""
    common = {"op": "rope", "shape": {"N": 4}, "dtype": "float32", "pass": "forward", "note": ""}
    rows = [
        {**common, "contender": "wrong one", "status": "wrong", "median_s": 1e-6},
        {**common, "contender": "a", "status": "ok", "median_s": 2e-6},
        {**common, "contender": "b", "status": "ok", "median_s": 3e-6},
        {**common, "contender": "c", "status": "missing", "median_s": None},
    ]
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"schema": 1, "suite": "rope", "machine": {"cores": 2}, "results": rows}))
    assert set(find(tmp_path).benchmarks) == {"result.json"}
    machine, measured = read_benchmark(file)
    assert machine == {"cores": 2}
    assert [each.best for each in measured] == [0.5, 1.0, 1.5, None]
    assert {each.case for each in measured} == {"rope N=4 float32, forward"}
    file.write_text('{"schema": 1, "suite": 2}')
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        read_benchmark(file)
