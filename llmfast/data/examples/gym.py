"""Tasks of reasoning-gym as records: procedurally made questions whose answers the environment itself can judge."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from typing import Any

PREFIX = "gym:"
COUNT, SEED = 1000, 0


def is_gym(source: str) -> bool:
    """Whether a source is an environment and not a path."""
    return source.startswith(PREFIX)


def gym_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of the tasks of ``gym:NAME[:COUNT]``, the same each time; 1,000 of them if no number is given.

    A record has ``question``, ``answer``, and ``gym``, which says which task it is (see ``gym_score``).

    Raises:
        ValueError: no such environment, or a number that is none.
        ModuleNotFoundError: reasoning-gym is not installed (``pip install 'llmfast[gym]'``).
    """
    name, _, number = source.removeprefix(PREFIX).partition(":")
    if number and not (number.isdecimal() and int(number)):
        raise ValueError(f"{source}: {number!r} is no number of tasks; it is written {PREFIX}{name}:{COUNT}")
    count = int(number or COUNT)
    tasks = environment(name, count)
    for place in range(count):
        entry = tasks[place]
        place_of = {"environment": name, "count": count, "index": place}
        yield f"{source}[{place}]", {"question": entry["question"], "answer": entry["answer"], "gym": place_of}


@functools.cache
def environment(name: str, count: int) -> Any:
    """The environment of a name, with so many tasks.

    Raises:
        ValueError: there is none.
        ModuleNotFoundError: reasoning-gym is not installed.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"reasoning-gym has no environment {name!r}{advice}")
    return reasoning_gym.create_dataset(name, size=count, seed=SEED)


def gym_score(answer: str, task: Any) -> float:
    """What an environment says of an answer to a task, from 0 to 1; ``task`` is the ``gym`` of a record.

    Raises:
        ValueError: it is not of such a record.
    """
    if not isinstance(task, dict) or task.keys() != {"environment", "count", "index"}:
        raise ValueError("the reward gym is for sources gym:NAME, with data.answer gym")
    tasks = environment(task["environment"], task["count"])
    return float(tasks.score_answer(answer, tasks[task["index"]]))
