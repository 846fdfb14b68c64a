"""Every recipe, and every command of the pages that names one, runs or says first what this machine lacks."""

import json
import re
import sys
from pathlib import Path

import pytest
from offline import refuse_network
from pages import PAGES, ROOT, shell_lines, words_of
from small_labels import write_labels
from small_pairs import write_pairs
from small_policy import digits_to_sort
from small_run import write_corpus
from small_sft import write_instructions, write_model

from llmfast.cli import main
from llmfast.commands.doctor import optional_libraries
from llmfast.commands.tasks import TASKS
from llmfast.config import read_yaml
from llmfast.data.reading import corpus
from llmfast.pipeline import running
from llmfast.training.trainer import Trainer

RECIPE = re.compile(r"recipes/[\w-]+/[\w.-]+\.yaml")
NAMED = re.compile(r"[\w.{}$-]*/[\w./*-]+|\w+\.\w+|\$\w+|LLMFAST_TEST_DATA|tinyshakespeare|GiB")
"""A file, a folder, a setting or another thing that is missing."""
INSTALL = re.compile(r"this needs (\w+), which is not installed: pip install 'llmfast\[[\w-]+\]'")


def commands():
    """The words of every command line that names a recipe: in the recipe's own comment, or on a page."""
    texts = {path: re.sub(r"^# ?", "", path.read_text(), flags=re.M) for path in ROOT.glob("recipes/*/*.yaml")}
    lines = [words for text in texts.values() for words in words_of(re.findall(r"^ *llmfast .*", text, re.M))]
    lines += [words for page in PAGES for words in shell_lines(page.read_text(encoding="utf-8"))]
    return sorted({tuple(words) for words in lines if any(map(RECIPE.fullmatch, words))})


COMMANDS = commands()
TRAINING = {words[words.index("--config") + 1]: words for words in COMMANDS if words[0] in TASKS}  # one for each recipe


class Began(Exception):
    """The command found all it needs, and began what takes long."""


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """The recipes in an empty folder, with neither network nor data, nor time to train."""
    refuse_network(monkeypatch)
    monkeypatch.delenv("LLMFAST_TEST_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    (folder := tmp_path / "work").mkdir()
    (folder / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(folder)

    def begin(*arguments, **options):
        raise Began

    monkeypatch.setattr(corpus, "_standard_library", begin)  # the text of runs that name none
    monkeypatch.setattr(Trainer, "__init__", begin)
    monkeypatch.setattr(running, "run_command", begin)
    return folder


class Hidden:
    """Libraries that look as if they were not installed, until they are shown again."""

    def __init__(self, names):
        self.loaded = {name: {} for name in names}
        for name, own in self.loaded.items():
            for module in [each for each in sys.modules if each.split(".")[0] == name]:
                own[module] = sys.modules.pop(module)
            sys.modules[name] = None

    def show(self, name):
        """As it was: what was loaded is not loaded a second time, which some libraries do not survive."""
        del sys.modules[name]
        sys.modules.update(self.loaded.pop(name))


@pytest.fixture
def hidden():
    """All libraries of llmfast's extras."""
    libraries = Hidden({each.module for each in optional_libraries()})
    yield libraries
    for name in list(libraries.loaded):
        libraries.show(name)


def lacks(words, folder, capsys):
    """The sentence that a command ends with, having made nothing; None if it has all it needs."""
    capsys.readouterr()
    try:
        code = main(list(words))
    except Began:
        return None
    finally:
        left = {path.name for path in folder.iterdir()} - {"recipes"}
    message = capsys.readouterr().err
    assert code == 2, message
    assert not left, "nothing is made where something is missing"
    assert re.fullmatch(r"llmfast: .+\n", message), "one sentence"
    return message


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_names_what_is_missing_one_after_the_other(words, bare_machine, hidden, capsys):
    """Trap: a library, a file or memory that is found to be missing after the stages before it have run for hours."""
    if "--dry_run" in words and words[0] == "pipeline":
        assert main(list(words)) == 0
        return
    while (message := lacks(words, bare_machine, capsys)) and (found := INSTALL.search(message)):
        if found[1] not in hidden.loaded:  # it is indeed not installed here
            return
        hidden.show(found[1])
    assert message is None or NAMED.search(message), message


GIVEN = ("--out", "--resume", "--start", "--teacher", "--data.sources", "--data.prepared", "--dry_run")


def without_options(words, names):
    """The words without some options and their values."""
    kept, drops = [], False
    for word in words:
        if word.startswith("--"):
            drops = word in names
        if not drops:
            kept.append(word)
    return kept


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Data and a model for each kind of training, small ones."""
    folder = tmp_path_factory.mktemp("given")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in digits_to_sort(40, 3)))
    pairs, instructions = write_pairs(folder / "pairs.jsonl"), write_instructions(folder / "instructions.jsonl")
    text = write_corpus(folder / "corpus")
    shards = folder / "shards"
    assert main(["data", "prepare", str(shards), "--sources", str(text), "--vocab_size", "300"]) == 0
    of_text = {True: ["--data.prepared", str(shards)], False: ["--data.sources", str(text)]}
    files = {"classify": write_labels(folder / "labels.tsv"), "sft": instructions, "distill": instructions}
    files |= {"dpo": pairs, "reward": pairs, "grpo": prompts, "ppo": prompts}
    return of_text, files, write_model(folder / "model", context=288)


@pytest.mark.parametrize("words", TRAINING.values(), ids=TRAINING)
def test_a_recipe_trains_where_its_data_and_its_model_are_there(words, given, tmp_path, monkeypatch, capsys):
    """Trap: settings of a recipe that do not go together, found once the data are there."""
    refuse_network(monkeypatch)
    monkeypatch.chdir(ROOT)
    of_text, files, model = given
    recipe = read_yaml(Path(words[words.index("--config") + 1]))
    options = [
        *without_options(words, GIVEN),
        "--dry_run",
        "--training.compile",
        "False",
        "--training.batch_size",
        "16",
    ]
    if words[0] == "train":
        options += of_text["prepared" in recipe.get("data", {}) or "--data.prepared" in words]
    else:
        options += ["--data.sources", str(files[words[0]]), "--data.max_tokens", "256"]
    if words[0] in ("train", "classify"):
        options += ["--data.vocab_size", "300"]
    if words[0] == "distill":
        options += ["--data.template", "plain"]  # a teacher that was finetuned with a template has its tokens
    for name in ("start", "teacher"):
        if name in recipe or f"--{name}" in words:
            options += [f"--{name}", str(model)]
    if "start" not in recipe and "--start" not in words:
        options += ["--model.width", "16", "--model.layers", "1", "--model.heads", "2", "--model.ff_width", "16"]
        options += ["--model.context", "288"]
    if words[0] in ("grpo", "ppo"):
        options += ["--rollouts.max_tokens", "4"]
    assert main(options) == 0, capsys.readouterr().err
    assert "steps of" in capsys.readouterr().out
