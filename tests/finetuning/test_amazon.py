"""The recipes of movie and Amazon reviews on the real data: quality in full, with an adapter, and in 4 bits."""

import json
import os
from pathlib import Path

import pytest
from shared_data import shared_data

from llmfast import config as config_files
from llmfast.commands.classify import classify
from llmfast.finetuning.config import ClassificationConfig
from llmfast.training.summary import read_summary

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

pytestmark = [
    pytest.mark.proof,
    pytest.mark.xdist_group("amazon"),
    pytest.mark.timeout(1800),  # a minute and a half on an idle core
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def trained(recipe, out, **settings):
    """A run by a recipe, begun in the folder where ``data`` and ``runs`` are."""
    config = config_files.load(ClassificationConfig, RECIPES / f"{recipe}.yaml")
    for name, value in settings.items():
        setattr(config, name, value)
    config.training.sample_every = config.training.evaluate_every = 0
    classify(config=config, out=Path("runs") / out)
    return Path("runs").absolute() / out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the recipes are run: the data, and the classifier of movie reviews that the others start from."""
    data, folder = shared_data("sentiment"), tmp_path_factory.mktemp("reviews")
    (folder / "data").symlink_to(data, target_is_directory=True)
    before = Path.cwd()
    os.chdir(folder)
    trained("movie-reviews", "movie-reviews")
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def runs(folder):
    return {
        "full": trained("amazon-full", "amazon-full"),
        "lora": trained("amazon-lora", "amazon-lora"),
        "qlora": trained("amazon-lora", "amazon-qlora", adapter="qlora"),
    }


def held_out(run):
    """Accuracy and loss over the texts of the validation and the test split together."""
    splits = json.loads((run / "evaluation.json").read_text())["splits"].values()
    count = sum(split["texts"] for split in splits)
    return [sum(split["texts"] * split[name] for split in splits) / count for name in ("accuracy", "loss")]


def test_movie_reviews_are_learned_from_nothing(folder):
    assert held_out(folder / "runs" / "movie-reviews")[0] >= 0.70


def test_amazon_reviews_are_learned_in_full_and_as_well_by_an_adapter(runs):
    full, lora = (held_out(runs[name])[0] for name in ("full", "lora"))
    assert full >= 0.80
    assert lora >= full - 0.02
    summary = read_summary(runs["lora"])
    assert summary.trained_parameters < 0.01 * summary.parameters


def test_four_bits_cost_an_adapter_less_than_two_percent_of_its_loss(runs):
    assert held_out(runs["qlora"])[1] <= 1.02 * held_out(runs["lora"])[1]
