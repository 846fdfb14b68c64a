"""All that operators use of PyTorch without a promise in its documentation.

tests/kernels/test_torch_private.py says what each must do, and runs under every version of PyTorch that is supported.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

Overload = torch._ops.OpOverload

# What sees the calls of operators, beside torch.compile: modes (fake tensors, selective checkpoints), vmap and its kin,
# a trace. Each is asked in every call, so that a function around them would cost as much as two of them.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
function_modes: Callable[[], int] = torch._C._len_torch_function_stack
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
is_tracing: Callable[[], bool] = torch._C._is_tracing

any_requires_grad: Callable[..., bool] = torch._C._any_requires_grad  # of tensors among other values, also in lists


def is_any_autocast_enabled() -> bool:
    """Whether autocast is on for any type of device: PyTorch's own answer leaves out Apple's."""
    return torch._C._is_any_autocast_enabled() or torch.is_autocast_enabled("mps")


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives may be asked for."""
    return forward_ad._current_level >= 0


def redispatch_below_autograd(op: Overload, keyset: Any, args: tuple[Any, ...]) -> Any:
    """The rest of the way of a call that reached autograd's implementation of ``op``."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without what it does for functorch: 2 µs."""
    return super(torch.autograd.Function, function).apply


def keep(ctx: Any, tensors: tuple[Any, ...], without_gradient: tuple[torch.Tensor, ...]) -> None:
    """``ctx.save_for_backward``, ``set_materialize_grads(False)`` and ``mark_non_differentiable`` in one call."""
    ctx.to_save = tensors
    ctx.materialize_grads = False
    if without_gradient:
        ctx.non_differentiable = without_gradient


def constant_while_traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile calls the function while it traces and keeps the answer. The public decorator,
    ``torch.compiler.assume_constant_result``, does only this, but imports torch._dynamo: two seconds."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
