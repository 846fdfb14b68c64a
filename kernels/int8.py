"""A linear layer on a frozen weight in 8 bits, one scale a row.

    y = x · (codes · scale)ᵀ + bias

The same three ways as for 4 bits (``nf4/products.py``): a kernel that streams the weight once, for up to 16 tokens;
one on tiles of a matrix product; and a workspace of the decoded weight with the BLAS library.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import use_triton
from .checks import check_floating, check_same_device
from .gate import GateCase
from .int8_kernels import int8_few_tokens, int8_tiles
from .launch import Device, cdiv, evenly_spaced_rows, run
from .loss_checks import autocast
from .nf4.linear import without_autocast
from .nf4.products import FEW_TOKENS, MOST_TOKENS, few_tokens_launch_for, tile_splits, tiles_launch_for
from .operator import define
from .partials import sum_partials
from .reference import int8 as definition
from .reference.dtypes import widen

# -------------------------------------------------------------------------------------------- launch choices

STEP = 64  # columns: four 16-byte loads, and four steps of the tensor cores


def strategy(tokens: int, width: int, dtype: torch.dtype) -> str:
    """``"few tokens"``, ``"tiles"`` or ``"workspace"``. A workspace costs three bytes a weight where 4 bits cost
    2.5, so it pays from about as many tokens on."""
    if dtype == torch.float32 or width % STEP or tokens > MOST_TOKENS:
        return "workspace"
    return "few tokens" if tokens <= FEW_TOKENS else "tiles"


# -------------------------------------------------------------------------------------------------- operator


def _decoded(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """In one pass: what is computed in float32 is rounded as it is stored."""
    return torch.mul(codes, scale[:, None], out=torch.empty(codes.shape, dtype=dtype, device=codes.device))


def _allocate(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, kernels: bool) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


def _run(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, kernels: bool) -> Tensor:
    with without_autocast(x, kernels):
        if not kernels:
            return definition.linear(x, codes, scale, bias)
        how = strategy(x.shape[0], x.shape[1], x.dtype)
        if how == "workspace":
            return F.linear(x, _decoded(codes, scale, x.dtype), bias)
    return (_few_tokens if how == "few tokens" else _tiles)(x, codes.contiguous(), scale, bias)


def _few_tokens(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    x, x_stride = evenly_spaced_rows(x)
    tokens, (rows, width) = x.shape[0], codes.shape
    y = x.new_empty((tokens, rows))
    chosen = few_tokens_launch_for("int8", x, rows)
    run(
        int8_few_tokens,
        (cdiv(rows, chosen.rows) if tokens else 0,),
        x,
        *(x, codes, scale, bias, y, tokens, rows, width, x_stride),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        PARTS=chosen.warps,
        STEP=STEP,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return y


def _tiles(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    x, x_stride = evenly_spaced_rows(x)
    tokens, (rows, width) = x.shape[0], codes.shape
    chosen = tiles_launch_for("int8", x)
    tiles = cdiv(rows, chosen.rows), cdiv(tokens, chosen.tokens)
    steps = width // STEP
    splits = tile_splits(tiles[0] * tiles[1], steps, Device.of(x.device))
    y = x.new_empty((splits, tokens, rows), dtype=torch.float32 if splits > 1 else x.dtype)
    run(
        int8_tiles,
        (*tiles, splits),
        x,
        *(x, codes, scale, bias, y, tokens, rows, width, x_stride, cdiv(steps, splits)),
        ROWS=chosen.rows,
        TOKENS=chosen.tokens,
        STEP=STEP,
        num_warps=chosen.warps,
        num_stages=chosen.stages - 1,
    )
    return y[0] if splits == 1 else sum_partials(y.view(splits, -1), torch.Size((tokens, rows)), x.dtype)


def _run_backward(grad: Tensor, codes: Tensor, scale: Tensor, kernels: bool) -> Tensor:
    """In grad's dtype by the kernels, and wide without them."""
    dtype = grad.dtype if kernels else widen(grad).dtype
    with without_autocast(grad, kernels):
        return (grad.to(dtype) @ _decoded(codes, scale, dtype)).to(grad.dtype)


