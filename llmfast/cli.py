"""The ``llmfast`` command. Each command is one function, importable and callable with the same arguments.

Required parameters are positional, the others are options spelled as in Python. A parameter ``config`` that
is a dataclass (or None) puts its sections at the top level (``--training.learning_rate 3e-4``) and adds ``--config``,
a YAML file with the values to start from.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import io
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from llmfast import __version__


@dataclasses.dataclass(frozen=True)
class Command:
    target: str  # "module:function", imported only when the command is called
    help: str
    own_arguments: bool = False  # reads its words, --help included, itself

    def function(self) -> Callable[..., None]:
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)


COMMANDS = {
    "quickstart": Command(
        "llmfast.commands.quickstart:quickstart", "Train a small model on real text, now, and sample it."
    ),
    "tokenizer train": Command("llmfast.commands.tokenizer:train", "Learn a byte-level BPE vocabulary from text."),
    "tokenizer encode": Command("llmfast.commands.tokenizer:encode", "Turn text into ids, or files into shards."),
    "tokenizer decode": Command("llmfast.commands.tokenizer:decode", "Turn token ids into text."),
    "tokenizer info": Command("llmfast.commands.tokenizer:info", "Show what a tokenizer is made of."),
    "tokenizer compare": Command("llmfast.commands.tokenizer:compare", "Count the tokens of different tokenizers."),
    "data prepare": Command("llmfast.commands.data:prepare", "Turn text into a tokenizer and token shards."),
    "data dedup": Command("llmfast.commands.data:dedup", "Leave out documents that repeat an earlier one."),
    "data report": Command("llmfast.commands.data:report", "Show what prepared data is made of."),
    "copy": Command("llmfast.commands.copy:copy", "Copy a run, model or data to an address, or back."),
    "model info": Command("llmfast.commands.model:info", "Show a model's size, memory and what fits a GPU."),
    "model import": Command(
        "llmfast.commands.huggingface:import_model", "Turn a Hugging Face folder into one of llmfast."
    ),
    "model export": Command("llmfast.commands.huggingface:export_model", "Write a model as a Hugging Face folder."),
    "adapter info": Command("llmfast.commands.adapter:info", "Show what an adapter is and which base it needs."),
    "adapter merge": Command("llmfast.commands.adapter:merge", "Add an adapter to the weights of its base."),
    "adapter export": Command("llmfast.commands.adapter:export", "Write the adapter of a run as PEFT's files."),
    "train": Command("llmfast.commands.train:train", "Train a model by a configuration."),
    "sweep": Command("llmfast.commands.train:sweep", "Train over a grid of settings and compare the runs."),
    "pipeline": Command("llmfast.commands.pipeline:pipeline", "Run commands that build on one another, resumably."),
    "classify": Command(
        "llmfast.commands.classify:classify", "Train a classifier of texts, from a model or from nothing."
    ),
    "predict": Command("llmfast.commands.predict:predict", "Name the labels of texts with a trained classifier."),
    "sft": Command("llmfast.commands.sft:sft", "Finetune a model on instructions and their answers."),
    "dpo": Command("llmfast.commands.alignment:dpo", "Train a model on preferences: DPO and its relatives."),
    "reward": Command("llmfast.commands.alignment:reward", "Train a reward model on preferences."),
    "grpo": Command("llmfast.commands.alignment:grpo", "Train a model on rewards of its answers, by GRPO or kin."),
    "ppo": Command("llmfast.commands.alignment:ppo", "Train a model on rewards of its answers, by PPO."),
    "distill": Command("llmfast.commands.alignment:distill", "Train a model to answer as a teacher does."),
    "eval": Command("llmfast.commands.evaluate:evaluate", "Measure a model on questions, or bits per byte of text."),
    "compare": Command("llmfast.commands.compare:compare", "Show runs of any kind side by side: quality and cost."),
    "generate": Command("llmfast.commands.generate:generate", "Continue a prompt, or answer, with a trained model."),
    "look attention": Command("llmfast.commands.look.attention:attention", "Draw where attention heads look."),
    "look lens": Command("llmfast.commands.look.lens:lens", "Show what each layer would predict next."),
    "look tune": Command("llmfast.commands.look.lens:tune", "Fit a tuned lens for look lens."),
    "look next": Command("llmfast.commands.look.lens:next_token", "Show which tokens a model expects next."),
    "look loss": Command("llmfast.commands.look.text:loss", "Color a text by the loss of each token."),
    "look attribute": Command("llmfast.commands.look.text:attribute", "Show which tokens made it expect a token."),
    "look norms": Command("llmfast.commands.look.parts:norms", "Show activation norms and outliers by layer."),
    "look neighbors": Command("llmfast.commands.look.parts:neighbors", "List tokens with similar embeddings."),
    "look ablate": Command("llmfast.commands.look.parts:ablate", "Measure the loss without each head or layer."),
    "chat": Command("llmfast.commands.chat:chat", "Talk to a model in the terminal."),
    "serve": Command("llmfast.commands.serve:serve", "Serve a model over HTTP with OpenAI's API and a chat page."),
    "app": Command("llmfast.commands.app:app", "Open the dashboard of runs, models, data and results."),
    "bench": Command(
        "llmfast.commands.bench:bench", "Measure llmfast beside its peers (in a clone).", own_arguments=True
    ),
    "doctor": Command("llmfast.commands.doctor:doctor", "Show what this machine has, and what is missing."),
}

DEFAULTS = {"look": "look attention"}
"""What the name of a group stands for where no command of the group follows."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 2 for a bad input, 130 for an interrupt."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    try:
        run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever reads our output has enough, as in `llmfast ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ModuleNotFoundError, KeyboardInterrupt) as error:
        if not debug and (message := sentence(error)) is None:
            raise
        if debug:
            traceback.print_exc()
        elif _among_processes() is None or _among_processes().is_first_to_fail(message):
            print(f"llmfast: {message}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    except RuntimeError:
        if debug or _among_processes() is None or not _among_processes().another_failed():
            raise
        return 2  # the connection to a process that has given its reason


def _among_processes() -> Any:
    """The exchange of failures between the processes that torchrun started; None for one process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    from llmfast.training.distribution import failures

    return failures


def run(arguments: list[str]) -> None:
    """Finds the command that the first words name, imports it alone, and calls it with the rest."""
    name, rest = command_of(arguments)
    if name in COMMANDS:
        positional, named = parse(arguments)
        COMMANDS[name].function()(*positional, **named)
    elif name in ("-V", "--version"):
        print(f"llmfast {__version__}")
    elif name in ("", "-h", "--help"):
        _list_commands("")
    elif in_group := [command for command in COMMANDS if command.startswith(f"{name} ")]:
        if rest and rest[0] not in ("-h", "--help"):
            raise ValueError(_not_a_command(" ".join(arguments[:2]), in_group))
        _list_commands(name)
    else:
        raise ValueError(_not_a_command(name, list(COMMANDS)))


def parse(arguments: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a command would be called with, positional and named, and nothing is called.

    The files and folders that the command line names need not be there yet, but for ``--config``.

    Raises:
        ValueError: there is no such command, or a value cannot be.
        SystemExit: there is no such option; what is printed says so.
    """
    name, rest = command_of(arguments)
    if name not in COMMANDS:
        raise ValueError(_not_a_command(name, list(COMMANDS)))
    if COMMANDS[name].own_arguments:
        return (rest,), {}
    return _parsed(COMMANDS[name].function(), f"llmfast {name}", rest)


def command_of(arguments: list[str]) -> tuple[str, list[str]]:
    """The name of a command, which has one or two words, and the words after it."""
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name, rest = " ".join(arguments[:words]), arguments[words:]
    is_default = name in DEFAULTS and rest and rest[0] not in ("-h", "--help") and not _is_mistyped(name, rest[0])
    return DEFAULTS[name] if is_default else name, rest


def sentence(error: BaseException) -> str | None:
    """An error as one sentence for the person at the terminal; None where it is our fault and not theirs."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, ModuleNotFoundError):
        from llmfast.commands.doctor import optional_libraries

        extra = next((each.extra for each in optional_libraries() if each.module == error.name), None)
        return extra and f"this needs {error.name}, which is not installed: pip install 'llmfast[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return f"{error.filename}: {reason}" if error.filename is not None else reason
    return " ".join(str(error).split()) or type(error).__name__


def _not_a_command(name: str, commands: list[str]) -> str:
    nearest = difflib.get_close_matches(name, commands, n=1)
    return f"{name} is not a command; " + (f"did you mean {nearest[0]}?" if nearest else "see llmfast --help")


def _is_mistyped(group: str, word: str) -> bool:
    """Whether the word after a group is nearly one of its commands, and not a path."""
    commands = [command.removeprefix(f"{group} ") for command in COMMANDS if command.startswith(f"{group} ")]
    return not Path(word).exists() and bool(difflib.get_close_matches(word, commands, n=1))


def _list_commands(group: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 3))
    for name, command in COMMANDS.items():
        if name.startswith(group):
            table.add_row(Text(f"  {name}", "bold cyan"), command.help)
    console = Console(highlight=False, soft_wrap=False)
    if not group:
        console.print("[bold]llmfast[/bold] trains, studies and runs language models: one command a step.\n")
    console.print(f"usage: llmfast {group or 'COMMAND'} {'COMMAND ' if group else ''}[dim]...[/dim]\n")
    console.print(table)
    console.print("\nllmfast COMMAND --help lists a command's options; with --debug, an error shows its traceback.")


def _parsed(function: Callable[..., None], prog: str, arguments: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, positional and named, that a command line stands for."""
    import tyro

    with contextlib.nullcontext() if _among_processes() is None else _printed_once():
        arguments, tables = _tables(function, arguments)
        face = _command_line_face(function, arguments, tables)
        positional, named = tyro.cli(
            face,
            prog=prog,
            args=_with_flags(arguments, face),
            use_underscores=True,  # options are spelled as the Python arguments and the YAML settings are
            config=(
                tyro.conf.PositionalRequiredArgs,
                tyro.conf.PositionalMetavarFromFieldName,
                tyro.conf.DisallowNone,
                tyro.conf.HelptextFromCommentsOff,
                tyro.conf.SuppressFixed,  # parameters for Python callers only, such as a stream to write to
            ),
        )
    _check_local([*positional, *named.values()])
    return positional, named


def _tables(function: Callable[..., None], arguments: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The arguments without those that give a whole table of the configuration (``--rewards exact 1 brevity 0.1``), and
    these tables by name. The parser itself has options for those names alone that a table already holds.

    Raises:
        ValueError: a name without a value.
    """
    cls = None
    if "config" in inspect.signature(function).parameters:
        cls = _dataclass_in(typing.get_type_hints(function)["config"]) or _config_of_task(arguments)
    hints = typing.get_type_hints(cls) if cls else {}
    options = {f"--{name}": name for name, hint in hints.items() if typing.get_origin(hint) is dict}
    rest: list[str] = []
    tables: dict[str, dict[str, str]] = {}
    place = 0
    while place < len(arguments):
        word, place = arguments[place], place + 1
        if word not in options:
            rest.append(word)
            continue
        first = place
        while place < len(arguments) and not arguments[place].startswith("--"):
            place += 1
        names, values = arguments[first:place:2], arguments[first + 1 : place : 2]
        if not names or len(names) != len(values):
            said = " ".join(arguments[first:place]) or "nothing"
            raise ValueError(f"{word} takes names, each with its value after it, got {said}")
        tables[options[word]] = dict(zip(names, values, strict=True))
    return rest, tables


def _with_flags(arguments: list[str], face: Callable[..., Any]) -> list[str]:
    """``--training.compile=False`` and ``--training.compile False`` as the flag that they mean."""
    flags = _flags(face.__signature__)
    found: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals and found and found[-1] in flags and argument.lower() in ("true", "false"):
            name, value = found.pop(), argument
        if name in flags and value.lower() in ("true", "false"):
            found += flags[name][value.lower() == "true"]
        else:
            found.append(argument)
    return found


def _flags(signature: inspect.Signature) -> dict[str, tuple[list[str], list[str]]]:
    """What false and true are, of each option that is one or the other."""
    found = {}
    for name, parameter in signature.parameters.items():
        default = parameter.default
        if dataclasses.is_dataclass(default):
            prefix = "" if name == "config" else f"{name}."
            found |= {f"--{prefix}{leaf}": _pair(prefix + leaf) for leaf in _booleans(default)}
        elif isinstance(default, bool):
            found[f"--{name}"] = _pair(name) if default else ([], [f"--{name}"])
    return found


def _pair(name: str) -> tuple[list[str], list[str]]:
    section, dot, leaf = name.rpartition(".")
    return [f"--{section}{dot}no_{leaf}"], [f"--{name}"]


def _booleans(config: Any, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names += _booleans(value, f"{prefix}{field.name}.")
        elif isinstance(value, bool):
            names.append(prefix + field.name)
    return names


def _check_local(values: list[Any]) -> None:
    """Check that no path is an address, which would become a local folder of that name.

    Raises:
        ValueError: one is.
    """
    for value in values:
        if isinstance(value, Path) and re.match(r"[a-z][a-z0-9+.-]+:/", str(value)) and not value.exists():
            address = str(value).replace(":/", "://", 1)
            raise ValueError(f"{address} is not a folder of this machine: llmfast copy brings it here, or there")


@contextlib.contextmanager
def _printed_once() -> Iterator[None]:
    """What is printed before an exit, by the first of several processes: torchrun may end the others at once."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stdout(message), contextlib.redirect_stderr(message):
            yield
    except SystemExit:
        if _among_processes().is_first_to_fail(message.getvalue()):
            print(message.getvalue(), end="", file=sys.stderr)
        raise


def _command_line_face(
    function: Callable[..., None], arguments: list[str], tables: dict[str, dict[str, str]]
) -> Callable[..., tuple[tuple, dict]]:
    """The function as tyro should see it: empty defaults not mentioned, and ``config`` opened up, with the ``tables``
    that were given. It returns what the function is to be called with."""
    from tyro.conf import FlagCreatePairsOff, arg

    from llmfast.config import unfilled

    hints = typing.get_type_hints(function, include_extras=True)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        hint, default = hints[parameter.name], parameter.default
        if dataclasses.is_dataclass(default):
            parameters.append(parameter.replace(annotation=hint, default=unfilled(default)))
        elif parameter.name == "config" and (cls := _dataclass_in(hint) or _config_of_task(arguments)):
            file = arg(name="config", help="YAML file with the values to start from.", help_behavior_hint="")
            start = _starting_values(cls, arguments)
            _set_tables(start, tables)
            parameters.append(_option("config_file", Annotated[Path | None, file], None))
            parameters.append(_option("config", Annotated[cls, arg(name="")], start))
        elif default is False:
            flag = FlagCreatePairsOff[Annotated[hint, arg(help_behavior_hint="")]]
            parameters.append(parameter.replace(annotation=flag))
        elif default is None or default in ("", ()):
            parameters.append(parameter.replace(annotation=Annotated[hint, arg(help_behavior_hint="")]))
        else:
            parameters.append(parameter.replace(annotation=hint))

    @functools.wraps(function)
    def face(*positional: Any, config_file: Path | None = None, **named: Any) -> tuple[tuple, dict]:
        return positional, named

    del face.__wrapped__
    face.__signature__ = inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))
    face.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return face


def _set_tables(start: Any, tables: dict[str, dict[str, str]]) -> None:
    """Set tables of a configuration.

    Raises:
        ValueError: names or values that cannot be.
    """
    from llmfast.config import parse_yaml, with_settings

    for name, table in tables.items():
        values = {key: parse_yaml(value) for key, value in table.items()}
        setattr(start, name, getattr(with_settings(type(start)(), {name: values}), name))


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a type is, or is or None."""
    return next(filter(dataclasses.is_dataclass, typing.get_args(hint) or [hint]), None)


def _config_of_task(arguments: list[str]) -> type:
    """The configuration of the task that ``--task`` names, or of pretraining."""
    from llmfast.commands.tasks import TASKS, task_named

    name = _value_of("--task", arguments)
    return task_named(name if name in TASKS else "train").config_class


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The value of an option that decides which other ones there are, read before them."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, nargs="?", dest="value")
    return parser.parse_known_args(arguments)[0].value


def _starting_values(cls: type, arguments: list[str]) -> Any:
    """The configuration that ``--config`` names, or that of a run to resume with what ``--config`` says of it: read
    first because it sets the defaults."""
    from llmfast import config

    file = _value_of("--config", arguments)
    run = _value_of("--resume", arguments)
    run = _value_of("--out", arguments) if run == "auto" else run
    if run and (saved := Path(run) / "config.yaml").exists():
        with contextlib.suppress(ValueError):  # a damaged file, or another task's: the command says so
            return config.load_over(cls, saved, file)
    return config.load_unfilled(cls, file) if file else config.unfilled(cls())


if __name__ == "__main__":
    sys.exit(main())
