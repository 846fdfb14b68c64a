"""Root mean square and layer normalisation, with the residual addition that comes before them.

    h = x + residual                          (h = x without a residual)
    y = (h − μ)/σ · (weight + weight_offset) + bias

over the last dimension, where for root mean square normalisation μ = 0 and σ² = mean(h²) + ε, and for layer
normalisation μ = mean(h) and σ² = mean((h − μ)²) + ε. One program normalises one tile of whole rows, held in
registers; rows longer than that are read twice. Statistics are float32.

With x̂ = (h − μ)/σ and g = grad_y · (weight + weight_offset), the gradients are

    grad_h      = (g − x̂ · mean(g · x̂) − mean(g))/σ + grad of the new residual     (no mean(g) where μ = 0)
    grad_weight = Σ over rows of grad_y · x̂
    grad_bias   = Σ over rows of grad_y

The sums over rows: each program adds up its rows in float32, and ``sum_partials`` adds up the programs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from .backend import use_triton
from .checks import check_floating, check_same_device, check_same_shape
from .gate import GateCase
from .launch import Device, cdiv, contiguous, empty, next_power_of_2, row_count, rows_of, run
from .norm_kernels import (
    norm_backward,
    norm_backward_wide,
    norm_forward,
    norm_forward_wide,
    parameter_gradients_wide,
)
from .operator import define
from .partials import sum_partials
from .reference import norm as definition
from .tuned import tuned

# -------------------------------------------------------------------------------------------- launch choices

TILE = 2048  # elements a program takes at least, so that short rows share one
REGISTERS = 65536  # of a multiprocessor; a kernel may take the share of its resident programs


@dataclass(frozen=True)
class NormLaunch:
    """One program takes ``rows`` rows at a time, ``block`` columns at a time."""

    rows: int
    block: int
    warps: int
    wide: bool  # a row is longer than ``block``
    resident: int  # programs that a multiprocessor holds at a time

    @cached_property
    def registers(self) -> int:
        """The most a thread may take, told to the compiler: left alone it spills a few registers to fit more
        programs."""
        return min(REGISTERS // (32 * self.warps * self.resident) // 8 * 8, 255)


def _longest(width: int, longest: int, unaligned: int) -> int:
    """The longest row that a program holds; where rows do not start on 16 bytes, each element has its own
    address, which takes registers."""
    return unaligned if width % 16 else longest


def _wide_launch(width: int) -> NormLaunch:
    return NormLaunch(1, _longest(width, 4096, unaligned=2048), 8, wide=True, resident=2)


@tuned("norm", NormLaunch)
@lru_cache
def forward_launch(device: Device, width: int) -> NormLaunch:
    """Two 16-byte accesses a tensor and thread; at 16,384 columns, four."""
    block = max(next_power_of_2(width), 64)
    if block > _longest(width, 16384, unaligned=8192):
        return _wide_launch(width)
    rows = max(1, TILE // block)
    warps = min(rows * block // 512, 16)
    return NormLaunch(rows, block, warps, wide=False, resident=16 // warps)


@tuned("norm", NormLaunch)
@lru_cache
def backward_launch(device: Device, width: int, itemsize: int) -> NormLaunch:
    """Half the elements a thread: h, grad_y and the sums of both parameters' gradients are there at once. What
    the compile gate found to fit without a spill on every chip: 80 registers for one row of 2,048, 64 for 4,096
    in half precision, 128 for 8,192."""
    block = max(next_power_of_2(width), 64)
    if block > _longest(width, 16384 // itemsize, unaligned=2048):
        return _wide_launch(width)
    rows = max(1, TILE // block)
    if block <= TILE:
        return NormLaunch(rows, block, 8, wide=False, resident=2 if width % 16 else 3)
    return NormLaunch(rows, block, 16, wide=False, resident=2 if block * itemsize <= 8192 else 1)


def backward_programs(chosen: NormLaunch, rows: int, parts: int, device: Device) -> int:
    """How many programs share the rows of each of the ``parts`` (groups × column blocks) of the parameters: what
    fills the chip once, and no more than there are tiles.

    Each program more is one more partial gradient to write.
    """
    fill = device.multiprocessors * chosen.resident
    return max(1, min(cdiv(rows, chosen.rows), cdiv(fill, parts)))


# ------------------------------------------------------------------------------------------------- operators


def _groups(weight: Tensor | None, bias: Tensor | None) -> int:
    """How many rows of parameters there are: H for per-head parameters (H, D), else 1."""
    parameter = bias if weight is None else weight
    return 1 if parameter is None or parameter.dim() == 1 else parameter.shape[0]


def _allocate(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
    centre: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    stats = x.new_empty((1 + centre) * row_count(x), dtype=torch.float32)
    if residual is None:
        return empty(x), x.new_empty(0), stats
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return empty(x, dtype), empty(x, dtype), stats


def _run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
    centre: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, h, stats = _allocate(x, weight, bias, residual, eps, weight_offset, centre)
    groups = _groups(weight, bias)
    x, rows = rows_of(x)
    chosen = forward_launch(Device.of(x.device), rows.width)
    per_group = rows.count // groups
    tile = {} if chosen.wide else {"ROWS": chosen.rows}
    run(
        norm_forward_wide if chosen.wide else norm_forward,
        (cdiv(per_group, chosen.rows), groups),
        x,
        *(x, contiguous(residual), contiguous(weight), contiguous(bias), y, h, stats),
        *(per_group, groups, rows.width, *rows.strides, eps, weight_offset),
        CENTRE=centre,
        STRIDED=rows.strided,
        BLOCK=chosen.block,
        num_warps=chosen.warps,
        maxnreg=chosen.registers,
        **tile,
    )
    return y, h, stats


def _allocate_backward(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    weight_offset: float,
    centre: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = empty(h)
    wanted = (weight if weight_gradient else None, bias)
    gradients = (h.new_empty(0) if p is None else p.new_empty(p.shape) for p in wanted)
    return grad_x, *gradients


def _run_backward(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    weight_offset: float,
    centre: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = _groups(weight, bias)
    h, rows = rows_of(h)
    grad_x = empty(h)
    device = Device.of(h.device)
    chosen = backward_launch(device, rows.width, h.element_size())
    per_group = rows.count // groups
    column_blocks = max(1, cdiv(rows.width, chosen.block))
    programs = backward_programs(chosen, per_group, groups * column_blocks, device)
    wanted = (weight if weight_gradient else None, bias)
    partials = [
        None if p is None else p.new_empty((programs, groups * rows.width), dtype=torch.float32)
        for p in wanted
    ]
    grad_y = grad_y.contiguous()
    inputs = (grad_y, contiguous(grad_h), h, contiguous(weight), stats, grad_x)
    layout = (per_group, groups, rows.width, *rows.strides)
    fixed = {"CENTRE": centre, "STRIDED": rows.strided, "BLOCK": chosen.block}
    fixed |= {"num_warps": chosen.warps, "maxnreg": chosen.registers}
    if chosen.wide:
        run(norm_backward_wide, (per_group, groups), h, *inputs, *layout, weight_offset, **fixed)
        grid = (programs, groups, column_blocks if any(p is not None for p in wanted) else 0)
        run(parameter_gradients_wide, grid, h, grad_y, h, stats, *partials, *layout, **fixed)
    else:
        grid = (programs, groups)
        run(norm_backward, grid, h, *inputs, *partials, *layout, weight_offset, ROWS=chosen.rows, **fixed)
    gradients = (
        h.new_empty(0) if p is None else sum_partials(partial, p.shape, p.dtype)
        for p, partial in zip(wanted, partials, strict=True)
    )
    return grad_x, *gradients


_norm_backward_op = define(
    "norm_backward(Tensor grad_y, Tensor? grad_h, Tensor h, Tensor? weight, Tensor? bias, Tensor stats, "
    "float weight_offset, bool centre, bool weight_gradient) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)


def _save(ctx, inputs, output) -> None:
    x, weight, bias, residual, _, ctx.weight_offset, ctx.centre = inputs
    _, h, stats = output
    ctx.save_for_backward(x if residual is None else h, weight, bias, stats)
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.x_dtype = x.dtype
    ctx.mark_non_differentiable(stats, *([h] if residual is None else []))
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_y: Tensor | None, grad_h: Tensor | None, _) -> tuple[Tensor | None, ...]:
    h, weight, bias, stats = ctx.saved_tensors
    _, weight_gradient, bias_gradient, *_ = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = None
    if grad_y is None:  # only the new residual was used
        grad_x = grad_h
    else:
        grad_x, grad_weight, grad_bias = _norm_backward_op(
            grad_y,
            grad_h,
            h,
            weight,
            bias if bias_gradient else None,
            stats,
            ctx.weight_offset,
            ctx.centre,
            weight_gradient,
        )
    residual = ctx.residual_dtype
    return (
        grad_x if grad_x is None else grad_x.to(ctx.x_dtype),
        grad_weight if weight_gradient else None,
        grad_bias if bias_gradient else None,
        None if residual is None or grad_x is None else grad_x.to(residual),
        *(None, None, None),
    )


_norm_op = define(
    "norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, float weight_offset, "
    "bool centre) -> (Tensor, Tensor, Tensor)",
    _run,
    _allocate,
    backward=_differentiate,
    save=_save,
)

# ------------------------------------------------------------------------------------------ public functions


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Root mean square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    ``y = h / sqrt(mean(h²) + eps) · (weight + weight_offset)`` with ``h = x + residual``, computed in float32
    and rounded once. Gradients reach x, weight and residual.

    Args:
        x: (..., E), any floating dtype, any strides.
        weight: (E,), or one row a head (H, D) for x (..., H, D). None is a weight of 1 (and no offset).
        eps: added to the mean square.
        weight_offset: 1.0 for Gemma, whose checkpoints hold ``weight − 1``.
        residual: the residual stream, shape of x, added before the norm.

    Returns:
        y, shape of x and dtype of h; with a residual ``(y, h)``, where h is the new residual, in the dtype
        that x and residual promote to.

    Raises:
        ValueError: for an integer x, or a weight or residual whose shape or device does not fit x.

    Example::

        class RMSNorm(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(width))

            def forward(self, x):
                return rms_norm(x, self.weight, eps=1e-6)
    """
    _check(x, weight, None, residual)
    if use_triton(x, weight, residual):
        y, h, _ = _norm_op(x, weight, None, residual, eps, weight_offset, False)
        return y if residual is None else (y, h)
    return definition.rms_norm(x, weight, eps, weight_offset, residual)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer normalisation over the last dimension (Ba, Kiros and Hinton 2016, arXiv:1607.06450).

    ``y = (h − mean(h)) / sqrt(var(h) + eps) · weight + bias`` with ``h = x + residual`` and the biased
    variance, computed in float32 and rounded once. Gradients reach every tensor given.

    Args:
        x: (..., E), any floating dtype, any strides.
        weight, bias: (E,), or one row a head (H, D) for x (..., H, D). None is a weight of 1, a bias of 0.
        eps: added to the variance.
        residual: the residual stream, shape of x, added before the norm.

    Returns:
        y, shape of x and dtype of h; with a residual ``(y, h)``, where h is the new residual, in the dtype
        that x and residual promote to.

    Raises:
        ValueError: for an integer x, or a weight, bias or residual whose shape or device does not fit x.

    Example::

        class LayerNorm(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(width))
                self.bias = torch.nn.Parameter(torch.zeros(width))

            def forward(self, x):
                return layer_norm(x, self.weight, self.bias)
    """
    _check(x, weight, bias, residual)
    if use_triton(x, weight, bias, residual):
        y, h, _ = _norm_op(x, weight, bias, residual, eps, 0.0, True)
        return y if residual is None else (y, h)
    return definition.layer_norm(x, weight, bias, eps, residual)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> None:
    check_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if parameter.dim() not in (1, 2) or parameter.shape != x.shape[-parameter.dim() :]:
            raise ValueError(
                f"{name} must have the shape of the last one or two dimensions of x, {tuple(x.shape)}, "
                f"got {tuple(parameter.shape)}"
            )
        check_same_device(name, parameter, x)
    if weight is not None and bias is not None and weight.shape != bias.shape:
        raise ValueError(f"bias must have the shape of weight {tuple(weight.shape)}, got {tuple(bias.shape)}")
    if residual is not None:
        check_same_shape("residual", residual, "x", x)
        check_same_device("residual", residual, x)


# ----------------------------------------------------------------------------------------------- compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """Every launch choice with all options on, and rms_norm as models call it; float32 and odd widths, which
    take more registers, where rows are long."""
    seen = set()
    for exponent in range(6, 19):
        width = 2**exponent
        choice = (forward_launch(device, width), backward_launch(device, width, 2))
        if choice in seen:
            continue
        seen.add(choice)
        yield _gate_case("rms_norm", width, torch.bfloat16)
        yield _gate_case("layer_norm", width, torch.bfloat16)
        if width >= 2048:
            yield _gate_case("layer_norm", width, torch.float32)
            yield _gate_case("layer_norm", width - 1, torch.bfloat16)


def _gate_case(op: str, width: int, dtype: torch.dtype) -> GateCase:
    def forward_and_backward() -> None:
        x = torch.empty(64, width, dtype=dtype, device="meta")
        parameter = x[0]
        everything = op == "layer_norm"
        bias, residual = (parameter, x) if everything else (None, None)
        y, _, stats = _run(x, parameter, bias, residual, 1e-6, 0.0, everything)
        _run_backward(y, residual, x, parameter, bias, stats, 0.0, everything, True)

    return GateCase(op, f"{width} {str(dtype).removeprefix('torch.')}", forward_and_backward)
