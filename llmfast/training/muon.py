"""Muon: the momentum of each matrix, orthogonalised, is its update; equally shaped matrices are worked on together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmfast.kernels import newton_schulz

STACK_ELEMENTS = 2**26  # of the matrices worked on together, so that their copies take 0.5 GB at most


class Muon(torch.optim.Muon):
    """``torch.optim.Muon`` (Jordan et al. 2024), of many matrices at a time.

    Arguments, defaults, state and ``state_dict`` are those of ``torch.optim.Muon``, and so is what a learning rate
    means: either loads what the other saved and goes on. A learning rate may be a tensor, and nothing waits for the
    device.

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

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _equally_shaped(group["params"]):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        gradients = [parameter.grad for parameter in parameters]
        buffers = [self._momentum_buffer(parameter) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            gradients = torch._foreach_lerp(gradients, buffers, group["momentum"])
        else:
            gradients = buffers
        update = newton_schulz(
            torch.stack(gradients),
            steps=group["ns_steps"],
            coefficients=group["ns_coefficients"],
            eps=group["eps"],
        )
        update.mul_(-group["lr"] * _rate_factor(group["adjust_lr_fn"], parameters[0].shape))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, update.unbind())

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        return state["momentum_buffer"]


def _equally_shaped(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Those that have a gradient, in lists of one shape, dtype and device each."""
    groups = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            groups[parameter.shape, parameter.dtype, parameter.device].append(parameter)
    for (shape, *_), alike in groups.items():
        together = max(1, STACK_ELEMENTS // max(1, shape.numel()))
        for start in range(0, len(alike), together):
            yield alike[start : start + together]


def _rate_factor(adjustment: str | None, shape: torch.Size) -> float:
    """What the learning rate is multiplied by for a matrix of ``shape``, as ``torch.optim.Muon`` does: "original"
    (Jordan) makes tall updates larger; "match_rms_adamw" (Liu et al. 2025, arXiv:2502.16982) gives all updates the size
    of AdamW's."""
    rows, columns = shape
    if adjustment == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
