"""What a launch needs: the chip, how the rows of a tensor lie in memory, and the one place that launches.

Launch choices are pure functions of shape, dtype and ``Chip``, so that the compile check can ask them for
every chip on a machine that has none.
"""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .direct import launch

KIB = 1024


class Chip(NamedTuple):
    """The facts about a chip that launch choices depend on. (A tuple, whose hash a memory of choices gets at once.)"""

    capability: int  # 10 · major + minor
    shared_memory: int  # bytes that one program may take
    multiprocessors: int

    @staticmethod
    def of(device: torch.device) -> "Chip":
        """The chip of a torch device; asked of the driver once per device."""
        facts = _chips.get(device)
        if facts is None:
            facts = _chips[device] = _ask(device)
        return facts


# Shared memory per program as the CUDA C++ programming guide, table "Technical Specifications per Compute
# Capability", gives it; multiprocessors of the common card of each kind.
CHIPS = {
    80: Chip(80, 163 * KIB, 108),  # A100
    86: Chip(86, 99 * KIB, 84),  # RTX 3090, A40
    89: Chip(89, 99 * KIB, 128),  # RTX 4090, L40S
    90: Chip(90, 227 * KIB, 132),  # H100, H200
    100: Chip(100, 227 * KIB, 148),  # B200
    120: Chip(120, 99 * KIB, 170),  # RTX 5090
}
# Few multiprocessors, so that the interpreter takes the paths on which one program handles several tiles.
INTERPRETER = Chip(80, 163 * KIB, 2)

_chips: dict[torch.device, Chip] = {torch.device("cpu"): INTERPRETER}


def set_chip(device: torch.device, facts: Chip) -> None:
    """Makes launch choices on a torch device those of another chip: the compile check's meta tensors."""
    _chips[device] = facts


def _ask(device: torch.device) -> Chip:
    properties = torch.cuda.get_device_properties(device)
    return Chip(
        10 * properties.major + properties.minor,
        properties.shared_memory_per_block_optin,
        properties.multi_processor_count,
    )


def run(kernel, grid: tuple[int, ...], like: Tensor, *args, **options) -> None:
    """Launches ``kernel[grid](*args, **options)`` on the device of ``like``; an empty grid launches nothing.

    Triton launches on the current device, which need not be that of the tensors.
    """
    if 0 in grid:
        return
    options = settled(options)
    if like.is_meta:
        compile_only(kernel, grid, args, options)
    elif is_elsewhere(like):
        with torch.cuda.device(like.device):
            launch(kernel, grid, args, options)
    else:
        launch(kernel, grid, args, options)


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a launch, with those that are the same for all kernels."""
    if torch.version.hip:
        options.pop("maxnreg", None)  # NVIDIA's alone
    options["enable_fp_fusion"] = True  # Triton's default up to 3.9: slower and less exact without
    return options


def is_elsewhere(like: Tensor) -> bool:
    """Whether a tensor is on a CUDA device that is not the current one."""
    return like.is_cuda and like.get_device() != torch.cuda.current_device()


def compile_only(kernel, grid: tuple[int, ...], args: tuple, options: dict) -> None:
    """What a launch on meta tensors does: nothing, until the compile check puts its compiler here."""


def empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor of the same shape, not filled; ``torch.empty`` takes the host three times as long."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def contiguous(x: MaybeTensor) -> MaybeTensor:
    return None if x is None else x.contiguous()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
