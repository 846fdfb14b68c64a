"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), its stochastic rounding, and the code of its 8-bit moments."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..frame.dtypes import widen
from ..frame.philox import philox

LANES = 1024  # Elements whose random numbers are the same word of as many Philox calls
WORDS = 4
BLOCK = 256  # Elements that share one largest magnitude, among 8-bit moments
SMALLEST = 2.0**-126  # A block of smaller magnitudes counts as zeros: they have no float32 reciprocal.


class Settings(NamedTuple):
    """What all tensors of a call share: see ``llmfast.kernels.adamw_``."""

    lr: Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool
    scale: Tensor | None
    found_inf: Tensor | None
    seed: int | None
    stream: int


class Moments(NamedTuple):
    """Running means of the gradient and of its square."""

    mean: Tensor
    square: Tensor


def adamw_(
    param: Tensor,
    grad: Tensor,
    moments: Moments,
    master: Tensor | None,
    step: Tensor,
    index: int,
    s: Settings,
) -> None:
    """One update of a flat tensor in place; ``step`` counts this one. See ``llmfast.kernels.adamw_``."""
    wide, mean, square = updated(param if master is None else master, grad, moments, step, s)
    for tensor, value in ((moments.mean, mean), (moments.square, square), (master, wide)):
        if tensor is not None:
            keep_or_copy(tensor, value, s)
    keep_or_copy(param, rounded(wide, param.dtype, step, index, s), s)


def adamw_8bit_(
    param: Tensor,
    grad: Tensor,
    codes: Moments,
    largest: Moments,
    master,
    step: Tensor,
    index: int,
    s: Settings,
) -> None:
    """``adamw_`` with moments held as 8-bit codes. See ``llmfast.kernels.adamw_8bit_``."""
    tables = Moments(*(dynamic_code(signed).to(param.device) for signed in (True, False)))
    moments = Moments(*map(decode, codes, largest, tables))
    wide, *new = updated(param if master is None else master, grad, moments, step, s)
    for code, maximum, value, table in zip(codes, largest, new, tables, strict=True):
        new_code, new_maximum = encode(value, table)
        keep_or_copy(code, new_code, s)
        keep_or_copy(maximum, new_maximum, s)
    if master is not None:
        keep_or_copy(master, wide, s)
    keep_or_copy(param, rounded(wide, param.dtype, step, index, s), s)


def updated(param: Tensor, grad: Tensor, moments: Moments, step: Tensor, s: Settings) -> tuple[Tensor, ...]:
    """The new parameter, mean and square, in float32 (float64 where the parameter is)."""
    p, g = widen(param), widen(grad).to(widen(param).dtype)
    if s.scale is not None:
        g = g * s.scale
    if s.maximize:
        g = -g
    mean = moments.mean.lerp(g, 1 - s.beta1)
    square = moments.square.lerp(g * g, 1 - s.beta2)
    correction1, correction2 = (one_minus_power(beta, step).to(p.dtype) for beta in (s.beta1, s.beta2))
    direction = mean / (square.sqrt() / correction2.sqrt() + s.eps)
    return p * (1 - s.lr * s.weight_decay) - s.lr / correction1 * direction, mean, square


def one_minus_power(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step, in which nothing cancels."""
    return -torch.expm1(step.double() * math.log(beta)) if beta > 0 else torch.ones_like(step)


def keep_or_copy(tensor: Tensor, value: Tensor, s: Settings) -> None:
    tensor.copy_(value if s.found_inf is None else torch.where(s.found_inf != 0, tensor, value.to(tensor.dtype)))


# ------------------------------------------------------------------------------------------ stochastic rounding


def rounded(x: Tensor, dtype: torch.dtype, step: Tensor, index: int, s: Settings) -> Tensor:
    """``x`` in ``dtype``: nearest, or with a seed, up or down in bfloat16 with the probabilities that keep its mean."""
    if s.seed is None or dtype != torch.bfloat16:
        return x.to(dtype)
    bits = x.float().view(torch.int32).long() + random_16_bits(x.numel(), step, index, s)
    up_or_down = (bits & ~0xFFFF).to(torch.int32).view(torch.float32).to(dtype)
    return torch.where(x.isnan(), x.to(dtype), up_or_down)


def random_16_bits(count: int, step: Tensor, index: int, s: Settings) -> Tensor:
    """Of each element, the upper half of one of the four words of Philox4x32 for the counter (c, step, index, stream),
    where LANES consecutive values of c make WORDS · LANES elements."""
    element = torch.arange(count, device=step.device)
    lane = element // (LANES * WORDS) * LANES + element % LANES
    zero = torch.zeros_like(lane)
    words = torch.stack(philox(s.seed, lane, zero + step.long(), zero + index, zero + s.stream))
    return words.gather(0, (element // LANES % WORDS)[None])[0] >> 16


# ------------------------------------------------------------------------------------------- code of 8-bit moments


def dynamic_code(signed: bool) -> Tensor:
    """The 256 numbers that 8 bits stand for, ascending: bitsandbytes' dynamic map (Dettmers 2016,
    arXiv:1511.04561; by block-wise maxima, Dettmers et al. 2022, arXiv:2110.02861).

    0 and 1, and in each of seven decades below 1 the middles of 2^i (unsigned 2^(i+1)) equal parts of 0.1 … 1, i from 0
    in the lowest to 6 in the highest; signed, also their negatives.
    """
    numbers = [0.0, 1.0]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2**i + 1 if signed else 2 ** (i + 1) + 1, dtype=torch.float32)
        middles = (10.0 ** (i - 6) * ((bounds[:-1] + bounds[1:]) / 2)).tolist()
        numbers += middles + ([-x for x in middles] if signed else [])
    return torch.tensor(sorted(numbers), dtype=torch.float32)


def decode(codes: Tensor, largest: Tensor, table: Tensor) -> Tensor:
    return table[codes.long()] * largest.repeat_interleave(BLOCK)[: codes.numel()]


def encode(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of each number by the largest magnitude of its block, and those magnitudes."""
    blocks = -(-x.numel() // BLOCK)
    padded = torch.nn.functional.pad(x.float(), (0, blocks * BLOCK - x.numel())).view(blocks, BLOCK)
    largest = padded.abs().amax(1)
    normal = torch.where(largest[:, None] >= SMALLEST, padded / largest[:, None], 0.0)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(normal, middles).to(torch.uint8)
    return codes.view(-1)[: x.numel()], largest
