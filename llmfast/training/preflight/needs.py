"""What a run needs of this machine, checked before data is read, a folder is made, or anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmfast.data.available import check_sources
from llmfast.models.size import experts_share
from llmfast.remote import check_address
from llmfast.training.distribution.mesh import check_division
from llmfast.training.distribution.world import World
from llmfast.training.monitoring.evaluations import named_evaluation
from llmfast.training.monitoring.tracking import check_trackers
from llmfast.training.preflight.hardware import choose_device
from llmfast.training.preflight.limits import check_batch_size, check_memory
from llmfast.training.preflight.memory import lasting_memory

MODELS = ("start", "teacher")
"""Settings that name a model."""
BYTES = 256
"""The smallest vocabulary: one token for each byte."""


def check_needs(config: Any, world: World, *, will_exist: Callable[[Path], bool] = lambda path: False) -> None:
    """Check all that is known before data is prepared and a model is built.

    Args:
        config: the configuration of a task.
        world: the processes of the run.
        will_exist: whether a path is made before the run, so that it may be absent now.

    Raises:
        ValueError: a file, folder, GPU or memory that there is not, or processes that cannot divide the work so.
        ModuleNotFoundError: a library that the run needs is not installed.
    """
    training = config.training
    check_division(config.parallel, world)
    device = choose_device(training.device)
    check_batch_size(training, world.size // config.parallel.tensor)
    check_watching(training)
    prepared = getattr(config.data, "prepared", None)
    for setting, path in {"data.prepared": prepared, **{name: getattr(config, name, None) for name in MODELS}}.items():
        if path is not None and not will_exist(Path(path)) and not Path(path).exists():
            raise ValueError(f"{setting}: {path} does not exist")
    if prepared is None:
        check_sources(config.data.sources, will_exist=will_exist)
    if config.start is None and getattr(config, "adapter", "none") == "none":
        smallest = dataclasses.replace(config.model, vocab_size=BYTES)
        memory = lasting_memory(smallest, training.optimizer)
        check_memory(memory, config.parallel, world, device, experts=experts_share(smallest))


def check_watching(training: Any) -> None:
    """Check what a run needs besides its data to be watched and copied.

    Raises:
        ValueError: an evaluation that does not exist, or an address that cannot be opened.
        ModuleNotFoundError: the library of a tracker is not installed.
    """
    check_trackers(training.track)
    for name in training.evaluations:
        named_evaluation(name)
    if training.copy_to is not None:
        check_address(training.copy_to)
