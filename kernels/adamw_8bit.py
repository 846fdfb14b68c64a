"""``adamw_`` with both moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861): 2 bytes a parameter in place of 8.

256 moments in a row of memory share their largest magnitude, in float32. Each is stored as the code of its share of
that, in bitsandbytes' dynamic map: seven decades, with most of the codes in the highest, so that the error is at most
0.71 % of the largest magnitude (squares, which need no sign, 0.36 %), and less for what is small. An update decodes,
computes in float32 and codes anew, in one pass. State is bit-compatible with bitsandbytes' ``AdamW8bit``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .adamw_call import (
    SETTINGS,
    check_dtype,
    check_lists,
    count_step,
    flat_gradients,
    flat_parameters,
    flat_state,
    launch_all,
    settings_of,
    write_back,
)
from .adamw_kernels import adamw_8bit_kernel
from .backend import use_triton
from .gate import GateCase
from .launch import Device, cdiv
from .operator import define
from .reference import adamw as definition
from .reference.adamw import BLOCK, Moments, Settings

# -------------------------------------------------------------------------------------------------- operator

_tables: dict[torch.device, tuple[Tensor, Tensor]] = {}


def code_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the codes of the signed and the unsigned moment stand for, on a device; made once."""
    if device not in _tables:
        _tables[device] = tuple(definition.dynamic_code(signed).to(device) for signed in (True, False))
    return _tables[device]


def _run(params, grads, exp_avg, exp_avg_sq, exp_avg_max, exp_avg_sq_max, masters, steps, *settings) -> None:
    columns = [grads, exp_avg, exp_avg_sq, exp_avg_max, exp_avg_sq_max]
    tables = code_tables(params[0].device)
    launch_all(adamw_8bit_kernel, params, columns, masters, steps, tables, Settings(*settings))


def _nothing(*_) -> None:
    """What an operator that works in place allocates."""


_adamw_8bit_op = define(
    "adamw_8bit(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, "
    "Tensor(d!)[] exp_avg_max, Tensor(e!)[] exp_avg_sq_max, Tensor(f!)[] masters, Tensor[] steps, "
    f"{SETTINGS}) -> ()",
    _run,
    _nothing,
)

# ------------------------------------------------------------------------------------------- public function


@torch.no_grad()
def adamw_8bit_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    exp_avg_max: Sequence[Tensor],
    exp_avg_sq_max: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    maximize: bool = False,
    masters: Sequence[Tensor] | None = None,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    seed: int | None = None,
    stream: int = 0,
) -> None:
    """``adamw_`` with 8-bit moments, in place (Dettmers et al. 2022, arXiv:2110.02861).

    Args:
        exp_avg, exp_avg_sq: codes of the running means of gradient and squared gradient, uint8 in the memory order of
            their parameters; at the start, zeros. Overwritten.
        exp_avg_max, exp_avg_sq_max: the largest magnitude of each 256 of them, float32 (⌈elements / 256⌉,); at the
            start, zeros. Overwritten.

        All others are those of ``adamw_``.

    Raises:
        ValueError: as ``adamw_``; or maxima of another number.

    Example::

        >>> import torch
        >>> weight, step = torch.ones(300), torch.tensor(0.0)
        >>> codes = [torch.zeros(300, dtype=torch.uint8) for _ in range(2)]
        >>> maxima = [torch.zeros(2) for _ in range(2)]
        >>> state = ([x] for x in (*codes, *maxima, step))
        >>> adamw_8bit_([weight], [torch.ones(300)], *state, lr=0.1, weight_decay=0.0)
        >>> weight[:3]
        tensor([0.9000, 0.9000, 0.9000])
    """
    codes = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    maxima = {"exp_avg_max": exp_avg_max, "exp_avg_sq_max": exp_avg_sq_max}
    check_lists(params, {"grads": grads, **codes, **maxima, "masters": masters, "steps": steps})
    if not params:
        return
    check_dtype("masters", masters, torch.float32)
    for name, tensors in codes.items():
        check_dtype(name, tensors, torch.uint8)
    for name, tensors in maxima.items():
        _check_maxima(name, tensors, params)
    settings = settings_of(
        *(params, masters, lr, betas, eps, weight_decay, maximize, scale, found_inf, seed, stream)
    )
    flat = flat_parameters(params)
    flat_grads = flat_gradients(grads, params)
    means, squares = (flat_state(name, tensors, params) for name, tensors in codes.items())
    flat_masters = flat_state("masters", masters, params)
    count_step(steps, found_inf)
    state = (flat_grads, means, squares, *map(list, maxima.values()))
    if use_triton(flat[0], flat_grads[0]):
        _adamw_8bit_op(flat, *state, flat_masters, list(steps), *settings)
    else:
        for i, (param, grad, *moments) in enumerate(zip(flat, *state, strict=True)):
            master = flat_masters[i] if masters else None
            code, largest = Moments(*moments[:2]), Moments(*moments[2:])
            definition.adamw_8bit_(param, grad, code, largest, master, steps[i], i, settings)
    write_back(params, flat)


def _check_maxima(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    check_dtype(name, tensors, torch.float32)
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        wanted = (cdiv(param.numel(), BLOCK),)
        if tensor.shape != wanted or not tensor.is_contiguous():
            raise ValueError(
                f"{name}[{i}] must be contiguous of shape {wanted}, one for each {BLOCK} elements of its parameter, "
                f"got {tuple(tensor.shape)}"
            )


# ----------------------------------------------------------------------------------------------- compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """Parameters of each kind, and sizes that are not even."""
    yield _gate_case(torch.float32, 2**20)
    yield _gate_case(torch.bfloat16, 2**20)
    yield _gate_case(torch.bfloat16, 2**20 - 1)
    yield _gate_case(torch.bfloat16, 2**20, "stochastic")
    yield _gate_case(torch.bfloat16, 2**20, "masters")


def _gate_case(dtype: torch.dtype, size: int, kind: str = "") -> GateCase:
    def update() -> None:
        def make(dtype: torch.dtype, *shape: int) -> list[Tensor]:
            return [torch.empty(shape, dtype=dtype, device="meta") for _ in range(3)]

        codes, maxima = make(torch.uint8, size), make(torch.float32, cdiv(size, BLOCK))
        masters = make(torch.float32, size) if kind == "masters" else []
        one = make(torch.float32)[0]
        settings = Settings(
            one, 0.9, 0.95, 1e-8, 0.1, False, one, one, 1 if kind == "stochastic" else None, 0
        )
        state = (codes, codes, maxima, maxima, masters, make(torch.float32))
        _run(make(dtype, size), make(dtype, size), *state, *settings)

    name = f"{str(dtype).removeprefix('torch.')} {kind}".strip()
    return GateCase("adamw_8bit", f"{name}{'' if size % 16 == 0 else ', odd'}", update)
