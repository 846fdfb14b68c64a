"""``llmfast pipeline``."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfast.commands.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from llmfast.pipeline.recipe import Plan, Step
    from llmfast.pipeline.state import State, Task

# Beside the commands that train, what continues in the folder of --out where it was interrupted.
RESUMABLE = {"sweep", "data prepare"}


def pipeline(
    recipe: Path,
    /,
    *,
    size: str | None = None,
    out: Path | None = None,
    dry_run: bool = False,
    only: tuple[str, ...] = (),
    again: tuple[str, ...] = (),
    set: tuple[str, ...] = (),
) -> None:
    """Run the stages of a recipe in order: those that are done are skipped, an interrupted one is resumed.

    Each stage is one command line. It runs again when its command, a file that it reads, a stage that it needs, or the
    version of llmfast or Python has changed since.

    For example:

        llmfast pipeline recipes/assistant/pipeline.yaml --size quick --dry_run

    Args:
        recipe: YAML file with stages, variables, sizes and results.
        size: One of the recipe's sizes; cpu, or else its first, if left out.
        out: Folder for what the stages make, their logs and results.json; runs/NAME-SIZE if left out.
        dry_run: Check every command line, show which stages would run and why, and what is missing; run none.
        only: Run these stages alone; what they need must be done.
        again: Run these stages, and all that depend on them, though they are done.
        set: Other values for variables of the recipe, as in steps=100.

    Raises:
        ValueError: a recipe that cannot be, a command line with an unknown option, a file or library that a stage needs
            and does not have, or a stage that failed.
        KeyboardInterrupt: stopped by SIGINT, SIGTERM or SIGHUP; the same call resumes.
    """
    from rich.console import Console

    from llmfast.pipeline.recipe import make_plan, name_of, read_recipe, size_of
    from llmfast.pipeline.state import read_state, tasks
    from llmfast.training.run_folder import RunFolder

    console = Console(highlight=False, soft_wrap=True)
    read = read_recipe(recipe)
    size = size_of(read, size)
    out = out or Path("runs") / "-".join(filter(None, [name_of(recipe), size]))
    plan = make_plan(read, recipe, out, size=size, changes=_changes(set))
    _check_names(plan, only, again)
    if dry_run:
        found = tasks(plan, read_state(out, plan.name), again)
        calls = _check_commands(plan.steps)
        _show(found, console)
        for missing in _missing(plan.steps, calls, out):
            console.print(f"missing: {missing}", markup=False)
        return
    if not out.exists():
        _check(plan.steps, out, only)
    out.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(out)
    folder.lock()
    try:
        state = read_state(out, plan.name)
        found = tasks(plan, state, again)
        _check([task.step for task in found if task.reason], out, only)
        _run(plan, found, state, out, only, console)
    finally:
        folder.unlock()


def _check(steps: list[Step], out: Path, only: tuple[str, ...]) -> None:
    """Check that stages can be called, and that they have what they need.

    Raises:
        ValueError: one cannot, or has not; names the stage.
    """
    chosen = [step for step in steps if not only or step.name in only]
    if missing := next(_missing(chosen, _check_commands(chosen), out), None):
        raise ValueError(missing)


def _changes(given: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``--set``, read as YAML reads them.

    Raises:
        ValueError: one is not NAME=VALUE.
    """
    from llmfast.config import parse_yaml

    changes = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"set is {each!r}: write NAME=VALUE, as in steps=100")
        try:
            changes[name] = parse_yaml(value)
        except ValueError:
            raise ValueError(f"set is {each!r}: its value is no YAML; put it in quotes of YAML's own") from None
    return changes


def _check_names(plan: Plan, only: tuple[str, ...], again: tuple[str, ...]) -> None:
    names = [step.name for step in plan.steps]
    for option, given in (("only", only), ("again", again)):
        for name in given:
            if name not in names:
                raise ValueError(f"{option} is {name!r}, which is not a stage; there are {', '.join(names)}")


