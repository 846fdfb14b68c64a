"""``adamw_`` with both moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861): 2 bytes a parameter in place of 8.

256 moments in a row of memory share their largest magnitude, in float32. Each is stored as the code of its share of
that, in bitsandbytes' dynamic map: seven decades, with most of the codes in the highest, so that the error is at most
0.71 % of the largest magnitude (squares, which need no sign, 0.36 %), and less for what is small. An update decodes,
computes in float32 and encodes again, in one pass. State is bit-compatible with bitsandbytes' ``AdamW8bit``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..frame.backend import use_triton
from ..frame.launch import cdiv
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
from .adamw_ops import adamw_8bit_op
from .adamw_reference import BLOCK, Moments


@torch.no_grad()
def adamw_8bit_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    exp_avg_max: Sequence[Tensor],
    exp_avg_sq_max: Sequence[Tensor],
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
    """``adamw_`` with 8-bit moments, in place (Dettmers et al. 2022, arXiv:2110.02861).

    Args:
        exp_avg, exp_avg_sq: codes of the running means of gradient and squared gradient, uint8 in the memory order of
            their parameters; at the start, zeros. Overwritten.
        exp_avg_max, exp_avg_sq_max: the largest magnitude of each 256 of them, float32 (⌈elements / 256⌉,); at the
            start, zeros. Overwritten.

        All others are those of ``adamw_``.

    Raises:
        ValueError: as ``adamw_``; or maxima of another number.

    Example::

        >>> import torch
        >>> weight, step = torch.ones(300), torch.tensor(0.0)
        >>> codes = [torch.zeros(300, dtype=torch.uint8) for _ in range(2)]
        >>> maxima = [torch.zeros(2) for _ in range(2)]
        >>> state = ([x] for x in (*codes, *maxima, step))
        >>> adamw_8bit_([weight], [torch.ones(300)], *state, lr=0.1, weight_decay=0.0)
        >>> weight[:3]
        tensor([0.9000, 0.9000, 0.9000])
    """
    codes = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    maxima = {"exp_avg_max": exp_avg_max, "exp_avg_sq_max": exp_avg_sq_max}
    check_lists(params, {"grads": grads, **codes, **maxima, "masters": masters, "steps": steps})
    if not params:
        return
    check_dtype("masters", masters, torch.float32)
    for name, tensors in codes.items():
        check_dtype(name, tensors, torch.uint8)
    for name, tensors in maxima.items():
        _check_maxima(name, tensors, params)
    settings = settings_of(*(params, masters, lr, betas, eps, weight_decay, maximize, scale, found_inf, seed, stream))
    flat = flat_parameters(params)
    flat_grads = flat_gradients(grads, params)
    means, squares = (flat_state(name, tensors, params) for name, tensors in codes.items())
    flat_masters = flat_state("masters", masters, params)
    count_step(steps, found_inf)
    state = (flat_grads, means, squares, *map(list, maxima.values()))
    if use_triton(flat[0], flat_grads[0]):
        adamw_8bit_op(flat, *state, flat_masters, list(steps), settings)
    else:
        for i, (param, grad, *moments) in enumerate(zip(flat, *state, strict=True)):
            master = flat_masters[i] if masters else None
            code, largest = Moments(*moments[:2]), Moments(*moments[2:])
            reference.adamw_8bit_(param, grad, code, largest, master, steps[i], i, settings)
    write_back(params, flat)


def _check_maxima(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    check_dtype(name, tensors, torch.float32)
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        wanted = (cdiv(param.numel(), BLOCK),)
        if tensor.shape != wanted or not tensor.is_contiguous():
            raise ValueError(
                f"{name}[{i}] must be contiguous of shape {wanted}, one for each {BLOCK} elements of its parameter, "
                f"got {tuple(tensor.shape)}"
            )
