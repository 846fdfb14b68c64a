"""A linear layer on a 4-bit weight that gets no gradient, with a low-rank adapter that does.

    y = x · Wᵀ + bias + lora_scale · (x · Aᵀ) · Bᵀ

Three ways, chosen by shape (``strategy``): a kernel that streams the packed weight once, for up to 16 tokens; a
kernel on tiles of a matrix product, decoding as it goes; the whole weight decoded to a workspace, and the BLAS
library. The workspace lives for one product: nothing decoded is kept for the backward pass, which decodes anew.

With G the gradient of y, and U = G · B,

    grad_x = G · W + lora_scale · U · A      grad_A = lora_scale · Uᵀ · x      grad_B = lora_scale · Gᵀ · (x · Aᵀ)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import use_triton
from ..checks import check_floating, check_same_device
from ..launch import Device, cdiv, evenly_spaced_rows, run
from ..loss_checks import autocast
from ..operator import define
from ..partials import sum_partials
from ..reference import nf4 as definition
from ..reference.dtypes import widen
from . import dequantize
from .decode import ASSEMBLY
from .layout import SCHEMA, Layout
from .linear_kernels import linear_few_tokens, linear_tiles
from .tensor import NF4Tensor

# -------------------------------------------------------------------------------------------- launch choices

FEW_TOKENS = 16  # what one instruction of the tensor cores takes beside 16 rows of the weight, twice
MOST_TOKENS = 256


def strategy(tokens: int, layout: Layout, dtype: torch.dtype) -> str:
    """``"few tokens"``, ``"tiles"`` or ``"workspace"``.

    A workspace costs the 2.5 bytes a weight that decoding moves, and then runs at the speed of the BLAS library.
    Taking 0.6 of that for the tiles (to be measured), a chip that does 230 operations in the time of a byte
    breaks even at 2.5 · 230 / 2 / (1 / 0.6 − 1) = 430 tokens, one that does 170 at 320; 256 is on the safe side.
    The kernels multiply in 16 bits, and want whole blocks in a row.
    """
    fits = (
        dtype in ASSEMBLY and layout.quant_type == "nf4" and layout.shape[1] % max(layout.block_size, 64) == 0
    )
    if not fits or tokens > MOST_TOKENS:
        return "workspace"
    return "few tokens" if tokens <= FEW_TOKENS else "tiles"


def run_bytes(layout: Layout) -> int:
    """Bytes of a row between two scalings: a block, or 64 numbers of a larger one, which is two steps of the tensor
    cores for each half of the bytes."""
    return min(layout.block_size // 2, 32)


@dataclass(frozen=True)
class FewTokensLaunch:
    """A program does ``rows`` rows of the weight for up to ``tokens`` tokens, ``warps`` runs of bytes at a time."""

    rows: int
    tokens: int
    warps: int = 8
    stages: int = 4


def few_tokens_launch(tokens: int, rows: int, device: Device) -> FewTokensLaunch:
    """32 rows, whose warps then share what they read of x; 16 where 32 would leave a quarter of the chip idle.

    With 8 warps and 4 stages a program of 32 rows has 24 KiB of weights under way, which is what a
    multiprocessor's share of the memory's bandwidth and latency (4.8 TB/s · 0.7 µs / 132) asks for.
    """
    idle = 4 * cdiv(rows, 32) < 3 * device.multiprocessors
    return FewTokensLaunch(16 if idle else 32, 8 if tokens <= 8 else 16)


@dataclass(frozen=True)
class TilesLaunch:
    rows: int
    tokens: int
    warps: int = 8
    stages: int = 4


def tiles_launch(tokens: int) -> TilesLaunch:
    """128 rows are what the tensor cores of the newer chips take at once. At 256 tokens the sums spill."""
    return TilesLaunch(128, 64 if tokens <= 64 else 128)


def tile_splits(programs: int, steps: int, device: Device) -> int:
    """In how many parts the width is cut where there are fewer tiles than multiprocessors; each part costs a
    float32 result to write and read again, so it has at least eight steps."""
    return max(1, min(device.multiprocessors // max(programs, 1), steps // 8))


# ------------------------------------------------------------------------------------------------- operators


class Call(NamedTuple):
    x: Tensor  # (M, K)
    record: Tensor
    bias: Tensor | None  # (N,)
    lora_a: Tensor | None  # (R, K)
    lora_b: Tensor | None  # (N, R)
    lora_scale: float
    kernels: bool
    layout: Layout

    @staticmethod
    def of(*arguments) -> "Call":
        return Call(*arguments[:7], Layout.of(*arguments[7:]))


_CALL = (
    "Tensor x, Tensor record, Tensor? bias, Tensor? lora_a, Tensor? lora_b, float lora_scale, bool kernels, "
    + SCHEMA
)


def _allocate(*arguments) -> tuple[Tensor, Tensor]:
    call = Call.of(*arguments)
    tokens, x = call.x.shape[0], call.x
    dtype = x.dtype if call.kernels else widen(x.new_empty(0)).dtype
    hidden_shape = 0 if call.lora_a is None else (tokens, call.lora_a.shape[0])
    return x.new_empty((tokens, call.layout.shape[0])), x.new_empty(hidden_shape, dtype=dtype)


def _run(*arguments) -> tuple[Tensor, Tensor]:
    call = Call.of(*arguments)
    x = call.x
    if not call.kernels:
        weight = dequantize.by_definition(call.record, call.layout, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return definition.linear(x, weight, call.bias, call.lora_a, call.lora_b, call.lora_scale)
    hidden = x.new_empty(0) if call.lora_a is None else F.linear(x, call.lora_a)
    how = strategy(x.shape[0], call.layout, x.dtype)
    if how == "few tokens":
        return _few_tokens(call, hidden), hidden
    if how == "tiles":
        return _tiles(call, hidden), hidden
    y = F.linear(x, dequantize.by_kernel(call.record, call.layout, x.dtype), call.bias)
    if call.lora_a is not None:
        y.addmm_(hidden, call.lora_b.T, alpha=call.lora_scale)
    return y, hidden


def _shared_arguments(call: Call, x: Tensor, hidden: Tensor, y: Tensor) -> tuple:
    code = definition.code_values(call.layout.quant_type, x.device)
    low_rank = (None, None) if call.lora_a is None else (hidden, call.lora_b.contiguous())
    return x, call.record, code, call.bias, *low_rank, y


def _shared_constants(call: Call) -> dict:
    layout = call.layout
    block = {"BLOCK": layout.block_size, "DOUBLE_QUANT": layout.double_quant, "GROUP": definition.GROUP}
    return {**block, "ASSEMBLY": ASSEMBLY[call.x.dtype], "BYTES": run_bytes(layout)}


def _few_tokens(call: Call, hidden: Tensor) -> Tensor:
    x, x_stride = evenly_spaced_rows(call.x)
    tokens, (rows, width) = x.shape[0], call.layout.shape
    y = x.new_empty((tokens, rows))
    chosen = few_tokens_launch(tokens, rows, Device.of(x.device))
    run(
        linear_few_tokens,
        (cdiv(rows, chosen.rows) if tokens else 0,),
        x,
        *_shared_arguments(call, x, hidden, y),
        *(tokens, rows, width, x_stride, hidden.shape[-1], call.lora_scale, *call.layout.scale_starts),
        **_shared_constants(call),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        PARTS=chosen.warps,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return y


def _tiles(call: Call, hidden: Tensor) -> Tensor:
    tokens, (rows, width) = call.x.shape[0], call.layout.shape
    x = call.x.reshape(tokens, width // 2, 2).permute(2, 0, 1).contiguous()
    chosen = tiles_launch(tokens)
    tiles = cdiv(rows, chosen.rows), cdiv(tokens, chosen.tokens)
    steps = width // 2 // run_bytes(call.layout)
    splits = tile_splits(tiles[0] * tiles[1], steps, Device.of(x.device))
    y = x.new_empty((splits, tokens, rows), dtype=torch.float32 if splits > 1 else x.dtype)
    run(
        linear_tiles,
        (*tiles, splits),
        x,
        *_shared_arguments(call, x, hidden, y),
        *(tokens, rows, width, hidden.shape[-1], call.lora_scale, splits, cdiv(steps, splits)),
        *call.layout.scale_starts,
        **_shared_constants(call),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    if splits == 1:
        return y[0]
    return sum_partials(y.view(splits, -1), torch.Size((tokens, rows)), x.dtype)


def _allocate_backward(
    grad: Tensor, hidden: Tensor, wanted: Sequence[bool], *arguments
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, _, *parameters = arguments[:5]
    return tuple(
        x.new_empty(0 if p is None or not want else p.shape)
        for p, want in zip((x, *parameters), wanted, strict=True)
    )


def _run_backward(
    grad: Tensor, hidden: Tensor, wanted: Sequence[bool], *arguments
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(grad.device.type, enabled=False):
        return _gradients(grad, hidden, wanted, Call.of(*arguments))


def _gradients(
    grad: Tensor, hidden: Tensor, wanted: Sequence[bool], call: Call
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In the dtype of x by the kernels, and wide without them."""
    dtype = call.x.dtype if call.kernels else widen(call.x).dtype
    x, grad = call.x.to(dtype), grad.to(dtype)
    grad_x = grad_bias = grad_a = grad_b = None
    decoded = dequantize.by_kernel if call.kernels else dequantize.by_definition
    if wanted[0]:
        grad_x = grad @ decoded(call.record, call.layout, dtype)
    if wanted[1]:
        grad_bias = grad.sum(0, dtype=widen(grad).dtype)
    if call.lora_a is not None:
        lora_a, lora_b = call.lora_a.to(dtype), call.lora_b.to(dtype)
        low = grad @ lora_b
        if wanted[0]:
            grad_x.addmm_(low, lora_a, alpha=call.lora_scale)
        grad_a = scaled_product(low.T, x, call.lora_scale) if wanted[2] else None
        grad_b = scaled_product(grad.T, hidden, call.lora_scale) if wanted[3] else None
    found = (grad_x, grad_bias, grad_a, grad_b)
    return tuple(call.x.new_empty(0) if g is None else g.to(call.x.dtype) for g in found)


def scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.addmm(a.new_zeros(()), a, b, beta=0, alpha=scale)


_backward_op = define(
    f"nf4_linear_backward(Tensor grad, Tensor hidden, bool[] wanted, {_CALL}) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.rest = inputs[5:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor | None, _) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(ctx.rest)
    if grad is None:
        return None, None, None, None, None, *nothing
    *tensors, hidden = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[at] for at in (0, 2, 3, 4)]
    found = _backward_op(grad, hidden, wanted, *tensors, *ctx.rest)
    grad_x, *gradients = (g if want else None for g, want in zip(found, wanted, strict=True))
    return grad_x, None, *gradients, *nothing


_linear_op = define(
    f"nf4_linear({_CALL}) -> (Tensor, Tensor)", _run, _allocate, backward=_differentiate, save=_save
)

# -------------------------------------------------------------------------------------------- public function


def nf4_linear(
    x: Tensor,
    w: NF4Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
) -> Tensor:
    """``x @ wᵀ + bias + lora_scale · (x @ lora_aᵀ) @ lora_bᵀ`` on a 4-bit weight (QLoRA, arXiv:2305.14314).

    Gradients reach x, bias, lora_a and lora_b; the weight is frozen. No decoded weight outlives the call: the
    backward pass decodes again.

    Args:
        x: (..., K), any floating dtype and strides; computing and the result are in its dtype. Under autocast it is
            cast as for ``torch.nn.functional.linear``.
        w: (N, K), from ``quantize_nf4`` or ``from_bitsandbytes``.
        bias: (N,).
        lora_a: (R, K), and lora_b: (N, R), both or neither; any floating dtype, cast to x's.
        lora_scale: α / R in the paper on adapters (arXiv:2106.09685).

    Raises:
        ValueError: for a shape or device that does not fit.

    Example::

        w = quantize_nf4(torch.randn(256, 128) / 16)
        lora_a = torch.nn.Parameter(torch.randn(8, 128) / 16)
        lora_b = torch.nn.Parameter(torch.zeros(256, 8))
        y = nf4_linear(torch.randn(4, 10, 128), w, lora_a=lora_a, lora_b=lora_b, lora_scale=2.0)
        y.square().mean().backward()
    """
    _check(x, w, bias, lora_a, lora_b)
    x, bias, lora_a, lora_b = autocast(x, bias, lora_a, lora_b)
    bias, lora_a, lora_b = (None if p is None else p.to(x.dtype) for p in (bias, lora_a, lora_b))
    rows = x.reshape(-1, w.shape[1])
    kernels = use_triton(x)
    y, _ = _linear_op(rows, w.bytes, bias, lora_a, lora_b, lora_scale, kernels, *w.layout.arguments)
    return y.view(*x.shape[:-1], w.shape[0])


def _check(
    x: Tensor, w: NF4Tensor, bias: Tensor | None, lora_a: Tensor | None, lora_b: Tensor | None
) -> None:
    check_floating("x", x)
    if len(w.shape) != 2 or x.dim() == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"w must be (N, K) for x (..., K), got {tuple(w.shape)} for {tuple(x.shape)}")
    if (lora_a is None) != (lora_b is None):
        raise ValueError("lora_a and lora_b come together, got one of them")
    rows, width = w.shape
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias must have one element a row of w, ({rows},), got {tuple(bias.shape)}")
    if lora_a is not None:
        rank = lora_a.shape[0] if lora_a.dim() else 0
        if lora_a.shape != (rank, width) or lora_b.shape != (rows, rank):
            raise ValueError(
                f"lora_a and lora_b must be (R, {width}) and ({rows}, R), "
                f"got {tuple(lora_a.shape)} and {tuple(lora_b.shape)}"
            )
    for name, tensor in (("w", w), ("bias", bias), ("lora_a", lora_a), ("lora_b", lora_b)):
        check_same_device(name, tensor, x)
