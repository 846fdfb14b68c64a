"""Cross entropy of logits with integer targets.

With z the logits (softcap·tanh(logits / softcap) with a softcap), lse = log Σ_v exp(z[v]), p = exp(z − lse),
t the target's class, w the class weights (1 without weights) and ε the label smoothing, the loss of one token
is

    (1 − ε)·w[t]·(lse − z[t]) + ε/V · Σ_v w[v]·(lse − z[v]) + z_loss·w[t]·lse²

and its derivative by z[v]

    p[v]·((1 − ε)·w[t] + ε/V·Σw + 2·z_loss·w[t]·lse) − [v = t]·(1 − ε)·w[t] − ε/V·w[v].

Forward reads the logits once (online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867) and keeps lse;
backward reads them once and writes the gradient once, never over the logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import use_triton
from .checks import check_floating
from .cross_entropy_kernels import cross_entropy_backward, cross_entropy_forward, reduce_loss
from .gate import GateCase
from .launch import Device, cdiv, contiguous, empty, next_power_of_2, rows_of, run
from .loss_checks import check_options, check_target, finish
from .operator import define
from .reference import loss as definition
from .tuned import tuned

# -------------------------------------------------------------------------------------------- launch choices

TILE = 2048  # elements a program takes at least, so that short rows share one
BLOCK = 4096  # columns a step: two 16-byte reads a thread in flight, in at most 64 registers
WARPS = 8


@dataclass(frozen=True)
class CrossEntropyLaunch:
    """One program takes ``rows`` rows at a time, ``block`` columns at a time."""

    rows: int
    block: int
    warps: int = WARPS


@tuned("cross_entropy", CrossEntropyLaunch)
@lru_cache
def forward_launch(device: Device, vocabulary: int) -> CrossEntropyLaunch:
    block = min(max(next_power_of_2(vocabulary), 64), BLOCK)
    rows = max(1, TILE // block)
    return CrossEntropyLaunch(rows, block)


@tuned("cross_entropy", CrossEntropyLaunch)
@lru_cache
def backward_launch(device: Device, vocabulary: int) -> CrossEntropyLaunch:
    return forward_launch.rule(device, vocabulary)


def unit_of(logits: Tensor) -> int:
    """How many elements the kernels access as one: those of 16 bytes, where rows do not start on 16 bytes but the
    tensor does; 1 where nothing need be done, or can."""
    unit = 16 // logits.element_size()
    return 1 if logits.shape[-1] % unit == 0 or logits.data_ptr() % 16 else unit


# ------------------------------------------------------------------------------------------------ the kernels


class Objective(NamedTuple):
    """What is computed of the logits, as the kernels take it: None for a term that is left out."""

    weight: Tensor | None
    weight_sum: Tensor | None
    ignore_index: int
    label_smoothing: float | None
    z_loss: float | None
    softcap: float | None


def objective(
    weight: Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float | None
) -> Objective:
    weight = None if weight is None else weight.float().contiguous()
    weight_sum = weight.sum() if weight is not None and label_smoothing else None
    return Objective(weight, weight_sum, ignore_index, label_smoothing or None, z_loss or None, softcap)


def forward_rows(
    logits: Tensor,
    target: Tensor,
    chosen: Objective,
    loss: Tensor | None,
    lse: Tensor,
    partials: Tensor | None = None,
) -> None:
    """Fills, for each row of ``logits``, ``loss`` and ``lse``, and for each program its sums ``partials``."""
    logits, rows = rows_of(logits)
    how = forward_launch(Device.of(logits.device), rows.width)
    unit = unit_of(logits)
    run(
        cross_entropy_forward,
        (cdiv(rows.count, how.rows),),
        logits,
        *(logits, target.contiguous(), chosen.weight, chosen.weight_sum, loss, lse, partials),
        *(rows.count, rows.width, *rows.strides, chosen.ignore_index),
        *(chosen.label_smoothing, chosen.z_loss, chosen.softcap),
        STRIDED=rows.strided,
        ROWS=how.rows,
        BLOCK=how.block,
        UNIT=unit,
        num_warps=how.warps,
    )


def backward_rows(
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    scale: Tensor | None,
    logits: Tensor,
    target: Tensor,
    chosen: Objective,
    lse: Tensor,
    grad_logits: Tensor,
    gradient_filter: float | None = None,
) -> None:
    """Fills ``grad_logits``, contiguous rows, which may be the logits themselves.

    ``grad_loss`` is one number a row, or with ``scale`` one number for all, to be multiplied by ``scale``.
    """
    logits, rows = rows_of(logits)
    how = backward_launch(Device.of(logits.device), rows.width)
    unit = unit_of(logits)
    run(
        cross_entropy_backward,
        (cdiv(rows.count, how.rows), cdiv(rows.width + unit - 1, how.block)),
        logits,
        *(grad_loss.contiguous(), contiguous(grad_lse), scale, logits, target.contiguous()),
        *(chosen.weight, chosen.weight_sum, lse, grad_logits),
        *(rows.count, rows.width, *rows.strides, chosen.ignore_index),
        *(chosen.label_smoothing, chosen.z_loss, chosen.softcap, gradient_filter),
        STRIDED=rows.strided,
        ROWS=how.rows,
        BLOCK=how.block,
        UNIT=unit,
        num_warps=how.warps,
    )


# -------------------------------------------------------------------------------------------------- operators


def _allocate(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    lse = empty(target, torch.float32)
    if reduction == "none":
        return empty(lse), lse, lse.new_empty(0)
    return lse.new_empty(()), lse, lse.new_empty(())


def _run(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    options = (ignore_index, label_smoothing, z_loss, softcap)
    loss, lse, scale = _allocate(logits, target, weight, *options, reduction)
    chosen = objective(weight, *options)
    if reduction == "none":
        forward_rows(logits, target, chosen, loss, lse)
        return loss, lse, scale
    programs = cdiv(target.numel(), forward_launch(Device.of(logits.device), logits.shape[-1]).rows)
    partials = lse.new_empty((2, programs))
    forward_rows(logits, target, chosen, None, lse, partials)
    mean = reduction == "mean"
    run(reduce_loss, (1,), logits, partials, loss, scale, programs, MEAN=mean, BLOCK=4096, num_warps=16)
    return loss, lse, scale


def _allocate_backward(
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    scale: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    return empty(logits)


def _run_backward(
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    scale: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    grad_logits = empty(logits)
    chosen = objective(weight, ignore_index, label_smoothing, z_loss, softcap)
    backward_rows(grad_loss, grad_lse, scale, logits, target, chosen, lse, grad_logits)
    return grad_logits


_OPTIONS = "int ignore_index, float label_smoothing, float z_loss, float? softcap"

_cross_entropy_backward_op = define(
    "cross_entropy_backward(Tensor grad_loss, Tensor? grad_lse, Tensor? scale, Tensor logits, Tensor target, "
    f"Tensor? weight, Tensor lse, {_OPTIONS}) -> Tensor",
    _run_backward,
    _allocate_backward,
)


def _save(ctx, inputs, output) -> None:
    logits, target, weight, *ctx.options, reduction = inputs
    _, lse, scale = output
    ctx.save_for_backward(logits, target, weight, lse, None if reduction == "none" else scale)
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_loss: Tensor | None, grad_lse: Tensor | None, _) -> tuple[Tensor | None, ...]:
    if grad_loss is None and grad_lse is None:
        return (None,) * 8
    logits, target, weight, lse, scale = ctx.saved_tensors
    if grad_loss is None:
        grad_loss = torch.zeros_like(lse if scale is None else scale)
    grad_logits = _cross_entropy_backward_op(
        grad_loss, grad_lse, scale, logits, target, weight, lse, *ctx.options
    )
    return grad_logits, *(None,) * 7


_cross_entropy_op = define(
    f"cross_entropy(Tensor logits, Tensor target, Tensor? weight, {_OPTIONS}, str reduction) "
    "-> (Tensor, Tensor, Tensor)",
    _run,
    _allocate,
    backward=_differentiate,
    save=_save,
)

# -------------------------------------------------------------------------------------------- public function


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross entropy of ``logits`` (..., V) with the class indices ``target`` (...).

    With z = softcap·tanh(logits / softcap) (z = logits without a softcap), lse = log Σ_v exp(z[v]), the
    target's class t, class weights w (1 without weights) and label smoothing ε, the loss of one token is

        (1 − ε)·w[t]·(lse − z[t]) + ε/V · Σ_v w[v]·(lse − z[v]) + z_loss·w[t]·lse²

    The first two terms are those of ``torch.nn.functional.cross_entropy``; the third keeps lse near 0 (PaLM,
    arXiv:2204.02311, section 5). ``"mean"`` divides the sum by Σ w[t] over the tokens that count; where none
    does, loss and gradients are 0 (PyTorch's are NaN). Everything between the logits and the result, and
    between the logits and their gradient, is float32.

    Args:
        logits: (..., V), any floating dtype; they are never written to.
        target: (...), integers in [0, V), or ``ignore_index`` for a token that counts nothing. On a GPU the
            loss of a token whose target is neither is NaN; on a CPU it raises IndexError.
        weight: (V,), how much each class counts. It gets no gradient.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for each token's loss (...).
        label_smoothing: ε, between 0 and 1.
        z_loss: the factor of lse²; 1e-4 in PaLM.
        softcap: the bound of the capped logits (Gemma 2, arXiv:2408.00118, section 2); None for no cap.
        return_lse: also return each token's lse (...), 0 where ignored, through which gradients flow, too.

    Returns:
        the loss, float32 (float64 for float64 logits); with ``return_lse`` the pair (loss, lse).

    Raises:
        ValueError: for a target, weight or option that does not fit.

    Example::

        model = torch.nn.Sequential(torch.nn.Embedding(1000, 64), torch.nn.Linear(64, 1000))
        tokens = torch.randint(1000, (4, 128))
        loss = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], z_loss=1e-4)
        loss.backward()
    """
    check_floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., V) with at least one class, got {tuple(logits.shape)}")
    check_target(target, logits, "logits")
    check_options(logits, logits.shape[-1], "weight", weight, reduction, label_smoothing, softcap)
    options = (ignore_index, label_smoothing, z_loss, softcap)
    if use_triton(logits):
        loss, lse, _ = _cross_entropy_op(logits, target, weight, *options, reduction)
        return (loss, lse) if return_lse else loss
    loss, lse = definition.cross_entropy(logits, target, weight, *options)
    return finish(loss, lse, target, weight, ignore_index, reduction, return_lse)


