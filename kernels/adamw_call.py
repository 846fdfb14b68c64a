"""What ``adamw_`` and ``adamw_8bit_`` share: their arguments, checked and laid flat, and a list of tensors cut into
launches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .launch import Device, cdiv, run
from .reference.adamw import LANES, WORDS, Settings
from .tuned import tuned

# -------------------------------------------------------------------------------------------- launch choices

TENSORS = 16  # of a launch: about a kilobyte of pointers, of the 4 KiB that arguments may take
PROGRAM = LANES * WORDS  # elements


@dataclass(frozen=True)
class AdamWLaunch:
    """A program steps through PROGRAM elements."""

    warps: int


@tuned("optimizer", AdamWLaunch)
@lru_cache
def adamw_launch(device: Device, kernel: str, itemsize: int) -> AdamWLaunch:
    """Eight elements a thread at a time: one 16-byte access in bfloat16, two in float32."""
    return AdamWLaunch(warps=4)


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
    chosen = adamw_launch(Device.of(params[0].device), kernel.__name__, params[0].element_size())
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
    torch.autograd.graph.increment_version(
        [*params, *masters]
    )  # What autograd saved of them is no longer valid.


def disguised(number: int) -> int:
    """A whole number as the kernels take it in a tuple: always of 64 bits, never 1 or a multiple of 16, since Triton
    would compile a kernel of its own for each of these."""
    return 2**48 + 2 * number + 1


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -1e30


# ---------------------------------------------------------------------------------------------------- arguments

SETTINGS = (
    "Tensor lr, float beta1, float beta2, float eps, float weight_decay, bool maximize, Tensor? scale, "
    "Tensor? found_inf, int? seed, int stream"
)  # as the schema of an operator has them


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
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"betas must be in [0, 1), got {tuple(betas)}")
    if seed is not None:
        if masters:
            raise ValueError("seed asks for stochastic rounding, which parameters with masters do not need")
        if params[0].dtype != torch.bfloat16:
            raise ValueError(
                f"seed asks for stochastic rounding, which is to bfloat16, got {params[0].dtype}"
            )
    if not isinstance(lr, Tensor):
        dtype = torch.promote_types(params[0].dtype, torch.float32)
        lr = torch.full((), lr, dtype=dtype, device=params[0].device)
    return Settings(lr, *betas, eps, weight_decay, maximize, scale, found_inf, seed, stream)


def check_lists(params: Sequence[Tensor], lists: dict[str, Sequence[Tensor] | None]) -> None:
    """Each list has a tensor for each parameter, all on one device and of one dtype."""
    for name, tensors in {"params": params, **lists}.items():
        if tensors is None:
            continue
        if len(tensors) != len(params):
            raise ValueError(
                f"{name} must hold a tensor for each of {len(params)} parameters, got {len(tensors)}"
            )
        for i, tensor in enumerate(tensors):
            if tensor.device != params[0].device:
                raise ValueError(f"{name}[{i}] is on {tensor.device}, params[0] on {params[0].device}")
            if tensor.dtype != tensors[0].dtype:
                raise ValueError(f"{name}[{i}] is {tensor.dtype}, {name}[0] is {tensors[0].dtype}")


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
