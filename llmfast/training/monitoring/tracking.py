"""Where a run's log goes besides ``log.jsonl``: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

import hashlib
import importlib
import os
from typing import Any, NamedTuple, Protocol

from llmfast.config import to_dict
from llmfast.training.run_folder import RunFolder

PROJECT = "llmfast"


class Labels(NamedTuple):
    """How a run is filed at a tracker."""

    project: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


class Tracker(Protocol):
    def log(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard, for ``tensorboard --logdir``."""

    def __init__(self, run: RunFolder, config: Any, step: int, labels: Labels):
        from torch.utils.tensorboard import SummaryWriter

        # Drops what was logged after the checkpoint that this process resumes from.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases in RUN/wandb; without network with WANDB_MODE=offline, and ``wandb sync`` later."""

    def __init__(self, run: RunFolder, config: Any, step: int, labels: Labels):
        import wandb

        self._run = wandb.init(
            project=labels.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            group=labels.group,
            tags=labels.tags or None,
            name=run.folder.name,
            id=_identity(run),
            resume="allow",
            dir=str(run.folder),
            config=to_dict(config),
        )

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, kept on this machine; ``trackio show`` draws it. It has no tags."""

    def __init__(self, run: RunFolder, config: Any, step: int, labels: Labels):
        import trackio

        self._trackio = trackio
        trackio.init(
            project=labels.project or PROJECT,
            group=labels.group,
            name=f"{run.folder.name}-{_identity(run)}",
            config=to_dict(config),
            resume="allow",
        )

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._trackio.log(figures, step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


class Later:
    """A tracker that is given nothing up to a step: it has that from before the run was killed, and would repeat it."""

    def __init__(self, tracker: Tracker, step: int):
        self.tracker, self.step = tracker, step

    def log(self, step: int, figures: dict[str, float]) -> None:
        if step > self.step:
            self.tracker.log(step, figures)

    def close(self) -> None:
        self.tracker.close()


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that the libraries of trackers are installed.

    Raises:
        ModuleNotFoundError: one is not; names it.
    """
    for name in names:
        importlib.import_module(name)


def open_trackers(
    names: tuple[str, ...], run: RunFolder, config: Any, *, step: int, logged: int, labels: Labels
) -> list[Tracker]:
    """The trackers by name, for a run that resumes from ``step``.

    Args:
        names: of ``TRACKERS``.
        run: the run.
        config: what they show as its configuration.
        step: from where it resumes.
        logged: the last step that it had logged before; TensorBoard forgets what was after ``step``, the others cannot.
        labels: how the run is filed.

    Raises:
        ModuleNotFoundError: the library of one is not installed.
        ValueError: it is, but cannot be used: it lacks something itself, or wants an account.
    """
    opened = {name: _open(name, run, config, step, labels) for name in names}
    return [each if name == "tensorboard" else Later(each, logged) for name, each in opened.items()]


def _open(name: str, run: RunFolder, config: Any, step: int, labels: Labels) -> Tracker:
    try:
        return TRACKERS[name](run, config, step, labels)
    except Exception as error:  # each library raises errors of its own
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise
        offline = "; WANDB_MODE=offline needs no account" if name == "wandb" else ""
        raise ValueError(f"training.track {name} cannot be used: {error}{offline}") from error


def _identity(run: RunFolder) -> str:
    """The same for every process that resumes a run."""
    return hashlib.sha256(str(run.folder.absolute()).encode()).hexdigest()[:12]
