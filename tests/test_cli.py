"""The llmfast command: help, exit codes, one-sentence errors, overrides over a configuration file."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmfast import __version__, cli


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 64
    """Model width E."""
    ff_width: int | None = None
    """Four times the width if left out."""
    gated: bool = True

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"model.width must be at least 1, got {self.width}")
        if self.ff_width is None:
            object.__setattr__(self, "ff_width", 4 * self.width)


@dataclasses.dataclass(frozen=True)
class Config:
    model: Model = Model()
    learning_rate: float = 1e-3
    """Peak learning rate."""


CALLS = []


def configured(*, config: Config | None = None, resume: bool = False) -> None:
    """Train by a configuration.

    Args:
        resume: Continue the run.
    """
    CALLS.append((config, resume))


@dataclasses.dataclass
class Weights:
    rewards: dict[str, float] = dataclasses.field(default_factory=lambda: {"exact": 1.0})
    """Rewards with their weights."""
    steps: int = 1


def weighted(*, config: Weights | None = None) -> None:
    """Train by rewards."""
    CALLS.append(config)


def failing(kind: str, *, path: Path = Path("some/file")) -> None:
    """Fail.

    Args:
        kind: How to fail.
        path: The file to blame.
    """
    raise {
        "value": ValueError(f"{path} holds\nno text"),
        "missing": FileNotFoundError(errno.ENOENT, "No such file or directory", str(path)),
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "extra": ModuleNotFoundError("No module named 'wandb'", name="wandb"),
        "interrupt": KeyboardInterrupt(),
        "ours": ModuleNotFoundError("No module named 'llmfast.nowhere'", name="llmfast.nowhere"),
    }[kind]


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """Stand-ins for the training commands, which have tests of their own."""
    CALLS.clear()
    functions = {"configured": configured, "weighted": weighted, "failing": failing}
    for name, function in functions.items():
        command = cli.Command("unused:unused", function.__doc__.splitlines()[0])
        monkeypatch.setitem(cli.COMMANDS, name, command)
    real = cli.Command.function
    stand_ins = {cli.COMMANDS[name]: function for name, function in functions.items()}
    monkeypatch.setattr(cli.Command, "function", lambda self: stand_ins.get(self) or real(self))


def exit_code(*arguments: str) -> int:
    try:
        return cli.main(list(arguments))
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_one_line(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code(*arguments) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for name, command in cli.COMMANDS.items():
        assert any(re.fullmatch(rf"  {name} +{re.escape(command.help)}", line) for line in lines), name


def test_group_lists_its_commands(capsys):
    assert exit_code("tokenizer") == 0
    out = capsys.readouterr().out
    assert "tokenizer train" in out
    assert "quickstart" not in out


def test_version(capsys):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"llmfast {__version__}\n"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_of_a_command_shows_every_option(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert exit_code("configured", "--help") == 0
    out = capsys.readouterr().out
    for text in (
        "--config",
        "--resume",
        "--model.width",
        "Model width E.",
        "--learning_rate",
        "Continue the run.",
    ):
        assert text in out
    assert all(len(line) <= int(columns) for line in out.splitlines() if not line.startswith("usage:"))


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("value", 2, "llmfast: some/file holds no text\n"),
        ("missing", 2, "llmfast: some/file: no such file or directory\n"),
        ("full", 2, "llmfast: no space left on device\n"),
        ("extra", 2, "llmfast: this needs wandb, which is not installed: pip install 'llmfast[track]'\n"),
        ("interrupt", 130, "llmfast: interrupted\n"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(kind, code, says, capsys):
    assert exit_code("failing", kind) == code
    assert capsys.readouterr() == ("", says)
    assert exit_code("failing", kind, "--debug") == code
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_is_not_hidden():
    with pytest.raises(ModuleNotFoundError):
        cli.main(["failing", "ours"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quickstrat"], "quickstrat is not a command; did you mean quickstart?"),
        (["tokenizer", "trian"], "tokenizer trian is not a command; did you mean tokenizer train?"),
        (["zzz"], "zzz is not a command; see llmfast --help"),
        (["configured", "--lerning_rate", "1"], "--learning_rate"),
        (["configured", "--model.width", "wide"], "'wide'"),
        (["configured", "--model.width", "0"], "model.width must be at least 1, got 0"),
        (["configured", "--config"], "--config"),
        (["failing"], "KIND"),
    ],
)
def test_mistyped_command_lines_are_explained(arguments, says, capsys):
    assert exit_code(*arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_options_override_the_file_that_overrides_the_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {width: 128}\nlearning_rate: 1e-2")
    assert exit_code("configured", "--model.width", "32") == 0
    assert exit_code("configured", "--config", str(file)) == 0
    assert exit_code("configured", f"--config={file}", "--model.width", "32", "--resume") == 0
    first, second, third = CALLS
    assert first == (Config(Model(32)), False)
    assert second == (Config(Model(128), 1e-2), False)
    assert third == (Config(Model(32), 1e-2), True)


def test_derived_settings_follow_what_they_are_derived_from(tmp_path):
    """Starting from a filled-in default, a new width would silently keep the ff_width of the old one."""
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-2")
    assert exit_code("configured", "--model.width", "32") == 0
    assert exit_code("configured", "--config", str(file), "--model.width", "32") == 0
    file.write_text("model: {ff_width: 100}")
    assert exit_code("configured", "--config", str(file), "--model.width", "32") == 0
    assert [config.model.ff_width for config, _ in CALLS] == [128, 128, 100]


def test_a_table_is_given_as_a_whole(tmp_path, capsys):
    """Trap: only names that a default already holds are options, so that no other reward could be chosen."""
    file = tmp_path / "run.yaml"
    file.write_text("rewards: {number: 2.0}")
    assert exit_code("weighted", "--rewards", "math", "1.0", "brevity", "-0.1", "--steps", "3") == 0
    assert exit_code("weighted", "--config", str(file)) == 0
    assert exit_code("weighted", "--config", str(file), "--rewards", "regex:^a b", "1") == 0
    assert exit_code("weighted", "--rewards.exact", "0.5") == 0
    wanted = [{"math": 1.0, "brevity": -0.1}, {"number": 2.0}, {"regex:^a b": 1.0}, {"exact": 0.5}]
    assert [config.rewards for config in CALLS] == wanted
    assert CALLS[0].steps == 3
    for words, says in {
        ("--rewards", "math"): "--rewards takes names, each with its value after it, got math",
        ("--rewards", "--steps", "2"): "--rewards takes names, each with its value after it, got nothing",
        ("--rewards", "math", "much"): "rewards",
    }.items():
        assert exit_code("weighted", *words) == 2
        assert says in " ".join(capsys.readouterr().err.split())


def test_switches_are_spelled_the_same_whatever_the_file_says(tmp_path):
    file = tmp_path / "run.yaml"
    for before, option, after in [("true", "--model.no_gated", False), ("false", "--model.gated", True)]:
        file.write_text(f"model: {{gated: {before}}}")
        assert exit_code("configured", "--config", str(file), option) == 0
        assert CALLS.pop()[0].model.gated is after


@pytest.mark.parametrize("value", ["False", "false", "True", "true"])
@pytest.mark.parametrize("joined", [True, False])
def test_switches_take_a_value_as_well(value, joined):
    """``--training.compile=False`` is what users of other training code type."""
    for option, found in (("--model.gated", lambda call: call[0].model.gated), ("--resume", lambda call: call[1])):
        words = [f"{option}={value}"] if joined else [option, value]
        assert exit_code("configured", *words) == 0
        assert found(CALLS.pop()) is (value.lower() == "true")


def test_an_address_is_no_folder(tmp_path, monkeypatch, capsys):
    """Trap: ``--out s3://bucket/run`` writes into a local folder named ``s3:``."""
    monkeypatch.chdir(tmp_path)
    assert exit_code("failing", "value", "--path", "s3://bucket/run") == 2
    assert "s3://bucket/run is not a folder of this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_the_configuration_file_name_the_setting(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("model: {widht: 128}")
    assert exit_code("configured", "--config", str(file)) == 2
    said = f"llmfast: {file}: model.widht is not a setting; did you mean width?\n"
    assert capsys.readouterr().err == said
    assert exit_code("configured", "--config", str(tmp_path / "absent.yaml")) == 2
    assert "absent.yaml: no such file or directory" in capsys.readouterr().err


def test_closed_output_ends_quietly():
    """`llmfast ... | head` must not end in a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "llmfast.cli", "--version"]
    answer = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (141, b"")


def test_installed_command_runs_and_doctor_prints_json():
    command = Path(sys.executable).with_name("llmfast")
    answer = subprocess.run([command, "doctor", "--json"], capture_output=True, text=True, check=True)
    assert "torch" in {finding["name"] for finding in json.loads(answer.stdout)}
