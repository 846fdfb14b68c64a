"""What a run minimizes: a module around the model whose forward pass gives a mean loss and figures to watch."""

from __future__ import annotations

import abc
import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmfast.data.batch import Batch
from llmfast.models.decoder import Decoder
from llmfast.models.experts import Balancing
from llmfast.training.distribution.world import World


class Ratio(NamedTuple):
    """A figure with a denominator of its own: both are summed over parts and processes, then divided."""

    total: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


class Maximum(NamedTuple):
    """A figure of which the largest of all parts and processes is meant, such as the largest log-ratio."""

    value: Tensor


Figure = Tensor | Ratio | Maximum
"""A scalar tensor is a mean over what the loss is a mean over, and counts as the loss does."""


class Loss(NamedTuple):
    """What an objective says of one part of a batch."""

    mean: Tensor
    """The mean over ``Objective.weight`` items, a scalar; 0 where there are none."""
    figures: dict[str, Figure] = {}  # noqa: RUF012 (never written to)
    """Figures to log, show, track and plot, the same names in every part; detached from the graph."""
    added: dict[str, Tensor] = {}  # noqa: RUF012 (never written to)
    """Losses that are trained beside the mean and are no part of it, by the name of their figure: each is this part's
    summand of a loss of the whole batch, and counts as it is."""


class Objective(nn.Module, abc.ABC):
    """The model with what it is trained for. Subclasses define ``weight`` and ``forward``.

    Everything that is trained is in ``model``: its tensors alone go into checkpoints, and processes divide it. Other
    modules of an objective, such as the reference of DPO, stay as they are and must be frozen. A batch is worked
    through in parts and by several processes; the loss of each part counts by ``weight(part)`` over the sum of all, so
    that the gradient is that of the whole batch, whatever is counted.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.routing: dict[str, Tensor] = {}
        """Of the last step, by layer of a mixture of experts and summed over all processes: ``load`` (layers, X), the
        share of the choices that each expert got, and ``violation`` (layers,), the busiest expert's load over the mean
        load, less 1."""

    @abc.abstractmethod
    def weight(self, batch: Batch) -> Tensor:
        """How many items the loss of ``batch`` is a mean over (targets, pairs, sequences, ...), a scalar."""

    @abc.abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The mean loss of ``batch``, and figures."""

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Is entered around the forward and the backward pass of a batch, which computes activations again perhaps."""
        return contextlib.nullcontext()

    def tokens(self, batch: Batch) -> int:
        """Tokens that pass the model for this batch, for the speed that is shown."""
        return batch.tokens.numel()

    def is_spike(self, loss: float, usual: float, factor: float) -> bool:
        """Whether ``loss`` is out of line with ``usual``, the median of recent losses, by ``training.spike``.

        The ratio means something for losses that are never negative; an objective of another kind overrides this.
        """
        return loss > factor * usual

    def after_step(self, applied: bool) -> dict[str, float]:
        """Called after each step, ``applied`` or skipped; returns figures of the step as a whole.

        The routers of a mixture of experts are balanced here, and their statistics over all processes returned.
        """
        figures: dict[str, float] = {}
        for decoder in decoders(self.model):
            sum_over_processes(decoder.expert_counts)
            if statistics := decoder.router_statistics():
                figures |= _routing_figures(statistics)
                self.routing = {"load": statistics["load"], "violation": statistics["max_violation"]}
            if applied:
                decoder.balance_experts()
            decoder.expert_counts.zero_()
        return figures


def balancing_parts(balancing: Balancing | None) -> dict[str, Tensor]:
    """What a mixture of experts adds to the loss, as ``Loss.added``."""
    return {} if balancing is None else {"load_balancing_loss": balancing.load, "router_z_loss": balancing.z}


def sum_over_processes(counts: Tensor) -> None:
    """Replace a tensor by its sum over all processes."""
    if len(counts) and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)


def decoders(model: nn.Module) -> list[Decoder]:
    """The decoders inside a model (or the model itself), which have settings and state for training."""
    return [module for module in model.modules() if isinstance(module, Decoder)]


def _routing_figures(statistics: dict[str, Tensor]) -> dict[str, float]:
    """The worst layer's imbalance, and the experts without a token in all layers, of this step."""
    return {
        "expert_max_violation": statistics["max_violation"].max().item(),
        "experts_unused": statistics["unused"].sum().item(),
    }


class Figures:
    """The figures of one step, collected from the parts of a batch."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, figures: dict[str, Figure], share: Tensor) -> None:
        """Those of one part, whose loss counts by ``share``."""
        for name, figure in figures.items():
            if isinstance(figure, Maximum):
                value = figure.value.detach().double()
                self._maxima[name] = torch.maximum(self._maxima.get(name, value), value)
                continue
            total, count = figure if isinstance(figure, Ratio) else (figure * share, None)
            self._totals[name] = self._totals.get(name, 0) + total.detach().double()
            if count is not None:
                self._counts[name] = self._counts.get(name, 0) + count.detach().double()

    def add_summands(self, losses: dict[str, Tensor]) -> None:
        """Losses of which each part has a summand."""
        for name, loss in losses.items():
            self._totals[name] = self._totals.get(name, 0) + loss.detach().double()

    def over(self, world: World) -> dict[str, float]:
        """The figures of the whole batch, the same in every process."""
        found: dict[str, float] = {}
        if self._totals:
            sums = world.sum(torch.stack([*self._totals.values(), *self._counts.values()])).tolist()
            found = dict(zip(self._totals, sums, strict=False))
            for name, count in zip(self._counts, sums[len(found) :], strict=True):
                found[name] = found[name] / count if count else float("nan")
        if self._maxima:
            found |= zip(self._maxima, world.maximum(torch.stack([*self._maxima.values()])).tolist(), strict=True)
        return found
