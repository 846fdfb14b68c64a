"""The optimizers by the names that ``training.optimizer`` takes: the one place to add another. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from llmfast.training.config import TrainingConfig
    from llmfast.training.distribution.sharding import Sharding

OptimizerName = Literal["adamw", "adamw8bit", "muon"]


@dataclass(frozen=True)
class Choice:
    """What a name stands for."""

    rest: Callable[[list[dict], TrainingConfig], Optimizer]
    """Makes the optimizer of groups of parameters."""
    state_bytes: float
    """Bytes of its state per parameter."""
    matrices: Callable[[list[dict], TrainingConfig, dict[Tensor, Sharding]], Optimizer] | None = None
    """Makes the optimizer of groups of the matrices inside blocks, where they have one of their own."""
    matrix_state_bytes: float | None = None
    """Bytes of its state per parameter."""


def _adamw(groups: list[dict], config: TrainingConfig) -> Optimizer:
    from llmfast.training.optimizers.adamw import AdamW

    return AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), seed=config.seed)


def _adamw_8bit(groups: list[dict], config: TrainingConfig) -> Optimizer:
    from llmfast.training.optimizers.adamw_8bit import AdamW8bit

    return AdamW8bit(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), seed=config.seed)


def _muon(groups: list[dict], config: TrainingConfig, shardings: dict[Tensor, Sharding]) -> Optimizer:
    from llmfast.training.optimizers.muon import Muon

    rate, decay = config.matrix_learning_rate, config.weight_decay
    return Muon(groups, lr=rate, weight_decay=decay, shardings=shardings)


# Two float32 moments; two bytes with a float32 scale for each 256 of them; one float32 momentum.
_ADAMW, _ADAMW_8BIT, _MUON = 8.0, 2.0 + 2 * 4 / 256, 4.0
OPTIMIZERS = {
    "adamw": Choice(_adamw, _ADAMW),
    "adamw8bit": Choice(_adamw_8bit, _ADAMW_8BIT),
    "muon": Choice(_adamw, _ADAMW, matrices=_muon, matrix_state_bytes=_MUON),
}
assert tuple(OPTIMIZERS) == get_args(OptimizerName)
