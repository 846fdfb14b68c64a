"""Every recipe is a configuration that could be trained."""

import re
from pathlib import Path

import pytest

from llmfast import config as config_files
from llmfast.commands.tasks import task_named
from llmfast.training.config import RunConfig
from llmfast.training.sweep import combinations, read_grid

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
STUDY = {"pipeline.yaml", "page.yaml"}  # what runs a study's recipes and shows their results
RECIPES = sorted(path for path in FOLDER.glob("*/*.yaml") if path.name not in STUDY)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_is_valid_and_says_how_it_is_run(path):
    text = path.read_text()
    place = re.escape(f"recipes/{path.parent.name}/{path.name}")
    found = re.search(rf"llmfast(?:\.cli)? (?P<command>\w+) [^\n]*{place}(?:[^\n]*--task (?P<task>\w+))?", text)
    assert found, "a comment says how it is run"
    if found["command"] == "sweep":
        config_class = task_named(found["task"] or "train").config_class
        common = re.search(rf"{place}[^\n]*--config (\S+)", text)
        config = config_files.load(config_class, FOLDER.parent / common[1]) if common else config_class()
        assert combinations(read_grid(path), config)
    else:
        assert config_files.load(task_named(found["command"]).config_class, path).training.steps > 0


def test_gpt2_has_its_size():
    for name in ("gpt2-124m", "gpt2-124m-on-cpu"):
        config = config_files.load(RunConfig, FOLDER / "gpt2-124m" / f"{name}.yaml")
        assert 123e6 < config.model.parameters < 125e6
