"""Products of groups of rows with a matrix of their own: what a mixture of experts is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfast.kernels import is_batch_invariant, linear


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows of group g times ``weight[g]`` transposed, plus ``bias[g]``.

    On a GPU in bfloat16 this is one launch of PyTorch's grouped product, without waiting for the sizes of the groups;
    otherwise, and in batch-invariant mode, a product a group.

    Args:
        x: (N, E), rows sorted by group.
        weight: (X, F, E), a matrix a group. Under autocast both are cast as for ``torch.nn.functional.linear``.
        ends: (X,) int32, behind each group's last row; the last is N. Groups may be empty.
        bias: (X, F), a row a group, in any floating dtype.

    Returns:
        (N, F).
    """
    if bias is not None:
        out = grouped_linear(x, weight, ends)
        group = torch.searchsorted(ends, torch.arange(len(x), device=x.device, dtype=ends.dtype), right=True)
        return out + bias.to(out.dtype)[group]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if is_batch_invariant():
        return torch.cat([linear(rows, matrix) for rows, matrix in zip(_split(x, ends), weight, strict=True)])
    aligned = x.shape[1] % 8 == 0 and weight.shape[1] % 8 == 0  # rows of 16 bytes
    if x.is_cuda and x.dtype == torch.bfloat16 and aligned:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    return _grouped_linear(x, weight, ends)


# An operator, so that torch.compile does not look inside, where the sizes of the groups become Python numbers.
@torch.library.custom_op("llmfast_models::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[1])
    for rows, result, matrix in zip(_split(x, ends), _split(out, ends), weight, strict=True):
        torch.mm(rows, matrix.T, out=result)
    return out


@torch.library.custom_op("llmfast_models::grouped_weight_gradient", mutates_args=())
def _grouped_weight_gradient(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    pairs = zip(_split(grad, ends), _split(x, ends), strict=True)
    return torch.stack([grad_rows.T @ rows for grad_rows, rows in pairs])


def _split(x: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return x.tensor_split(ends[:-1].tolist())


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_grouped_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return grad.new_empty(len(ends), grad.shape[1], x.shape[1])


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, ends = ctx.saved_tensors
    wanted_x, wanted_weight, _ = ctx.needs_input_grad
    return (
        _grouped_linear(grad, weight.transpose(1, 2), ends) if wanted_x else None,
        _grouped_weight_gradient(grad, x, ends) if wanted_weight else None,
        None,
    )


_grouped_linear.register_autograd(_differentiate, setup_context=_save)
