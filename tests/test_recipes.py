"""Every recipe is a configuration that could be trained."""

from pathlib import Path

import pytest

from llmfast import config as config_files
from llmfast.finetuning.config import SupervisedConfig
from llmfast.training.config import RunConfig
from llmfast.training.sweep import combinations, read_grid

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_how_it_is_run(path):
    assert f"recipes/{path.name}" in path.read_text()
    if path.name.startswith("sweep-"):
        assert combinations(read_grid(path), RunConfig())
    else:
        kind = SupervisedConfig if f"llmfast sft --config recipes/{path.name}" in path.read_text() else RunConfig
        assert config_files.load(kind, path).training.steps > 0


def test_gpt2_has_its_size():
    for name in ("gpt2-124m", "gpt2-124m-on-cpu"):
        (path,) = (path for path in RECIPES if path.stem == name)
        assert 123e6 < config_files.load(RunConfig, path).model.parameters < 125e6
