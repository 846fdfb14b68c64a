"""A task: everything that makes one kind of training different from another, for the one step loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

from llmfast.data.batch import Source
from llmfast.data.shards import Share
from llmfast.evaluation.team import Team
from llmfast.training.objective import Objective

if TYPE_CHECKING:
    from llmfast.tokenizer import Tokenizer

Report = Callable[[str], None]


class Policy(Protocol):
    """The model that is being trained, for those who use it meanwhile: evaluations, samples, rollouts."""

    device: torch.device
    team: Team
    """The processes, to divide an evaluation between them."""

    def inference(self) -> contextlib.AbstractContextManager[nn.Module]:
        """The model without dropout and without gradients."""
        ...

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Matrix products in the precision of the run."""
        ...


class Task(Protocol):
    """What ``Trainer`` and the step loop need to know of a kind of training.

    ``prepare`` and ``open`` are called on the class by a session; the rest on what ``open`` returned.
    """

    config_class: ClassVar[type]
    """The dataclass of ``config``: it has the sections ``training`` and ``parallel``, and what the task adds."""
    command: ClassVar[str]
    """The command that trains it, for messages: ``llmfast COMMAND --resume RUN``."""

    config: Any
    """Everything that decides the run, saved as config.yaml."""
    tokenizer: Tokenizer
    context: int
    """Tokens in a row of full length."""

    @classmethod
    def prepare(cls, config: Any, folder: Path, *, report: Report) -> None:
        """Make what the task reads in ``folder``, once for all processes; nothing if ``config`` names it elsewhere."""
        ...

    @classmethod
    def open(cls, config: Any, folder: Path, *, begins: bool, verify: bool, report: Report) -> Task:
        """The task on what ``prepare`` made; settings that follow from it are filled into ``config``.

        Args:
            config: the configuration of the run.
            folder: where ``prepare`` wrote.
            begins: whether the run is at its first step, so that its weights are drawn or come from ``start``; if not,
                they come from a checkpoint.
            verify: check the files, which one process of each machine does.
            report: is called with a line for each thing to report.
        """
        ...

    def fingerprints(self) -> dict[str, str]:
        """What all processes must have in common, by name."""
        ...

    def memory(self) -> dict[str, float]:
        """Bytes of weights, gradients and optimizer state, which no batch size changes."""
        ...

    def flops_per_token(self) -> float:
        """Floating-point operations of a training step per token."""
        ...

    def objective(self) -> Objective:
        """The model, fresh or as it starts, with its loss; the same in every process."""
        ...

    def base(self) -> str | None:
        """Where the frozen part of the model comes from; None where it is all trained."""
        ...

    def source(self, share: Share, policy: Policy) -> Source:
        """Batches from the start; ``policy`` is for sources that use the model."""
        ...

    def evaluate(self, policy: Policy, *, part: bool = False) -> dict[str, float]:
        """Figures of held-out data, ``loss`` among them; on a small ``part`` of it for evaluations during training."""
        ...

    def sample(self, policy: Policy) -> tuple[str, str] | None:
        """What the model does at this point: an input and its output, to show; None if there is nothing to show."""
        ...

    def units(self, loss: float) -> dict[str, float]:
        """The training loss in other units by name, such as bits/byte; proportional to ``loss``."""
        ...

    def save_assets(self, folder: Path) -> None:
        """Write into a checkpoint what using its model needs besides the tensors: configuration, tokenizer, labels."""
        ...
