"""Every recipe is a configuration that could be trained."""

import re
from pathlib import Path

import pytest

from llmfast import config as config_files
from llmfast.commands.tasks import task_named
from llmfast.training.config import RunConfig
from llmfast.training.sweep import combinations, read_grid

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
# Pipelines, and what their pages show, have tests of their own.
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name not in ("pipeline.yaml", "page.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_recipe_is_valid_and_says_how_it_is_run(path):
    text = path.read_text()
    name = f"recipes/{path.relative_to(FOLDER)}"
    line = re.search(rf"llmfast(?:\.cli)? (\w+) [^\n]*{re.escape(name)}[^\n]*", text)
    command = line.group(1)
    if command == "sweep":
        task = re.search(r"--task (\w+)", line.group())
        assert combinations(read_grid(path), task_named(task.group(1) if task else "train").config_class())
    else:
        assert config_files.load(task_named(command).config_class, path).training.steps > 0


def test_gpt2_has_its_size():
    for name in ("gpt2-124m", "gpt2-124m-on-cpu"):
        (path,) = (path for path in RECIPES if path.stem == name)
        assert 123e6 < config_files.load(RunConfig, path).model.parameters < 125e6
