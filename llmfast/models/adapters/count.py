"""How many parameters a model has, and how many of them are trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from llmfast.kernels import NF4Linear


class ParameterCount(NamedTuple):
    """Numbers of parameters, tied ones counted once and those in 4 bits as the numbers they stand for."""

    trained: int
    all: int

    @property
    def share(self) -> float:
        """That of the trained ones."""
        return self.trained / max(1, self.all)

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.all:,} parameters ({self.share:.3%})"


def count_parameters(model: nn.Module) -> ParameterCount:
    """The parameters of a model, and those with ``requires_grad``.

    >>> count_parameters(nn.Linear(4, 8))
    ParameterCount(trained=40, all=40)
    """
    packed = {id(each.weight): each.layout.numbers for each in model.modules() if isinstance(each, NF4Linear)}
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += packed.get(id(parameter), parameter.numel())
    return ParameterCount(counts[True], sum(counts.values()))