# ---------------------------------------------------------------------------------------------- compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """Each tile (rows of 512, of 128,256) and each way the rows lie, without options and with all of them."""
    for vocabulary, dtype, everything in (
        (512, torch.bfloat16, False),
        (50257, torch.bfloat16, False),
        (50257, torch.bfloat16, True),
        (128256, torch.bfloat16, False),
        (128256, torch.bfloat16, True),
        (128256, torch.float32, True),
    ):
        name = f"{vocabulary} {str(dtype)[6:]}{', all options, strided' if everything else ''}"
        yield GateCase("cross_entropy", name, partial(_gate_run, vocabulary, dtype, everything))


def _gate_run(vocabulary: int, dtype: torch.dtype, everything: bool) -> None:
    logits = torch.empty(4, 9, vocabulary, dtype=dtype, device="meta")[:, : 8 if everything else 9]
    target = torch.empty(logits.shape[:2], dtype=torch.int64, device="meta")
    weight = torch.empty(vocabulary, device="meta") if everything else None
    options = (-100, 0.1, 1e-4, 30.0) if everything else (-100, 0.0, 0.0, None)
    reduction = "none" if everything else "mean"
    loss, lse, scale = _run(logits, target, weight, *options, reduction)
    per_token = (loss, lse, None) if everything else (loss, None, scale)
    _run_backward(*per_token, logits, target, weight, lse, *options)