_backward_op = define(
    "int8_linear_backward(Tensor grad, Tensor codes, Tensor scale, bool kernels) -> Tensor",
    _run_backward,
    lambda grad, codes, scale, kernels: grad.new_empty((grad.shape[0], codes.shape[1])),
)


def _save(ctx, inputs, output) -> None:
    _, codes, scale, _, ctx.kernels = inputs
    ctx.save_for_backward(codes, scale)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale = ctx.saved_tensors
    grad_x = _backward_op(grad, codes, scale, ctx.kernels) if ctx.needs_input_grad[0] else None
    grad_bias = None
    if ctx.needs_input_grad[3]:
        grad_bias = grad.sum(0, dtype=widen(grad.new_empty(0)).dtype).to(grad.dtype)
    return grad_x, None, None, grad_bias, None


_linear_op = define(
    "int8_linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias, bool kernels) -> Tensor",
    _run,
    _allocate,
    backward=_differentiate,
    save=_save,
)

# ------------------------------------------------------------------------------------------- public functions


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` (N, K) in 8 bits a number: (codes int8 (N, K), scale float32 (N,)), ``weight ≈ codes · scale``.

    The error of a number is at most half of its row's scale, which is the row's largest absolute number / 127.

    Raises:
        ValueError: for what is no floating-point matrix.
    """
    check_floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight must be (N, K), got {tuple(weight.shape)}")
    return definition.quantize(weight.detach())


def int8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ (codes · scale)ᵀ + bias`` on a weight in 8 bits, which is frozen; gradients reach x and bias.

    Args:
        x: (..., K), any floating dtype; computing and the result are in its dtype. Under autocast it is cast as for
            ``torch.nn.functional.linear``.
        codes: int8 (N, K), and scale: float32 (N,), from ``quantize_int8``.
        bias: (N,).

    Raises:
        ValueError: for a shape, dtype or device that does not fit.

    Example::

        codes, scale = quantize_int8(torch.randn(256, 128) / 16)
        y = int8_linear(torch.randn(4, 10, 128), codes, scale)
    """
    check_floating("x", x)
    if codes.dtype != torch.int8 or codes.dim() != 2 or x.dim() == 0 or codes.shape[1] != x.shape[-1]:
        raise ValueError(
            f"codes must be torch.int8 (N, K) for x (..., K), got {codes.dtype} {tuple(codes.shape)} "
            f"for {tuple(x.shape)}"
        )
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and tensor.shape != codes.shape[:1]:
            raise ValueError(
                f"{name} must have one element a row, ({len(codes)},), got {tuple(tensor.shape)}"
            )
        check_same_device(name, tensor, x)
    check_same_device("codes", codes, x)
    x, bias = autocast(x, bias)
    rows = x.reshape(-1, x.shape[-1])
    bias = None if bias is None else bias.to(x.dtype)
    y = _linear_op(rows, codes, scale.float(), bias, use_triton(x))
    return y.view(*x.shape[:-1], codes.shape[0])


# ---------------------------------------------------------------------------------------------- compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    product = {90: "wgmma", 100: "tcgen05"}.get(device.capability, "mma")
    expect = {"int8_few_tokens": ("mma", "cp.async"), "int8_tiles": (product, "cp.async")}
    for tokens, rows, dtype in (
        (1, 4096, torch.bfloat16),
        (16, 1024, torch.float16),
        (64, 4096, torch.bfloat16),
        (256, 28672, torch.bfloat16),
    ):
        yield _gate_case(tokens, rows, dtype, expect)


def _gate_case(tokens: int, rows: int, dtype: torch.dtype, expect: dict) -> GateCase:
    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def forward() -> None:
        codes, scale = meta(rows, 4096, dtype=torch.int8), meta(rows, dtype=torch.float32)
        (_few_tokens if tokens <= FEW_TOKENS else _tiles)(meta(tokens, 4096), codes, scale, meta(rows))

    return GateCase("int8_linear", f"{tokens} tokens, {rows} rows, {str(dtype)[6:]}", forward, expect)
