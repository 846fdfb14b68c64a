"""One AdamW update of a whole list of parameters (Loshchilov and Hutter 2019, arXiv:1711.05101), in few launches.

    g ← scale · g                                  (unscaling and clipping, folded in)
    m ← m + (1 - β₁)(g - m),   v ← v + (1 - β₂)(g² - v)
    p ← (1 - lr · λ) p - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)

Moments are float32, whatever the parameters are. Parameters in bfloat16 have 8 bits, and an update is often less than
half of their last: rounded to nearest, they stop. So they are rounded stochastically, up or down with the
probabilities that keep the mean (Zamirai et al. 2020, arXiv:2010.06192), or copies in float32 (masters) are kept.

One program works on 4,096 elements of one tensor; a launch takes up to 16 tensors, whose pointers are its arguments, so
that there is no table to copy to the device or to keep alive, and a CUDA graph can hold it. Step counts, learning
rate, scale and ``found_inf`` are read on the device.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..frame.backend import use_triton
from . import adamw_reference as reference
from .adamw_arguments import (
    check_dtype,
    check_lists,
    count_step,
    flat_gradients,
    flat_parameters,
    flat_state,
    settings_of,
    write_back,
)
from .adamw_ops import adamw_op
from .adamw_reference import Moments


@torch.no_grad()
def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    maximize: bool = False,
    masters: Sequence[Tensor] | None = None,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | None = None,
    stream: int = 0,
) -> None:
    """One AdamW update in place (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Everything is computed in float32 (float64 where the parameters are, in plain PyTorch). Nothing waits for the
    device, and a CUDA graph can hold the call.

    Args:
        params: tensors of one floating dtype on one device, of any shapes and strides. Overwritten.
        grads: of one floating dtype, each of the shape of its parameter.
        exp_avg, exp_avg_sq: running means of gradient and squared gradient, float32 in the memory order of their
            parameters (as ``torch.zeros_like`` gives). Overwritten.
        steps: updates done before this one, a float32 scalar for each parameter on its device. Increased by 1.
        lr: learning rate; a scalar tensor on the device stays there.
        betas: how much the two running means keep.
        eps: added to the root of the second.
        weight_decay: the share of itself that a parameter loses, times lr.
        maximize: go uphill.
        masters: float32 copies of the parameters, in their memory order, which are updated and then rounded.
        scale: a scalar that gradients are multiplied by, as one over the loss scale times the clipping factor.
        found_inf: a scalar; where it is not 0, nothing changes.
        seed: 64 bits. With it bfloat16 parameters are rounded stochastically, and reproducibly: the random number of an
            element is a function of seed, stream, step, its tensor's place in the list, and its own place.
        stream: tells calls of the same step and seed apart.

    Raises:
        ValueError: lists of different lengths, a tensor that does not fit its parameter, mixed dtypes or devices, a
            stochastic rounding to anything but bfloat16, or both seed and masters.

    Example::

        >>> import torch
        >>> weight, mean, square, step = torch.ones(3), torch.zeros(3), torch.zeros(3), torch.tensor(0.0)
        >>> adamw_([weight], [torch.ones(3)], [mean], [square], [step], lr=0.1, weight_decay=0.0)
        >>> weight
        tensor([0.9000, 0.9000, 0.9000])
    """
    lists = {"grads": grads, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "masters": masters, "steps": steps}
    check_lists(params, lists)
    if not params:
        return
    wide = torch.promote_types(params[0].dtype, torch.float32)
    for name in ("exp_avg", "exp_avg_sq", "masters"):
        check_dtype(name, lists[name], wide)
    settings = settings_of(*(params, masters, lr, betas, eps, weight_decay, maximize, scale, found_inf, seed, stream))
    flat = flat_parameters(params)
    flat_grads = flat_gradients(grads, params)
    means, squares, flat_masters = (
        flat_state(name, lists[name], params) for name in ("exp_avg", "exp_avg_sq", "masters")
    )
    if not use_triton(flat[0], flat_grads[0]) and _is_plain(params, grads, masters, scale, found_inf, seed):
        # Of flat tensors: PyTorch's update pairs elements by their places in memory, whatever the strides.
        hyperparameters = {
            "lr": lr,
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "weight_decay": weight_decay,
        }
        options = {"fused": True, "amsgrad": False, "maximize": maximize, **hyperparameters}
        adamw(flat, flat_grads, means, squares, [], list(steps), **options)
        write_back(params, flat)
        return
    count_step(steps, found_inf)
    if use_triton(flat[0], flat_grads[0]):
        adamw_op(flat, flat_grads, means, squares, flat_masters, list(steps), settings)
    else:
        for i, param in enumerate(flat):
            master = flat_masters[i] if masters else None
            reference.adamw_(param, flat_grads[i], Moments(means[i], squares[i]), master, steps[i], i, settings)
    write_back(params, flat)


def _is_plain(params: Sequence[Tensor], grads: Sequence[Tensor], *options: Any) -> bool:
    """Whether PyTorch's own fused update computes what is asked for, in the same precision: all of one wide dtype."""
    dtypes = {params[0].dtype, grads[0].dtype}
    return all(option is None for option in options) and (dtypes == {torch.float32} or dtypes == {torch.float64})
