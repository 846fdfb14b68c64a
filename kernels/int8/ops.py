"""The operators of ``int8_linear``: what they are called with, what is launched, and the derivative."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.autocast import without_autocast
from ..frame.dtypes import widen
from ..frame.invariance import is_batch_invariant
from ..frame.launch import Chip, cdiv
from ..frame.operator import define
from ..frame.partials import sum_partials
from ..frame.plan import Plan, planned
from ..frame.rows import evenly_spaced_rows
from ..nf4.launch import few_tokens_launch_for, tile_splits, tiles_launch_for
from ..nf4.products import linear
from . import reference
from .kernels import int8_few_tokens, int8_tiles
from .launch import STEP, strategy


class Int8LinearCall(NamedTuple):
    x: Tensor  # (M, K)
    codes: Tensor  # int8 (N, K)
    scale: Tensor  # (N,)
    bias: Tensor | None  # (N,)
    kernels: bool  # or the definition

    def allocate(self) -> Tensor:
        return self.x.new_empty((self.x.shape[0], self.codes.shape[0]))


class Int8LinearKept(NamedTuple):
    codes: Tensor
    scale: Tensor
    kernels: bool

    @staticmethod
    def fields(call: Int8LinearCall, y: Tensor) -> tuple:
        return call.codes, call.scale, call.kernels


class Int8LinearBackwardCall(NamedTuple):
    grad: Tensor
    kept: Int8LinearKept

    def allocate(self) -> Tensor:
        return self.grad.new_empty((self.grad.shape[0], self.kept.codes.shape[1]))


def _decoded(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """In one pass: what is computed in float32 is rounded as it is stored."""
    return torch.mul(codes, scale[:, None], out=torch.empty(codes.shape, dtype=dtype, device=codes.device))


def forward(call: Int8LinearCall) -> Tensor:
    x, codes, scale, bias, kernels = call
    with without_autocast(x, kernels):
        if not kernels:
            return reference.linear(x, codes, scale, bias)
        how = "workspace" if is_batch_invariant() else strategy(x.shape[0], x.shape[1], x.dtype)
        if how == "workspace":
            return linear(x, _decoded(codes, scale, x.dtype), bias)
    return (by_few_tokens if how == "few tokens" else by_tiles)(x, codes.contiguous(), scale, bias)


def by_few_tokens(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    x, x_stride = evenly_spaced_rows(x)
    tokens, (rows, width) = x.shape[0], codes.shape
    y = x.new_empty((tokens, rows))
    _few_tokens_plan(Chip.of(x.device), tokens, rows, width, x_stride).run(x, x, codes, scale, bias, y)
    return y


@planned
def _few_tokens_plan(chip: Chip, tokens: int, rows: int, width: int, x_stride: int) -> Plan:
    chosen = few_tokens_launch_for("int8", chip, tokens, rows)
    return Plan(
        int8_few_tokens,
        (cdiv(rows, chosen.rows) if tokens else 0,),
        *(tokens, rows, width, x_stride),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        PARTS=chosen.warps,
        STEP=STEP,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )


def by_tiles(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    x, x_stride = evenly_spaced_rows(x)
    tokens, (rows, width) = x.shape[0], codes.shape
    splits, plan = _tiles_plan(Chip.of(x.device), tokens, rows, width, x_stride)
    y = x.new_empty((splits, tokens, rows), dtype=torch.float32 if splits > 1 else x.dtype)
    plan.run(x, x, codes, scale, bias, y)
    return y[0] if splits == 1 else sum_partials(y.view(splits, -1), torch.Size((tokens, rows)), x.dtype)


@planned
def _tiles_plan(chip: Chip, tokens: int, rows: int, width: int, x_stride: int) -> tuple[int, Plan]:
    """In how many parts the width is cut, and the launch."""
    chosen = tiles_launch_for("int8", chip, tokens)
    tiles = cdiv(rows, chosen.rows), cdiv(tokens, chosen.tokens)
    steps = width // STEP
    splits = tile_splits(tiles[0] * tiles[1], steps, chip)
    return splits, Plan(
        int8_tiles,
        (*tiles, splits),
        *(tokens, rows, width, x_stride, cdiv(steps, splits)),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        STEP=STEP,
        num_warps=chosen.warps,
        num_stages=chosen.stages - 1,
    )


def backward(call: Int8LinearBackwardCall) -> Tensor:
    """The gradient of x: computed in the dtype of ``grad`` with the kernels, and at least in float32 without."""
    grad, (codes, scale, kernels) = call
    dtype = grad.dtype if kernels else widen(grad).dtype
    with without_autocast(grad, kernels):
        return (grad.to(dtype) @ _decoded(codes, scale, dtype)).to(grad.dtype)


_backward_op = define("int8_linear_backward", Int8LinearBackwardCall, backward)


def _differentiate(kept: Int8LinearKept, wanted, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = _backward_op(grad, kept) if wanted[0] else None
    grad_bias = None
    if wanted[3]:
        grad_bias = grad.sum(0, dtype=widen(grad.new_empty(0)).dtype).to(grad.dtype)
    return grad_x, None, None, grad_bias


linear_op = define("int8_linear", Int8LinearCall, forward, keeps=Int8LinearKept, backward=_differentiate)