def _check_commands(steps: list[Step]) -> dict[str, dict[str, Any]]:
    """What the command of each stage is called with, by name; nothing for one that is a script.

    Raises:
        ValueError: a command line that cannot be called; names the stage.
    """
    from llmfast.cli import parse, sentence
    from llmfast.pipeline.running import SCRIPT

    calls: dict[str, dict[str, Any]] = {}
    for step in steps:
        calls[step.name] = {}
        if step.words[0] == SCRIPT:
            continue
        message = io.StringIO()
        try:
            with contextlib.redirect_stdout(message), contextlib.redirect_stderr(message):
                # What an earlier run of other settings has left there is removed first.
                _, calls[step.name] = parse(step.words)
        except (ValueError, OSError) as error:
            raise ValueError(f"stage {step.name}: {sentence(error)}") from None
        except SystemExit:
            print(message.getvalue(), file=sys.stderr)
            raise ValueError(f"stage {step.name} cannot be called: {_shown(step)}") from None
    return calls


def _missing(steps: list[Step], calls: dict[str, dict[str, Any]], out: Path) -> Iterator[str]:
    """What stages need that is not there and that no stage makes, a sentence each."""
    from llmfast.cli import sentence
    from llmfast.commands.stage_needs import check_stage

    for step in steps:
        try:
            check_stage(step, calls[step.name], out)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            if (reason := sentence(error)) is None:
                raise
            yield f"stage {step.name}: {reason}"


def _resumes(task: Task) -> bool:
    """Whether the command of a stage resumes in the folder that an interruption left."""
    from llmfast.cli import command_of

    name, _ = command_of(task.step.words)
    return name in TASKS or name in RESUMABLE


def _words(step: Step) -> list[str]:
    """The words of a stage's command: one that trains begins a run, or resumes it where it was interrupted."""
    words = step.words
    return [*words, "--resume", "auto"] if words[0] in TASKS and "--out" in words else words


def _shown(step: Step) -> str:
    """The command line of a stage, to be copied into a shell."""
    from llmfast.pipeline.running import SCRIPT

    words, processes = _words(step), step.processes
    if processes > 1:
        program = words[1:] if words[0] == SCRIPT else ["-m", "llmfast.cli", *words]
        return shlex.join(["torchrun", "--standalone", "--nproc-per-node", str(processes), *program])
    return shlex.join(words if words[0] == SCRIPT else ["llmfast", *words])


def _show(found: list[Task], console: Console) -> None:
    for task in found:
        status = f"runs: {task.reason}" if task.reason else "done"
        console.print(f"{task.step.name:<20}{status}\n  $ {_shown(task.step)}", markup=False)


def _run(plan: Plan, found: list[Task], state: State, out: Path, only: tuple[str, ...], console: Console) -> None:
    from llmfast.pipeline.results import RESULTS_FILE, write_results
    from llmfast.pipeline.running import run_task
    from llmfast.training.monitoring.display import clock

    waiting = {task.step.name for task in found if task.reason}
    for number, task in enumerate(found, 1):
        name, step = task.step.name, task.step
        heading = f"stage {number} of {len(found)}  {name}"
        if only and name not in only:
            continue
        if not task.reason:
            console.print(f"{heading}: done, in {clock(state.stages[name].seconds)}")
            continue
        if missing := [each for each in step.needs if each in waiting]:
            raise ValueError(f"stage {name} needs {', '.join(missing)}, which is not done")
        console.print(f"\n{heading}: {task.reason}\n$ {_shown(step)}", markup=False)
        run_task(task, state, out, words=_words(step), resumes=_resumes(task), output=console.file)
        waiting.discard(name)
        console.print(f"{heading}: done, in {clock(state.stages[name].seconds)}")
    if waiting:
        console.print(f"\nnot done    {', '.join(each for each in waiting)}")
        return
    content = write_results(plan, state, out)
    console.print(f"\nsaved in    {out}: {RESULTS_FILE} with {len(content['results'])} results")
