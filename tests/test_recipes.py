"""Every recipe is a configuration that could be trained."""

import re
from pathlib import Path

import pytest

from llmfast import config as config_files
from llmfast.commands.tasks import task_named
from llmfast.training.config import RunConfig
from llmfast.training.sweep import combinations, read_grid

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_how_it_is_run(path):
    text = path.read_text()
    assert f"recipes/{path.name}" in text
    command = re.search(r"llmfast(?:\.cli)? (\w+) [^\n]*recipes/" + re.escape(path.name), text).group(1)
    if command == "sweep":
        assert combinations(read_grid(path), RunConfig())
    else:
        assert config_files.load(task_named(command).config_class, path).training.steps > 0


def test_gpt2_has_its_size():
    for name in ("gpt2-124m", "gpt2-124m-on-cpu"):
        (path,) = (path for path in RECIPES if path.stem == name)
        assert 123e6 < config_files.load(RunConfig, path).model.parameters < 125e6
