"""The arguments that ``adamw_`` and ``adamw_8bit_`` share, checked, and tensors laid flat in memory order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..frame.checks import as_integer, check_floating, check_number, on_one_device
from .adamw_reference import Settings


def settings_of(
    params: Sequence[Tensor],
    masters: Sequence[Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool,
    scale: Tensor | None,
    found_inf: Tensor | None,
    seed: int | None,
    stream: int,
) -> Settings:
    """The settings of a call, checked, with the learning rate on the device."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {tuple(betas)}")
    check_number("eps", eps, least=0.0)
    check_number("weight_decay", weight_decay)
    if not 0 <= as_integer("stream", stream) < 2**31:
        raise ValueError(f"stream must be from 0 to 2^31 - 1, got {stream}")
    for name, scalar in (("lr", lr), ("scale", scale), ("found_inf", found_inf)):
        _check_scalar(name, scalar, params[0])
    if seed is not None:
        if masters:
            raise ValueError("seed asks for stochastic rounding, which parameters with masters do not need")
        if params[0].dtype != torch.bfloat16:
            raise ValueError(f"seed asks for stochastic rounding, which is to bfloat16, got {params[0].dtype}")
        if not -(2**63) <= as_integer("seed", seed) < 2**63:
            raise ValueError(f"seed must be an integer of 64 bits with a sign, got {seed}")
    if not isinstance(lr, Tensor):
        dtype = torch.promote_types(params[0].dtype, torch.float32)
        lr = torch.full((), lr, dtype=dtype, device=params[0].device)
    return Settings(lr, *betas, eps, weight_decay, maximize, scale, found_inf, seed, stream)


def _check_scalar(name: str, scalar: Any, param: Tensor) -> None:
    if name == "lr" and not isinstance(scalar, Tensor):
        check_number("lr", scalar, least=0.0)
    elif scalar is not None and not (
        isinstance(scalar, Tensor) and scalar.numel() == 1 and on_one_device(scalar, param) and not scalar.is_complex()
    ):
        got = f"{tuple(scalar.shape)} on {scalar.device}" if isinstance(scalar, Tensor) else repr(scalar)
        raise ValueError(f"{name} must be a tensor of one number on {param.device}, got {got}")


def check_lists(params: Sequence[Tensor], lists: dict[str, Sequence[Tensor] | None]) -> None:
    """Each list has a tensor for each parameter, all on one device and of one dtype."""
    for name, tensors in {"params": params, **lists}.items():
        if tensors is None:
            continue
        if len(tensors) != len(params):
            raise ValueError(f"{name} must hold a tensor for each of {len(params)} parameters, got {len(tensors)}")
        for i, tensor in enumerate(tensors):
            if tensor.device != params[0].device:
                raise ValueError(f"{name}[{i}] is on {tensor.device}, params[0] on {params[0].device}")
            if tensor.dtype != tensors[0].dtype:
                raise ValueError(f"{name}[{i}] is {tensor.dtype}, {name}[0] is {tensors[0].dtype}")
            if tensor.layout != torch.strided:
                raise ValueError(f"{name}[{i}] must be dense, got {tensor.layout}")
        if tensors and name in ("params", "grads", "steps"):
            check_floating(name, tensors[0])
    for i, step in enumerate(lists["steps"] or ()):
        if step.numel() != 1:
            raise ValueError(f"steps[{i}] must be one number, got shape {tuple(step.shape)}")


def check_dtype(name: str, tensors: Sequence[Tensor] | None, dtype: torch.dtype) -> None:
    if tensors and tensors[0].dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensors[0].dtype}")


def flat_parameters(params: Sequence[Tensor]) -> list[Tensor]:
    """The elements of each in memory order, as views; of those with gaps between them, copies, see ``write_back``."""
    return [_flat(param if _is_dense(param) else torch.empty_like(param).copy_(param)) for param in params]


def write_back(params: Sequence[Tensor], flat: list[Tensor]) -> None:
    """What was updated in a copy goes where it came from."""
    for param, updated in zip(params, flat, strict=True):
        if not _is_dense(param):
            param.copy_(updated.as_strided(param.shape, torch.empty_like(param).stride()))


def flat_gradients(grads: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """The elements of each in the memory order of its parameter; copied where its own is another."""
    flat = []
    for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
        if grad.shape != param.shape:
            raise ValueError(f"grads[{i}] must have shape {tuple(param.shape)}, got {tuple(grad.shape)}")
        if grad.stride() != param.stride() or not _is_dense(grad):
            grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
        flat.append(_flat(grad))
    return flat


def flat_state(name: str, tensors: Sequence[Tensor] | None, params: Sequence[Tensor]) -> list[Tensor]:
    """The elements of each, which must have the memory order of its parameter, as views."""
    for i, (tensor, param) in enumerate(zip(tensors or (), params, strict=False)):
        like = param if _is_dense(param) else torch.empty_like(param)
        if tensor.shape != param.shape or tensor.stride() != like.stride():
            raise ValueError(
                f"{name}[{i}] must have the shape {tuple(param.shape)} and strides {like.stride()} that "
                f"torch.zeros_like gives for its parameter, got {tuple(tensor.shape)} and {tensor.stride()}"
            )
    return [_flat(tensor) for tensor in tensors or ()]


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, without gaps and overlaps."""
    return x.is_contiguous() or torch.empty_like(x).stride() == x.stride()


def _flat(x: Tensor) -> Tensor:
    return x.detach().as_strided((x.numel(),), (1,))


def count_step(steps: Sequence[Tensor], found_inf: Tensor | None) -> None:
    """One update more, unless it is to be left out."""
    torch._foreach_add_(list(steps), 1.0 if found_inf is None else (found_inf == 0).float().reshape(()))
