"""Which path an op takes: its Triton kernels, or its plain PyTorch definition."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ._triton import HAS_TRITON, INTERPRETING
from .launch import Chip
from .torch_private import constant_while_traced, in_forward_mode, transforms_active

CHOICES = ("auto", "triton", "reference")
OLDEST_CAPABILITY = 80
KERNEL_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16))

_choice = "auto"
_warned: set[str] = set()


class backend:
    """Chooses the path of every op of the process, from here on or for a ``with`` block.

    - ``"auto"`` (at the start): Triton for CUDA tensors on a supported GPU, the reference for all others.
      Where a CUDA tensor cannot take Triton, one warning says why.
    - ``"triton"``: Triton, always; a dtype without kernels, a DTensor, and a call inside of torch.func's transforms
      are ValueErrors. CPU tensors then need Triton's interpreter:
      ``TRITON_INTERPRET=1`` in the environment before the first import.
    - ``"reference"``: plain PyTorch, always.

    Example::

        llmfast.kernels.backend("reference")
        with llmfast.kernels.backend("triton"):
            y = rms_norm(x, weight)

    Raises:
        ValueError: for any other name.
    """

    def __init__(self, choice: str):
        global _choice
        if choice not in CHOICES:
            raise ValueError(f"backend is one of {', '.join(CHOICES)}, got {choice!r}")
        self._previous, _choice = _choice, choice

    def __enter__(self) -> "backend":
        return self

    def __exit__(self, *_: object) -> None:
        global _choice
        _choice = self._previous


def is_transformed() -> bool:
    """Whether torch.func's transforms or forward-mode derivatives are at work, for which operators have no rules."""
    return not torch.compiler.is_compiling() and (transforms_active() or in_forward_mode())


def use_triton(first: Any, *others: Tensor | None) -> bool:
    """Whether an op on these tensors runs its Triton kernels; the first tensor says on which device."""
    if _choice == "reference":
        return False
    if _choice == "auto" and not first.is_cuda:
        return False
    for tensor in (first, *others):
        if tensor is None:
            continue
        if tensor.dtype not in KERNEL_DTYPES:
            return _refuse(f"there is no kernel for {tensor.dtype}")
        if type(tensor).__name__ == "DTensor":
            return _refuse("a kernel sees one process's part of a DTensor only (x.to_local() is that part)")
    if is_transformed():
        return _refuse("kernels have no rules for torch.func's transforms and forward-mode derivatives")
    device = first.device
    if _choice == "triton":
        _require_triton(device)
        return True
    reason = _why_unsupported(device.index)
    return not reason or _refuse(reason)


def _require_triton(device: torch.device) -> None:
    if not HAS_TRITON:
        raise ValueError('backend("triton") needs the package triton, which is not installed')
    if device.type == "cpu" and not INTERPRETING:
        raise ValueError(
            'backend("triton") got a CPU tensor: set TRITON_INTERPRET=1 in the environment to interpret the '
            'kernels, or choose backend("auto")'
        )


@constant_while_traced
def _why_unsupported(device_index: int) -> str:
    """Why the kernels cannot run on this CUDA device; empty where they can."""
    if not HAS_TRITON:
        return "the package triton is not installed"
    if torch.version.hip:
        return "the kernels are not proven on AMD GPUs"
    capability = Chip.of(torch.device("cuda", device_index)).capability  # PyTorch would ask the driver in every call.
    if capability < OLDEST_CAPABILITY:
        return f"compute capability {capability // 10}.{capability % 10} is older than 8.0"
    return ""


def _refuse(reason: str) -> bool:
    if _choice == "triton":
        raise ValueError(f'backend("triton"), but {reason}: choose backend("auto")')
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"llmfast.kernels computes in plain PyTorch: {reason} "
            '(llmfast.kernels.backend("reference") chooses this silently, "triton" forces the kernels)',
            stacklevel=4,
        )
    return False
