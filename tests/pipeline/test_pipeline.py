"""``llmfast pipeline``: what is done stays done, what changed runs again, what was interrupted is resumed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llmfast.cli import main
from llmfast.pipeline.results import gathered

# Writes what it reads, doubled: a stage without a library to load.
DOUBLE = """
import pathlib, sys
source, folder = map(pathlib.Path, sys.argv[1:3])
folder.mkdir()
text = source.read_text()
if "bad" in text:
    sys.exit("bad input")
(folder / "text.txt").write_text(text * 2)
print("wrote", len(text) * 2)
"""
RECIPE = """
variables: {start: one, unused: 0}
sizes: {quick: {start: q}, cpu: {}}
stages:
  first: {run: "python {here}/double.py {here}/{start}.txt {first}"}
  second: {run: "python {here}/double.py {first}/text.txt {second}"}
  other: {run: "python {here}/double.py {here}/settings.yaml {other}"}
results: {text: "{second}/text.txt", said: "{first}.log"}
"""


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "double.py").write_text(DOUBLE)
    (folder / "one.txt").write_text("a")
    (folder / "q.txt").write_text("q")
    (folder / "settings.yaml").write_text("steps: 3\n")
    (folder / "pipeline.yaml").write_text(RECIPE)
    return folder / "pipeline.yaml"


def run(recipe: Path, *options: str, out: str = "out") -> int:
    return main(["pipeline", str(recipe), "--out", str(recipe.parent / out), *options])


def stages_run(output: str) -> list[str]:
    """The stages that a pipeline started, from what it printed."""
    lines = output.splitlines()
    return [line.split()[4].rstrip(":") for line, after in itertools.pairwise(lines) if after.startswith("$ ")]


def results(recipe: Path, out: str = "out") -> dict:
    return json.loads((recipe.parent / out / "results.json").read_text())


def test_what_is_done_is_skipped_until_something_that_it_depends_on_changes(recipe, capsys):
    """Trap: a cache by names or times, which keeps what was made from other data."""
    assert run(recipe) == 0
    assert stages_run(capsys.readouterr().out) == ["first", "second", "other"]
    assert results(recipe)["results"] == {"text": "aaaa", "said": "wrote 2"}
    assert run(recipe) == 0
    assert stages_run(capsys.readouterr().out) == []
    (recipe.parent / "one.txt").write_text("bc")
    assert run(recipe, "--dry_run") == 0
    plan = capsys.readouterr().out
    assert "runs: changed: {here}/one.txt" in plan
    assert "runs: changed: stage first" in plan
    assert run(recipe) == 0
    assert stages_run(capsys.readouterr().out) == ["first", "second"]
    assert results(recipe)["results"]["text"] == "bcbcbcbc"


def test_a_comment_in_a_configuration_changes_nothing_and_a_value_does(recipe, capsys):
    assert run(recipe) == 0
    capsys.readouterr()
    settings = recipe.parent / "settings.yaml"
    settings.write_text("# a comment\nsteps:   3\n")
    assert run(recipe) == 0
    assert stages_run(capsys.readouterr().out) == []
    settings.write_text("steps: 4\n")
    assert run(recipe) == 0
    assert stages_run(capsys.readouterr().out) == ["other"]


def test_files_that_a_configuration_names_count_as_well(recipe, capsys):
    """Trap: data behind a configuration, exchanged without a change of the configuration itself."""
    data = recipe.parent / "data.txt"
    data.write_text("x")
    (recipe.parent / "settings.yaml").write_text(f"sources: [label={data}]\n")
    assert run(recipe) == 0
    data.write_text("y")
    assert run(recipe, "--dry_run") == 0
    assert f"runs: changed: {data} in {{here}}/settings.yaml" in capsys.readouterr().out


def test_the_same_output_elsewhere_or_a_moved_recipe_changes_no_key(recipe, tmp_path, capsys):
    assert run(recipe) == 0
    moved = tmp_path / "moved"
    (recipe.parent / "out").rename(tmp_path / "made")
    recipe.parent.rename(moved)
    capsys.readouterr()
    assert main(["pipeline", str(moved / "pipeline.yaml"), "--out", str(tmp_path / "made")]) == 2
    assert "holds the pipeline recipe, not moved" in capsys.readouterr().err
    moved.rename(recipe.parent)
    (tmp_path / "made").rename(tmp_path / "elsewhere")
    assert main(["pipeline", str(recipe), "--out", str(tmp_path / "elsewhere")]) == 0
    assert stages_run(capsys.readouterr().out) == []


def test_a_size_and_a_variable_change_the_command(recipe, capsys):
    assert run(recipe, "--size", "quick", out="quick") == 0
    assert results(recipe, "quick")["results"]["text"] == "qqqq"
    assert results(recipe, "quick")["variables"] == {"start": "q", "unused": 0}
    capsys.readouterr()
    assert run(recipe, "--size", "quick", "--set", "start=one", "unused=[1, 2]", out="quick") == 0
    assert stages_run(capsys.readouterr().out) == [
        "first",
        "second",
    ]  # a variable that no stage mentions makes no change


def test_a_failed_stage_is_named_with_its_log_and_is_where_the_next_call_begins(recipe, capsys):
    (recipe.parent / "settings.yaml").write_text("bad: 1\n")
    assert run(recipe) == 2
    message = capsys.readouterr().err
    assert "stage other failed with exit code 1" in message
    log = recipe.parent / "out" / "other.log"
    assert str(log) in message
    assert "bad input" in log.read_text()
    (recipe.parent / "settings.yaml").write_text("good: 1\n")
    assert run(recipe) == 0
    assert stages_run(capsys.readouterr().out) == ["other"]


def test_single_stages_run_when_asked_for(recipe, capsys):
    assert run(recipe, "--only", "second") == 2
    assert "stage second needs first, which is not done" in capsys.readouterr().err
    assert run(recipe, "--only", "first", "second") == 0
    output = capsys.readouterr().out
    assert stages_run(output) == ["first", "second"]
    assert "not done    other" in output
    assert not (recipe.parent / "out" / "results.json").exists()
    assert run(recipe) == 0
    capsys.readouterr()
    assert run(recipe, "--again", "first") == 0
    assert stages_run(capsys.readouterr().out) == ["first", "second"]


def test_a_folder_of_something_else_is_not_touched(recipe, capsys):
    """Trap: a stage that removes what it finds where its own folder is to be."""
    precious = recipe.parent / "out" / "second" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("kept")
    assert run(recipe) == 2
    assert f"{precious.parent} was not made by this pipeline" in capsys.readouterr().err
    assert precious.read_text() == "kept"


def test_a_folder_that_was_removed_is_made_again(recipe, capsys):
    assert run(recipe) == 0
    (recipe.parent / "out" / "second" / "text.txt").unlink()
    (recipe.parent / "out" / "second").rmdir()
    capsys.readouterr()
    assert run(recipe) == 0
    assert stages_run(capsys.readouterr().out) == ["second"]


def written(recipe: Path, text: str) -> Path:
    recipe.write_text(textwrap.dedent(text))
    return recipe


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (
            "stages: {a: {run: 'train --lerning_rate 1'}}",
            [],
            "stage a cannot be called: llmfast train --lerning_rate 1",
        ),
        (
            "stages: {a: {run: trian}}",
            [],
            "stage a: trian is not a command; did you mean train?",
        ),
        ("stages: {a: {run: 'python x {b}'}, b: {run: python y}}", [], "stage a: it needs b, which comes after it"),
        ("stages: {a: {run: 'python {x}'}}", [], "stage a: {x} is neither a stage nor a variable"),
        ("stages: {a: {run: 'python {x}'}}\nvariables: {x: $NOT_SET_HERE}", [], "set NOT_SET_HERE in the environment"),
        ("stages: {a: {run: 'python x-{x}'}}\nvariables: {x: [1]}", [], "a list stands as a word of its own"),
        (
            "stages: {a: {run: python x, process: 2}}",
            [],
            "stages['a'].process is not a setting; did you mean processes?",
        ),
        ("stages: {a: {run: python x, processes: 0}}", [], "processes must be a number of at least 1, got '0'"),
        ("stages: {a: {run: 'python \"x'}}", [], "cannot be split into words"),
        ("stages: {a: {run: python x}}\nvariables: {a: 1}", [], "a has another meaning already"),
        ("stages: {}", [], "stages is empty"),
        ("stages: {a: {run: python x}}", ["--size", "big"], "size 'big' is not in the recipe, whose sizes are: none"),
        ("stages: {a: {run: python x}}\nvariables: {step: 1}", ["--set", "steps=1"], "did you mean step?"),
        ("stages: {a: {run: python x}}", ["--set", "steps"], "write NAME=VALUE"),
        ("stages: {a: {run: python x}}", ["--set", "steps=[1"], "its value is no YAML"),
        ("stages: {a: {run: python x}}", ["--only", "b"], "only is 'b', which is not a stage; there are a"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence_before_anything_runs(recipe, text, options, said, capsys):
    """Trap: the typing error of the last stage, found after hours in the first one."""
    written(recipe, text)
    assert run(recipe, *options) == 2
    assert said in capsys.readouterr().err
    assert not list((recipe.parent / "out").glob("*.log"))


def test_results_are_taken_from_files_of_every_kind(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, loss in (("a", 1.5), ("b", None)):
        (tmp_path / name / "summary.json").write_text(json.dumps({"settings": {"training.steps": 3}, "loss": loss}))
    records = [{"step": step, "loss": step / 2} for step in range(1, 1001)] + [{"step": 1000, "final_loss": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert gathered("x", f"{tmp_path}/a/summary.json:settings.training.steps") == 3
    assert gathered("x", f"{tmp_path}/*/summary.json:loss") == {"a": 1.5, "b": None}
    points = gathered("x", f"{tmp_path}/log.jsonl:loss")
    assert len(points) == 100
    assert points[-1] == [1000, 500.0]
    for source, said in (
        ("a/summary.json:los", "a/summary.json has no los"),
        ("c/summary.json:loss", "there is no file"),
        ("log.jsonl:lost", "log.jsonl has no lost"),
        ("*/log.jsonl:loss", "there is no file"),
    ):
        with pytest.raises(ValueError, match=f"result x: .*{said}"):
            gathered("x", f"{tmp_path}/{source}")


WAIT = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
while True:
    print(".")
    time.sleep(0.1)
"""
TRAINING = """
variables: {heads: 2}
stages:
  shards: {run: "data prepare {shards} --sources {here}/corpus.txt --vocab_size 300 --validation_fraction 0.2"}
  base: {run: "train --config {here}/base.yaml --model.heads {heads} --data.prepared {shards} --out {base}"}
results: {losses: "{base}/log.jsonl:loss", final: "{base}/summary.json:figures.loss"}
"""
BASE = """
model: {width: 32, layers: 1, context: 32}
training: {steps: 500, batch_size: 2, compile: false, precision: float32, sample_every: 0, evaluate_every: 0}
"""


