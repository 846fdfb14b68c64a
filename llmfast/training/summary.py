"""What a run cost and reached, in ``RUN/summary.json``: written beside the checkpoints, read to compare runs.

It is apart from ``log.jsonl``, which two runs of one configuration have in common to the last bit: time and memory are
different every time.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from llmfast.config import from_dict
from llmfast.files import atomic_write
from llmfast.training.preflight.hardware import memory_in_use
from llmfast.training.trainer import Trainer

SUMMARY_FILE = "summary.json"


@dataclass
class Stretch:
    """One process's part of a run, from where it began or was resumed."""

    first_step: int
    """Steps that were done before it."""
    last_step: int
    seconds: float
    """From its first step on, with evaluations and checkpoints."""
    step_seconds: float
    """Of steps alone, without the first one, which compiles."""
    step_tokens: int
    """In the steps that ``step_seconds`` counts."""
    memory: int
    """Peak bytes of the main process on its device."""
    device: str
    processes: int


@dataclass
class Summary:
    """Everything that ``llmfast compare`` shows of a run."""

    command: str
    parameters: int
    """Numbers in the model, those of a frozen base and of 4-bit weights too."""
    trained_parameters: int
    steps: int
    """That the run is to have."""
    stretches: list[Stretch] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)
    """Of the finished run: held-out data, all of it; null where a figure is no number."""

    @property
    def seconds(self) -> float:
        """Time that the run took, in all its parts."""
        return sum(each.seconds for each in self.stretches)

    @property
    def tokens_per_second(self) -> float | None:
        """Of training steps; None where there is only one in each part."""
        seconds = sum(each.step_seconds for each in self.stretches)
        return sum(each.step_tokens for each in self.stretches) / seconds if seconds else None

    @property
    def memory(self) -> int:
        """Peak bytes of the main process."""
        return max((each.memory for each in self.stretches), default=0)


def read_summary(run: Path) -> Summary | None:
    """The summary of a run folder; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return from_dict(Summary, json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{run / SUMMARY_FILE} is damaged: {error}") from None


class SummaryWriter:
    """Keeps the summary of a run, in its main process, while a part of it is trained."""

    def __init__(self, run: Path, trainer: Trainer):
        before = read_summary(run)
        self.file = run / SUMMARY_FILE
        self.trainer = trainer
        # A part whose last steps were lost, when its process was killed, took its time all the same.
        self._earlier = before.stretches if before else []
        self._first_step, self._began = trainer.steps_done, time.perf_counter()
        self._figures = before.figures if before else {}

    def write(self, step_seconds: float, step_tokens: int) -> None:
        """Write down where the run is; the arguments are as in ``Stretch``."""
        trainer = self.trainer
        stretches = list(self._earlier)
        if trainer.steps_done > self._first_step:
            self._figures = {}  # of weights that are no longer
            stretches.append(
                Stretch(
                    self._first_step,
                    trainer.steps_done,
                    time.perf_counter() - self._began,
                    step_seconds,
                    step_tokens,
                    memory_in_use(trainer.device),
                    trainer.device.type,
                    trainer.world.size,
                )
            )
        size = trainer.parameters
        steps = trainer.training.steps
        _write(self.file, Summary(trainer.task.command, size.all, size.trained, steps, stretches, self._figures))


def add_figures(run: Path, figures: dict[str, float]) -> None:
    """Write down what a finished run reaches on held-out data."""
    summary = read_summary(run)
    assert summary is not None, "fit writes it"
    finite = {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}
    _write(run / SUMMARY_FILE, replace(summary, figures=finite))


def _write(file: Path, summary: Summary) -> None:
    atomic_write(file, json.dumps(asdict(summary), indent=2) + "\n")
