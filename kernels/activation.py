"""SwiGLU, GeGLU and GELU: the activations of the feed-forward layer.

    swiglu: silu(gate) · up            silu(x) = x · sigmoid(x)
    geglu:  gelu(gate) · up            gelu(x) = x · Φ(x), or its approximation by tanh
    gelu:   gelu(x + bias)

computed in float32 and rounded once. The backward passes read the inputs again and keep nothing else:

    grad_gate = grad · up · act'(gate)      grad_up = grad · act(gate)
    grad_x = grad · gelu'(x + bias)         grad_bias = Σ over rows of grad_x

A program takes one block of columns of one row; where all tensors are contiguous, everything is one row. Only the
backward pass of a biased gelu walks down its columns, to add up the gradient of the bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .activation_kernels import gated_backward, gated_forward, gelu_backward, gelu_forward
from .backend import use_triton
from .checks import check_choice, check_floating, check_same_device, check_same_shape
from .gate import GateCase
from .launch import Device, cdiv, contiguous, empty, evenly_spaced_rows, next_power_of_2, row_count, run
from .operator import define
from .partials import sum_partials
from .reference import activation as definition
from .tuned import tuned

APPROXIMATIONS = {"none": "gelu", "tanh": "gelu_tanh"}
LONG = 1024  # columns of a row that is cut
MOST_PROGRAMS = 65535  # what a grid's second dimension holds

# ---------------------------------------------------------------------------------------------- launch choices


@dataclass(frozen=True)
class ActivationLaunch:
    """One program takes ``block`` columns."""

    block: int
    warps: int


@tuned("activation", ActivationLaunch)
@lru_cache
def launch(device: Device, kernel: str, columns: int) -> ActivationLaunch:
    """Eight elements a thread: one 16-byte access a tensor in half precision, two in float32. ``columns`` is a power of
    two, and LONG for all longer rows."""
    return ActivationLaunch(columns, max(1, columns // 256))


def launch_for(kernel: str, x: Tensor, columns: int) -> ActivationLaunch:
    return launch(Device.of(x.device), kernel, min(max(next_power_of_2(columns), 128), LONG))


def bias_programs(rows: int, columns: int, chosen: ActivationLaunch, device: Device) -> int:
    """How many programs share the rows of a column block: 1024 threads a multiprocessor fill the chip."""
    fill = device.multiprocessors * (32 // chosen.warps)
    return max(1, min(rows, cdiv(fill, cdiv(columns, chosen.block))))


# ------------------------------------------------------------------------------------- gated: swiglu and geglu


def _halves(gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    return definition.split(gate) if up is None else (gate, up)


def _as_rows(*tensors: Tensor) -> tuple[int, int, list[tuple[Tensor, int]]]:
    """Rows, columns, and each tensor with the distance between its rows; all contiguous, they are one row."""
    if all(t.is_contiguous() for t in tensors):
        return 1, tensors[0].numel(), [(t, 0) for t in tensors]
    return row_count(tensors[0]), tensors[0].shape[-1], [evenly_spaced_rows(t) for t in tensors]


def _allocate_gated(gate: Tensor, up: Tensor | None, kind: str) -> Tensor:
    return gate.new_empty((*gate.shape[:-1], gate.shape[-1] // 2)) if up is None else empty(gate)


def _run_gated(gate: Tensor, up: Tensor | None, kind: str) -> Tensor:
    out = _allocate_gated(gate, up, kind)
    rows, columns, ((gate, gate_stride), (up, up_stride)) = _as_rows(*_halves(gate, up))
    chosen = launch_for("gated_forward", out, columns)
    grid = (rows * cdiv(columns, chosen.block),)
    arguments = (gate, up, out, columns, gate_stride, up_stride, kind, chosen.block)
    run(gated_forward, grid, out, *arguments, num_warps=chosen.warps)
    return out


def _allocate_gated_backward(
    grad: Tensor, gate: Tensor, up: Tensor | None, kind: str
) -> tuple[Tensor, Tensor]:
    return empty(gate), gate.new_empty(0) if up is None else empty(up)


def _run_gated_backward(grad: Tensor, gate: Tensor, up: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    gradients = _allocate_gated_backward(grad, gate, up, kind)
    # The halves of a packed gradient: views of the one tensor that is returned.
    grad_gate, grad_up = definition.split(gradients[0]) if up is None else gradients
    grad_stride = grad_gate.shape[-1] * (2 if up is None else 1) if grad_gate.dim() else 1
    rows, columns, ((gate, gate_stride), (up, up_stride)) = _as_rows(*_halves(gate, up))
    chosen = launch_for("gated_backward", grad_gate, columns)
    grid = (rows * cdiv(columns, chosen.block),)
    arguments = (
        grad.contiguous(),
        gate,
        up,
        grad_gate,
        grad_up,
        columns,
        gate_stride,
        up_stride,
        grad_stride,
    )
    run(gated_backward, grid, grad, *arguments, kind, chosen.block, num_warps=chosen.warps)
    return gradients


_gated_backward_op = define(
    "gated_backward(Tensor grad, Tensor gate, Tensor? up, str kind) -> (Tensor, Tensor)",
    _run_gated_backward,
    _allocate_gated_backward,
)


def _save_gated(ctx, inputs, output) -> None:
    gate, up, ctx.kind = inputs
    ctx.save_for_backward(gate, up)


def _differentiate_gated(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    gate, up = ctx.saved_tensors
    grad_gate, grad_up = _gated_backward_op(grad, gate, up, ctx.kind)
    return grad_gate, None if up is None else grad_up, None


_gated_op = define(
    "gated(Tensor gate, Tensor? up, str kind) -> Tensor",
    _run_gated,
    _allocate_gated,
    backward=_differentiate_gated,
    save=_save_gated,
)

# -------------------------------------------------------------------------------------------------------- gelu


def _gelu_rows(x: Tensor, bias: Tensor | None) -> tuple[int, int, Tensor, int]:
    if bias is None:
        rows, columns, ((x, stride),) = _as_rows(x)
        return rows, columns, x, stride
    x, stride = evenly_spaced_rows(x)
    return row_count(x), x.shape[-1], x, stride


def _allocate_gelu(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    return empty(x)


def _run_gelu(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    out = _allocate_gelu(x, bias, kind)
    rows, columns, x, stride = _gelu_rows(x, bias)
    chosen = launch_for("gelu_forward", x, columns)
    grid = (rows * cdiv(columns, chosen.block),)
    arguments = (x, contiguous(bias), out, columns, stride, kind, chosen.block)
    run(gelu_forward, grid, x, *arguments, num_warps=chosen.warps)
    return out


def _allocate_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, kind: str, bias_gradient: bool
) -> tuple[Tensor, Tensor]:
    grad_x = empty(x)
    return grad_x, bias.new_empty(bias.shape) if bias_gradient else x.new_empty(0)


def _run_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, kind: str, bias_gradient: bool
) -> tuple[Tensor, Tensor]:
    grad_x = empty(x)
    rows, columns, x, stride = _gelu_rows(x, bias)
    chosen = launch_for("gelu_backward", x, columns)
    programs = rows
    partials = None
    if bias_gradient:
        programs = bias_programs(rows, columns, chosen, Device.of(x.device))
        partials = x.new_empty((programs, columns), dtype=torch.float32)
    programs = min(programs, MOST_PROGRAMS)
    arguments = (grad.contiguous(), x, contiguous(bias), grad_x, partials, rows, columns, stride)
    grid = (cdiv(columns, chosen.block), programs)
    run(gelu_backward, grid, x, *arguments, kind, chosen.block, num_warps=chosen.warps)
    grad_bias = sum_partials(partials, bias.shape, bias.dtype) if bias_gradient else x.new_empty(0)
    return grad_x, grad_bias


_gelu_backward_op = define(
    "gelu_backward(Tensor grad, Tensor x, Tensor? bias, str kind, bool bias_gradient) -> (Tensor, Tensor)",
    _run_gelu_backward,
    _allocate_gelu_backward,
)


def _save_gelu(ctx, inputs, output) -> None:
    x, bias, ctx.kind = inputs
    ctx.save_for_backward(x, bias)


def _differentiate_gelu(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    bias_gradient = ctx.needs_input_grad[1]
    grad_x, grad_bias = _gelu_backward_op(grad, x, bias, ctx.kind, bias_gradient)
    return grad_x, grad_bias if bias_gradient else None, None


_gelu_op = define(
    "gelu(Tensor x, Tensor? bias, str kind) -> Tensor",
    _run_gelu,
    _allocate_gelu,
    backward=_differentiate_gelu,
    save=_save_gelu,
)

# -------------------------------------------------------------------------------------------- public functions


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``silu(gate) · up`` (Shazeer 2020, arXiv:2002.05202), computed in float32 and rounded once.

    Args:
        gate: (..., F), any floating dtype, any strides; or packed ``[gate | up]`` (..., 2F) where up is None.
        up: (..., F).

    Returns:
        (..., F), in the dtype that gate and up promote to. Neither input is ever overwritten.

    Raises:
        ValueError: for an integer gate, an odd packed width, or an up of another shape or device.

    Example::

        class FeedForward(torch.nn.Module):
            def __init__(self, width, hidden):
                super().__init__()
                self.gate_up = torch.nn.Linear(width, 2 * hidden, bias=False)
                self.down = torch.nn.Linear(hidden, width, bias=False)

            def forward(self, x):
                return self.down(swiglu(self.gate_up(x)))
    """
    gate, up = _check_gated(gate, up)
    if use_triton(gate, up):
        return _gated_op(gate, up, "silu")
    return definition.swiglu(gate, up)


