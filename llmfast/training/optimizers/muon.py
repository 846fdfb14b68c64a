"""Muon: the momentum of each matrix, orthogonalized, is its update; equally shaped matrices are worked on together.

A part of a matrix cannot be orthogonalized by itself. Where processes divide matrices, momentum and parameters stay in
parts; each process gets every n-th matrix whole, orthogonalizes it, and sends the others their parts of the update.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llmfast.kernels import newton_schulz
from llmfast.training.distribution.sharding import (
    Sharding,
    gather_in_turn,
    local,
    scatter_in_turn,
    sharding_of,
)

STACK_ELEMENTS = 2**26  # of the matrices worked on together, so that their copies take 0.5 GB at most


class Muon(torch.optim.Muon):
    """``torch.optim.Muon`` (Jordan et al. 2024), of many matrices at a time.

    Arguments, defaults, state and ``state_dict`` are those of ``torch.optim.Muon``, and so is what a learning rate
    means: either loads what the other saved and continues. A learning rate may be a tensor, and nothing waits for the
    device. Parameters that FSDP2 divides (DTensors) get the updates of whole matrices; all
    processes must call ``step``.

    Args:
        params: as for ``torch.optim.Muon``, and so are ``lr`` and ``settings``.
        shardings: how parameters are divided that are not DTensors, such as those of tensor parallelism.

    Raises:
        ValueError: a parameter that is not a matrix, or a setting out of its range.

    Example::

        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(4, 8))
        >>> optimizer = Muon([weight], lr=0.02)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> bool((weight < 1).all())
        True
    """

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        *,
        shardings: Mapping[Tensor, Sharding] | None = None,
        **settings: Any,
    ):
        super().__init__(params, lr, **settings)
        self.shardings = dict(shardings or {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in self._equally_shaped(group["params"]):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        gradients = [local(parameter.grad) for parameter in parameters]
        buffers = [local(self._momentum_buffer(parameter)) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            gradients = torch._foreach_lerp(gradients, buffers, group["momentum"])
        else:
            gradients = buffers
        shardings = [self._sharding(parameter) for parameter in parameters]
        if shardings[0] is None:
            updates = self._updates(gradients, group)
        else:
            updates = self._updates(gather_in_turn(gradients, shardings), group)
            updates = scatter_in_turn(updates, gradients, shardings)
        parts = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parts, updates)

    def _updates(self, matrices: list[Tensor], group: dict) -> list[Tensor]:
        """Updates for equally shaped matrices."""
        if not matrices:
            return []
        update = newton_schulz(
            torch.stack(matrices),
            steps=group["ns_steps"],
            coefficients=group["ns_coefficients"],
            eps=group["eps"],
        )
        update.mul_(-group["lr"] * _rate_factor(group["adjust_lr_fn"], update.shape[1:]))
        return list(update.unbind())

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        return state["momentum_buffer"]

    def _sharding(self, parameter: Tensor) -> Sharding | None:
        if parameter not in self.shardings:
            self.shardings[parameter] = sharding_of(parameter)
        return self.shardings[parameter]

    def _equally_shaped(self, parameters: list[Tensor]) -> Iterator[list[Tensor]]:
        """Lists of parameters with gradients that share whole shape, dtype, device and group of processes."""
        lists = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is not None:
                sharding = self._sharding(parameter)
                part = local(parameter)
                shape = part.shape if sharding is None else sharding.whole_shape(part)
                group = None if sharding is None else sharding.group
                lists[shape, parameter.dtype, parameter.device, group].append(parameter)
        for (shape, _, _, group), alike in lists.items():
            processes = 1 if group is None else group.size()
            together = processes * max(1, STACK_ELEMENTS // max(1, shape.numel()))
            for start in range(0, len(alike), together):
                yield alike[start : start + together]


def _rate_factor(adjustment: str | None, shape: torch.Size) -> float:
    """The factor for the learning rate of a matrix of ``shape``, as in ``torch.optim.Muon``: "original"
    (Jordan) makes tall updates larger; "match_rms_adamw" (Liu et al. 2025, arXiv:2502.16982) gives all updates the size
    of AdamW's."""
    rows, columns = shape
    if adjustment == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
