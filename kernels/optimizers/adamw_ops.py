"""The operators of ``adamw_`` and ``adamw_8bit_``: what they are called with, and how a list of tensors is cut into
launches."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.call import MutatedTensors
from ..frame.launch import Chip, cdiv, run
from ..frame.operator import define
from . import adamw_reference as reference
from .adamw_kernels import adamw_8bit_kernel, adamw_kernel
from .adamw_reference import Settings
from .launch import PROGRAM, TENSORS, adamw_launch


class AdamWCall(NamedTuple):
    params: MutatedTensors
    grads: list[Tensor]
    exp_avg: MutatedTensors
    exp_avg_sq: MutatedTensors
    masters: MutatedTensors  # empty where there are none
    steps: list[Tensor]
    settings: Settings

    def allocate(self) -> None:
        """It works in place."""


class AdamW8bitCall(NamedTuple):
    params: MutatedTensors
    grads: list[Tensor]
    exp_avg: MutatedTensors
    exp_avg_sq: MutatedTensors
    exp_avg_max: MutatedTensors
    exp_avg_sq_max: MutatedTensors
    masters: MutatedTensors  # empty where there are none
    steps: list[Tensor]
    settings: Settings

    def allocate(self) -> None:
        """It works in place."""


def update(call: AdamWCall) -> None:
    params, *columns, masters, steps, settings = call
    launch_all(adamw_kernel, params, columns, masters, steps, (), settings)


def update_8bit(call: AdamW8bitCall) -> None:
    params, *columns, masters, steps, settings = call
    tables = code_tables(params[0].device)
    launch_all(adamw_8bit_kernel, params, columns, masters, steps, tables, settings)


_tables: dict[torch.device, tuple[Tensor, Tensor]] = {}


def code_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the codes of the signed and the unsigned moment stand for, on a device; made once."""
    if device not in _tables:
        _tables[device] = tuple(reference.dynamic_code(signed).to(device) for signed in (True, False))
    return _tables[device]


def launches(sizes: Sequence[int]) -> Iterator[tuple[list[int], list[int], int, bool]]:
    """Of each launch: the tensors, the first program of each, how many programs there are, and whether all sizes are
    even (multiples of 16, which leaves accesses whole). What is missing to TENSORS repeats one, without a program."""
    for even in (True, False):
        members = [i for i, size in enumerate(sizes) if size and (size % 16 == 0) == even]
        for start in range(0, len(members), TENSORS):
            part = members[start : start + TENSORS]
            firsts = [0]
            for i in part:
                firsts.append(firsts[-1] + cdiv(sizes[i], PROGRAM))
            missing = TENSORS - len(part)
            yield part + part[-1:] * missing, firsts[:-1] + firsts[-1:] * missing, firsts[-1], even


def launch_all(
    kernel,
    params: list[Tensor],
    columns: list[list[Tensor]],
    masters: list[Tensor],
    steps: list[Tensor],
    tables: tuple[Tensor, ...],
    settings: Settings,
) -> None:
    """``kernel`` on every tensor of the list; ``columns`` hold what else there is of each."""
    s = settings
    chosen = adamw_launch(Chip.of(params[0].device), kernel.__name__, params[0].element_size())
    sizes = [param.numel() for param in params]
    for members, firsts, programs, even in launches(sizes):
        run(
            kernel,
            (programs,),
            params[0],
            *(tuple(column[i] for i in members) for column in (params, *columns)),
            tuple(masters[i] for i in members) if masters else None,
            tuple(steps[i] for i in members),
            *(tuple(map(disguised, numbers)) for numbers in (members, firsts, [sizes[i] for i in members])),
            *(*tables, s.lr, s.scale, s.found_inf, s.seed or 0, s.stream, _log(s.beta1), _log(s.beta2)),
            *(1 - s.beta1, 1 - s.beta2, s.eps, s.weight_decay),
            STOCHASTIC=s.seed is not None,
            MAXIMIZE=s.maximize,
            EVEN=even,
            num_warps=chosen.warps,
        )


def disguised(number: int) -> int:
    """A whole number as the kernels take it in a tuple: always of 64 bits, never 1 or a multiple of 16, since Triton
    would compile a kernel of its own for each of these."""
    return 2**48 + 2 * number + 1


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -1e30


adamw_op = define("adamw", AdamWCall, update)
adamw_8bit_op = define("adamw_8bit", AdamW8bitCall, update_8bit)