def geglu(gate: Tensor, up: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """``gelu(gate) · up`` (Shazeer 2020, arXiv:2002.05202), computed in float32 and rounded once.

    Args:
        gate: (..., F), any floating dtype, any strides; or packed ``[gate | up]`` (..., 2F) where up is None.
        up: (..., F).
        approximate: "none" for the exact gelu, "tanh" for its approximation, as in ``torch.nn.functional.gelu``.

    Returns:
        (..., F), in the dtype that gate and up promote to. Neither input is ever overwritten.

    Raises:
        ValueError: for an integer gate, an odd packed width, an up of another shape or device, or any other
            approximation.

    Example::

        class FeedForward(torch.nn.Module):
            def __init__(self, width, hidden):
                super().__init__()
                self.gate, self.up = (torch.nn.Linear(width, hidden) for _ in range(2))

            def forward(self, x):
                return geglu(self.gate(x), self.up(x), approximate="tanh")
    """
    gate, up = _check_gated(gate, up)
    check_choice("approximate", approximate, tuple(APPROXIMATIONS))
    if use_triton(gate, up):
        return _gated_op(gate, up, APPROXIMATIONS[approximate])
    return definition.geglu(gate, up, approximate)


def gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """``gelu(x + bias)`` (Hendrycks and Gimpel 2016, arXiv:1606.08415), computed in float32 and rounded once.

    With the bias in here, the linear layer before needs none, and its sum is not rounded in between.

    Args:
        x: (..., F), any floating dtype, any strides.
        bias: (F,).
        approximate: "none" for the exact gelu, "tanh" for its approximation, as in ``torch.nn.functional.gelu``.

    Returns:
        the shape and dtype of x.

    Raises:
        ValueError: for an integer x, a bias of another shape or device, or any other approximation.

    Example::

        class FeedForward(torch.nn.Module):
            def __init__(self, width, hidden):
                super().__init__()
                self.up, self.down = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

            def forward(self, x):
                return self.down(gelu(x @ self.up.weight.T, self.up.bias, approximate="tanh"))
    """
    check_floating("x", x)
    check_choice("approximate", approximate, tuple(APPROXIMATIONS))
    if bias is not None:
        if bias.shape != x.shape[-1:]:
            raise ValueError(f"bias must have the shape {tuple(x.shape[-1:])}, got {tuple(bias.shape)}")
        check_same_device("bias", bias, x)
    if use_triton(x, bias):
        return _gelu_op(x, bias, APPROXIMATIONS[approximate])
    return definition.gelu(x, bias, approximate)


def _check_gated(gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor | None]:
    check_floating("gate", gate)
    if up is None:
        if gate.dim() == 0 or gate.shape[-1] % 2:
            raise ValueError(
                f"packed gate must have an even last dimension [gate | up], got {tuple(gate.shape)}"
            )
        return gate, None
    check_same_shape("up", up, "gate", gate)
    check_same_device("up", up, gate)
    if up.dtype != gate.dtype:
        dtype = torch.promote_types(gate.dtype, up.dtype)
        gate, up = gate.to(dtype), up.to(dtype)
    return gate, up


# ------------------------------------------------------------------------------------------------ compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """Every launch choice of swiglu; the other activations at the widest, with an odd width for each."""
    seen = set()
    for columns in (2**exponent for exponent in range(6, 14)):
        chosen = {
            launch(device, f"gated_{pass_}", min(max(columns, 128), LONG))
            for pass_ in ("forward", "backward")
        }
        if not chosen <= seen:
            seen |= chosen
            yield _gated_case("swiglu", "silu", columns, torch.bfloat16)
    for op, kind in (("swiglu", "silu"), ("geglu", "gelu"), ("geglu", "gelu_tanh")):
        yield _gated_case(op, kind, 4096, torch.float32)
        yield _gated_case(op, kind, 4095, torch.bfloat16)
    for kind in APPROXIMATIONS.values():
        for columns, dtype in ((4096, torch.bfloat16), (4096, torch.float32), (4095, torch.bfloat16)):
            yield _gelu_case(kind, columns, dtype)


def _gated_case(op: str, kind: str, columns: int, dtype: torch.dtype) -> GateCase:
    def forward_and_backward() -> None:
        packed = torch.empty(64, 2 * columns, dtype=dtype, device="meta")
        _run_gated_backward(_run_gated(packed, None, kind), packed, None, kind)

    return GateCase(op, f"{columns} {kind} {str(dtype).removeprefix('torch.')}", forward_and_backward)


def _gelu_case(kind: str, columns: int, dtype: torch.dtype) -> GateCase:
    def forward_and_backward() -> None:
        x = torch.empty(64, columns, dtype=dtype, device="meta")
        _run_gelu_backward(_run_gelu(x, x[0], kind), x, x[0], kind, True)

    return GateCase("gelu", f"{columns} {kind} {str(dtype).removeprefix('torch.')}", forward_and_backward)
