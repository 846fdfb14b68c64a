"""What a launch needs: the chip, how the rows of a tensor lie in memory, and the one place that launches.

Launch choices are pure functions of shape, dtype and ``Device``, so that the compile gate can ask them for
every chip on a machine that has none.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

KIB = 1024


@dataclass(frozen=True)
class Device:
    """The facts about a chip that launch choices depend on."""

    capability: int  # 10 · major + minor
    shared_memory: int  # bytes that one program may take
    multiprocessors: int

    @staticmethod
    def of(device: torch.device) -> "Device":
        """The chip of a torch device; asked of the driver once per device."""
        facts = _devices.get(device)
        if facts is None:
            facts = _devices[device] = _ask(device)
        return facts


# Shared memory per program as the CUDA C++ programming guide, table "Technical Specifications per Compute
# Capability", gives it; multiprocessors of the common card of each kind.
CHIPS = {
    80: Device(80, 163 * KIB, 108),  # A100
    86: Device(86, 99 * KIB, 84),  # RTX 3090, A40
    89: Device(89, 99 * KIB, 128),  # RTX 4090, L40S
    90: Device(90, 227 * KIB, 132),  # H100, H200
    100: Device(100, 227 * KIB, 148),  # B200
    120: Device(120, 99 * KIB, 170),  # RTX 5090
}
# Few multiprocessors, so that the interpreter takes the paths on which one program handles several tiles.
INTERPRETER = Device(80, 163 * KIB, 2)

_devices: dict[torch.device, Device] = {torch.device("cpu"): INTERPRETER}


def set_device(device: torch.device, facts: Device) -> None:
    """Makes launch choices on a torch device those of another chip: the compile gate's meta tensors."""
    _devices[device] = facts


def _ask(device: torch.device) -> Device:
    properties = torch.cuda.get_device_properties(device)
    return Device(
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
    if torch.version.hip:
        options.pop("maxnreg", None)  # NVIDIA's alone
    options["enable_fp_fusion"] = True  # Triton's default up to 3.9: slower and less exact without
    device = like.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **options)
    elif device.type == "meta":
        compile_only(kernel, grid, args, options)
    else:
        kernel[grid](*args, **options)


def compile_only(kernel, grid: tuple[int, ...], args: tuple, options: dict) -> None:
    """What a launch on meta tensors does: nothing, until the compile gate puts its compiler here."""


def empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor of the same shape, not filled; ``torch.empty`` takes the host three times as long."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class Rows(NamedTuple):
    """The rows (all dimensions but the last) of a tensor whose last dimension is contiguous.

    Row r lies at ``(r // (n1·n2))·s0 + (r // n2 % n1)·s1 + (r % n2)·s2`` elements from the start.
    """

    count: int
    width: int
    strides: tuple[int, int, int, int, int]  # n1, n2, s0, s1, s2
    strided: bool


def rows_of(x: Tensor) -> tuple[Tensor, Rows]:
    """``x`` and how its rows lie; a tensor that needs more than three strides, or whose last dimension is not
    contiguous, is copied."""
    width = x.shape[-1]
    count = x.numel() // width if width else 0
    if x.is_contiguous():
        return x, Rows(count, width, (1, 1, width, 0, 0), False)
    levels: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if levels and levels[-1][1] == size * stride:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    if len(levels) > 3 or (x.stride(-1) != 1 and width != 1):
        return rows_of(x.contiguous())
    (_, s0), (n1, s1), (n2, s2) = [(1, 0)] * (3 - len(levels)) + levels
    return x, Rows(count, width, (n1, n2, s0, s1, s2), True)


def evenly_spaced_rows(x: Tensor) -> tuple[Tensor, int]:
    """``x`` and the one distance between its rows, in elements; copied where there is no such distance."""
    x, rows = rows_of(x)
    if not rows.strided:
        return x, rows.width
    _, n2, _, _, s2 = rows.strides
    return (x, s2) if n2 == rows.count else (x.contiguous(), rows.width)


def row_count(x: Tensor) -> int:
    return math.prod(x.shape[:-1])
