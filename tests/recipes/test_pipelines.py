"""Every pipeline in recipes/ can be started at every size, shows its committed results, and runs to its end."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import forked_stages
import httpx
import pytest

from llmfast.cli import main
from llmfast.pipeline import running
from llmfast.pipeline.inputs import recipe_sha256
from llmfast.pipeline.recipe import make_plan, read_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/pipeline.yaml"))
SIZES = ("quick", "cpu", "gpu")
CORES = 2
IDS = [path.parent.name for path in RECIPES]


@pytest.fixture
def in_repository(monkeypatch):
    """Paths of recipes are relative to the root, as in the commands that they show; published tokenizers come from the
    shared test data."""
    monkeypatch.chdir(ROOT)
    data = Path(os.environ.get("LLMFAST_TEST_DATA") or ROOT.parent / "shared" / "data")
    monkeypatch.setenv("LLMFAST_TEST_DATA", str(data))
    if (data / "tiktoken").is_dir():
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data / "tiktoken"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_every_command_line_of_a_recipe_can_be_called(path, size, in_repository, tmp_path, capsys):
    """Trap: an option that was renamed, found after the stages before it have run for hours on a GPU."""
    assert (
        main(["pipeline", str(path.relative_to(ROOT)), "--size", size, "--out", str(tmp_path / "out"), "--dry_run"])
        == 0
    )
    assert "runs: new" in capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_a_recipe_says_how_long_it_takes_and_how_it_is_run(path):
    text, recipe = path.read_text(encoding="utf-8"), read_recipe(path)
    assert f"llmfast pipeline recipes/{path.parent.name}/pipeline.yaml" in text
    assert set(SIZES) <= set(recipe.sizes)
    assert set(SIZES) <= set(recipe.minutes)
    assert recipe.results
    assert (path.parent / "README.md").is_file()
    assert (ROOT / "docs" / "studies" / f"{path.parent.name}.md").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_the_committed_results_are_those_of_the_recipe_as_it_is(path, in_repository):
    """Trap: settings that were changed after the run whose results the page shows."""
    content = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))
    assert content["size"] == "cpu"
    recipe = read_recipe(path)
    plan = make_plan(recipe, path, Path("out"), size="cpu", changes={})
    assert content["variables"] == plan.variables
    assert content["recipe"] == recipe_sha256(plan.steps), "run it again and commit its results.json"
    assert set(content["results"]) == set(recipe.results)


def assert_takes_what_it_says(path, content):
    """The minutes of a recipe are those of two idle cores. Processor time is judged, not the time on the clock, and
    generously: shared caches make it longer, too."""
    stated = read_recipe(path).minutes[content["size"]]
    took = sum(content["processor_seconds"].values()) / 60
    print(f"{path.parent.name}: {took:.1f} minutes of processor time; {stated:g} minutes on two cores are stated")
    assert took <= 2 * CORES * stated, "raise its minutes in pipeline.yaml, or give it less to do"


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_the_committed_results_took_no_longer_than_the_recipe_says(path):
    content = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))
    if "processor_seconds" not in content:
        pytest.skip("made before processor time was recorded")
    assert_takes_what_it_says(path, content)


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_the_quick_size_runs_to_its_end(path, request, in_repository, tmp_path, monkeypatch):
    if not request.config.getoption("--studies"):
        pytest.skip("trains for up to a minute: --studies runs it")
    if "$LLMFAST_TEST_DATA" in path.read_text(encoding="utf-8") and not Path(os.environ["LLMFAST_TEST_DATA"]).is_dir():
        pytest.skip("needs the shared test data, which LLMFAST_TEST_DATA names")
    out = tmp_path / "out"
    monkeypatch.setattr(running, "run_command", forked_stages.run_command)
    assert main(["pipeline", str(path.relative_to(ROOT)), "--size", "quick", "--out", str(out)]) == 0
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert_takes_what_it_says(path, content)
    assert str(out) not in json.dumps(content["results"])
    if path.parent.name == "assistant":
        assert_talks(out / "grpo")
    shutil.rmtree(out)


def assert_talks(run):
    """What the pipeline ends with answers in a terminal and over HTTP."""
    said = subprocess.run(
        [sys.executable, "-m", "llmfast.cli", "chat", str(run), "--tokens", "5"],
        input="Sort the digits 3 1 2.\n", capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert re.search(r"\d tokens?, [\d.]+ per second", said.stdout + said.stderr), said.stdout
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "llmfast.cli", "serve", str(run), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert any("Ctrl-C" in line for line in server.stdout)
        asked = {
            "model": run.name,
            "messages": [{"role": "user", "content": "Sort the digits 3 1 2."}],
            "max_tokens": 5,
        }
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, timeout=100)
        answer.raise_for_status()
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
    finally:
        server.kill()
        server.communicate()
