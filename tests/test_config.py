"""YAML configuration: round trips, strict types, errors that name the setting; atomic writes."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfast import config
from llmfast.files import atomic_folder, atomic_write


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train."""

    steps: int = 10
    """Optimizer steps."""
    learning_rate: float = 6e-3
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "linear"] = "cosine"
    seed: int | None = None
    names: tuple[str, ...] = ()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    compile: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        out: The run folder.
    """

    out: Path = Path("runs/one")
    training: Training = Training()
    stages: list[Training] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        if len(self.stages) > 2:
            raise ValueError(f"stages: at most 2, got {len(self.stages)}")


def loaded(text: str, folder: Path) -> Run:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return config.load(Run, folder / "run.yaml")


numbers = st.floats(allow_nan=False)
trainings = st.builds(
    Training,
    steps=st.integers(),
    learning_rate=numbers,
    betas=st.tuples(numbers, numbers),
    schedule=st.sampled_from(["cosine", "linear"]),
    seed=st.none() | st.integers(),
    names=st.lists(st.text(st.characters(codec="utf-8")), max_size=3).map(tuple),
    weights=st.dictionaries(st.text(st.characters(codec="utf-8")), numbers, max_size=3),
    compile=st.booleans(),
)


@settings(max_examples=50, deadline=None)
@given(run=st.builds(Run, training=trainings, stages=st.lists(trainings, max_size=2)))
def test_what_is_saved_loads_equal(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    config.save(run, path)
    assert config.load(Run, path) == run


def test_saved_file_carries_the_documentation_of_each_setting(tmp_path):
    config.save(Run(), tmp_path / "run.yaml")
    lines = (tmp_path / "run.yaml").read_text().splitlines()
    assert lines[lines.index("out: runs/one") - 1] == "# The run folder."
    assert lines[lines.index("  steps: 10") - 1] == "  # Optimizer steps."


def test_a_file_names_only_what_differs(tmp_path):
    assert loaded("", tmp_path) == Run()
    assert loaded("training: {steps: 3}", tmp_path) == Run(training=Training(steps=3))


def test_scientific_notation_is_a_number(tmp_path):
    """PyYAML alone reads 1e-3 as text, the classic way to lose a learning rate."""
    assert loaded("training: {learning_rate: 1e-3}", tmp_path).training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "training: {lerning_rate: 1}",
            "training.lerning_rate is not a setting; did you mean learning_rate?",
        ),
        ("zzz: 1", "zzz is not a setting; there are out, training, stages"),
        ("training: {steps: many}", "training.steps: 'many' is not an integer"),
        ("training: {steps: 1.5}", "training.steps: 1.5 is not an integer"),
        ("training: {steps: true}", "training.steps: True is not an integer"),
        ("training: {learning_rate: fast}", "training.learning_rate: 'fast' is not a number"),
        ("training: {compile: 1}", "training.compile: 1 is not true or false"),
        ("training: {seed: x}", "training.seed: 'x' is not an integer"),
        ("training: {betas: [0.9, x]}", "training.betas[1]: 'x' is not a number"),
        ("training: {betas: 3}", "training.betas is not tuple[float, float]"),
        ("training: {schedule: cubic}", "training.schedule: 'cubic' is not one of 'cosine', 'linear'"),
        ("training: {names: abc}", "training.names: 'abc' is not a list"),
        ("training: {names: [1]}", "training.names[0]: 1 is not text"),
        ("training: {weights: {a: x}}", "training.weights['a']: 'x' is not a number"),
        ("training: 3", "training: 3 is not a table of settings"),
        ("training:", "training: None is not a table of settings"),
        ("stages: [{steps: x}]", "stages[0].steps: 'x' is not an integer"),
        ("stages: [{stps: 1}]", "stages[0].stps is not a setting; did you mean steps?"),
        ("stages: [{}, {}, {}]", "stages: at most 2, got 3"),
        ("out: 3", "out: 3 is not a path"),
        ("- 1", "[1] is not a table of settings"),
        ("out: a\nout: b", "'out' is given twice"),
        ("{", "is not a YAML file"),
    ],
)
def test_bad_input_is_refused_by_name(text, says, tmp_path):
    with pytest.raises(ValueError) as caught:
        loaded(text, tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path / "run.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(ValueError) as caught:
        loaded("training: {steps: a, compile: b}", tmp_path)
    assert "'a' is not an integer; training.compile: 'b' is not true or false" in str(caught.value)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a YAML file"):
        config.load(Run, tmp_path / "run.yaml")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    atomic_write(path, "old")

    def disk_full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError) as caught:
        atomic_write(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)  # the error names the file, not the temporary one
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("one_step", [True, False], ids=["exchange", "two renames"])
def test_a_folder_takes_the_place_of_the_old_one_as_a_whole(one_step, tmp_path, monkeypatch):
    if not one_step:  # a system or file system that can not swap two names
        monkeypatch.setattr("llmfast.files._exchange", lambda a, b: False)
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "run") as folder:
            (folder / content).mkdir()
            (folder / content / "file").write_text(content)
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["new"]


def test_a_folder_whose_writer_fails_leaves_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "old").write_text("old")

    def interrupted():
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "new").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["old"]


def test_a_folder_does_not_replace_a_file(tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(OSError), atomic_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "precious"
    assert os.listdir(tmp_path) == ["run"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    killed = """
import os, signal, sys
from llmfast.files import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "run")], check=False)
    assert len(os.listdir(tmp_path)) == 1  # the half-written folder, under a temporary name
    atomic_write(tmp_path / "run", "whole")
    assert os.listdir(tmp_path) == ["run"]