def start(recipe: Path, out: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "llmfast.cli", "pipeline", str(recipe), "--out", str(recipe.parent / out)]
    return subprocess.Popen(command, cwd=recipe.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_ctrl_c_saves_and_the_same_command_resumes_in_the_stage_with_the_same_losses(recipe):
    """Trap: Ctrl-C that ends the pipeline and leaves the training alone, or a stage that begins again."""
    documents = "\n\n".join(f"the {n} quick brown foxes jump over {n * 7} lazy dogs and {n} cats" for n in range(400))
    (recipe.parent / "corpus.txt").write_text(documents)
    (recipe.parent / "base.yaml").write_text(BASE)
    written(recipe, TRAINING)
    first = start(recipe, "stopped")
    log = recipe.parent / "stopped" / "base" / "log.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 20, first)
    first.send_signal(signal.SIGINT)
    printed = first.communicate(timeout=200)[0]
    assert first.returncode == 130, printed
    assert "stopped in stage base; the same command resumes there" in printed
    stopped_at = len(log.read_text().splitlines())
    assert stopped_at < 500
    again = start(recipe, "stopped")
    printed = again.communicate(timeout=200)[0]
    assert again.returncode == 0, printed
    assert "shards: done" in printed
    assert "base: interrupted" in printed
    assert "resuming" in printed
    whole = start(recipe, "whole")
    printed = whole.communicate(timeout=200)[0]
    assert whole.returncode == 0, printed
    assert results(recipe, "stopped")["results"] == results(recipe, "whole")["results"]
    # What derives from the settings of the run that is there says nothing about one with others.
    assert run(recipe, "--set", "heads=1", "--dry_run", out="whole") == 0


def test_a_pipeline_has_its_folder_alone_and_takes_its_stage_along_when_it_is_killed(recipe, capsys):
    """Trap: a training that continues in the background and keeps the folder locked."""
    (recipe.parent / "wait.py").write_text(WAIT)
    pid = recipe.parent / "pid"
    written(recipe, "stages: {a: {run: 'python {here}/wait.py {here}/pid'}}")
    process = start(recipe, "out")
    wait_until(lambda: pid.exists() and pid.read_text(), process)
    assert run(recipe) == 2
    assert "two processes may not write one run" in capsys.readouterr().err
    process.kill()
    process.communicate()
    child = int(pid.read_text())
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return  # ended, and nobody has asked how
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the process of the stage is still running")
