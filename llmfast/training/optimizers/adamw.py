"""AdamW on Triton kernels: a step is a few launches, bfloat16 parameters lose nothing to rounding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from llmfast.kernels import adamw_
from llmfast.training.distribution.sharding import local, norm

Rounding = Literal["stochastic", "nearest", "masters"]


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` (Loshchilov and Hutter 2019), of all parameters in a few launches.

    State and ``state_dict`` are those of ``torch.optim.AdamW``, and either loads what the other saved; but moments are
    float32 whatever the parameters are, and stay so when they are loaded. In float32 on a CPU it is
    ``torch.optim.AdamW(fused=True)`` to the bit. Nothing waits for the device, and a CUDA graph can hold a step if
    ``lr`` is a tensor. ``torch.amp.GradScaler`` leaves its unscaling to ``step``, which does it in passing.

    Args:
        params: as for ``torch.optim.AdamW``.
        lr: learning rate; a tensor on the parameters' device is read there.
        betas: how much the running means of gradient and squared gradient keep.
        eps: added to the root of the second.
        weight_decay: the share of itself that a parameter loses, times lr.
        maximize: go uphill.
        rounding: of bfloat16 parameters. "stochastic" keeps the mean of updates smaller than their last bit; "nearest"
            loses them, as torch does; "masters" keeps float32 copies among the state.
        seed: of the stochastic rounding.
        clip_norm: scale the gradients of all parameters together to at most this norm, without a pass of its own. Those
            that are DTensors may be divided in different ways; the norm is of all parts in all processes.

    Raises:
        ValueError: a setting out of its range.
        RuntimeError: parameters that are not floating-point.

    Example::

        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        >>> optimizer = AdamW([weight], lr=0.1, weight_decay=0.0)
        >>> weight.float().square().sum().backward()
        >>> optimizer.step()
        >>> bool((weight < 1).all()), optimizer.state[weight]["exp_avg"].dtype
        (True, torch.float32)
    """

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        clip_norm: float | None = None,
    ):
        check_rounding(rounding)
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize, fused=True)
        self.rounding, self.seed, self.clip_norm = rounding, seed, clip_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient; returns what ``closure`` does."""
        loss = call(closure)
        scale, found_inf = gradient_scale(self)
        for stream, (group, parameters) in enumerate(alike(self)):
            if group["amsgrad"]:
                raise ValueError("amsgrad is not supported; use torch.optim.AdamW for it")
            states = [self._state_of(parameter) for parameter in parameters]
            adamw_(
                [local(parameter) for parameter in parameters],
                [local(parameter.grad) for parameter in parameters],
                *([local(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq", "step")),
                **update_settings(self, group, parameters[0].dtype, stream),
                maximize=group["maximize"],
                masters=[local(state["master"]) for state in states] if "master" in states[0] else None,
                scale=scale,
                found_inf=found_inf,
            )
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=wide)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=wide)
        add_master(state, parameter, self.rounding)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what this or ``torch.optim.AdamW`` saved.

        Raises:
            ValueError: groups that do not fit the parameters, or the state of another optimizer.
        """
        for saved in state_dict["state"].values():
            if "exp_avg_sq" not in saved:
                raise ValueError(f"the state has {', '.join(saved)} and is not an AdamW state")
        super().load_state_dict(state_dict)  # makes the state as narrow as the parameters
        for parameter, saved in saved_states(self, state_dict):
            state = self.state[parameter]
            for name in ("exp_avg", "exp_avg_sq", "master"):
                if name in saved:
                    state[name] = wide_copy(saved[name], parameter)
            state["step"] = as_step(saved["step"], parameter)


# --- what both widths of moments share -----------------------------------------------------------------------------


def check_rounding(rounding: str) -> None:
    if rounding not in ("stochastic", "nearest", "masters"):
        raise ValueError(f"rounding is one of stochastic, nearest, masters, got {rounding!r}")


def call(closure: Callable[[], Tensor] | None) -> Tensor | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def alike(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict, list[Tensor]]]:
    """Lists of parameters with gradients, each with its group: parameters of a list share group, device and dtypes."""
    for group in optimizer.param_groups:
        lists = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                lists[parameter.device, parameter.dtype, parameter.grad.dtype].append(parameter)
        for parameters in lists.values():
            yield group, parameters


def update_settings(optimizer, group: dict, dtype: torch.dtype, stream: int) -> dict:
    """The arguments of an update that follow from the group and the optimizer."""
    stochastic = optimizer.rounding == "stochastic" and dtype == torch.bfloat16
    names = ("lr", "betas", "eps", "weight_decay")
    return {name: group[name] for name in names} | {
        "seed": optimizer.seed if stochastic else None,
        "stream": stream,
    }


def gradient_scale(optimizer) -> tuple[Tensor | None, Tensor | None]:
    """The factor for gradients that undoes ``GradScaler`` and clips, and the scaler's flag for gradients that are not
    finite."""
    loss_scale, found_inf = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    scale = None if loss_scale is None else loss_scale.double().reciprocal().float()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if optimizer.clip_norm is not None and gradients:
        total = norm(gradients, gradients[0].device)
        total = total if scale is None else total * scale
        clip = (optimizer.clip_norm / (total + 1e-6)).clamp(max=1.0)
        scale = clip if scale is None else scale * clip
    return scale, found_inf


def add_master(state: dict[str, Tensor], parameter: Tensor, rounding: Rounding) -> None:
    narrow = parameter.dtype in (torch.bfloat16, torch.float16)
    if rounding == "masters" and narrow and "master" not in state:
        state["master"] = wide_copy(parameter, parameter)


def saved_states(optimizer, state_dict: dict) -> Iterator[tuple[Tensor, dict]]:
    """Each parameter with its saved state, matched by the order of the parameters."""
    numbers = (number for group in state_dict["param_groups"] for number in group["params"])
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in state_dict["state"]:
            yield parameter, state_dict["state"][number]


def wide_copy(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` in float32 (float64 where the parameter is), in the memory order of its parameter."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.empty_like(parameter, dtype=dtype, requires_grad=False).copy_(value.detach())


def as_step(value: Tensor | float, parameter: Tensor) -> Tensor:
    """A count of updates as a tensor on the device of its parameter."""
    value = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
    return value.to(parameter.device, torch.float32).reshape(()).clone()
