"""Sums on a CPU whose bits depend on their terms alone: the definitions of batch-invariant mode.

A BLAS library adds the terms of a product in an order that depends on the shape, on the place of a row in the matrix,
on threads and on the CPU. Two ways around it:

- ``exact_product``: operands are cut into integers so small that every partial sum is an integer below 2⁵³, which
  float64 holds. No addition rounds, so that no order matters, and the BLAS library still does the work (the scheme of
  Ozaki et al. 2012, "Error-free transformations of matrix multiplication").
- ``tree_sum`` and ``weighted_sum``: elementwise additions in an order that is written here.

Elementwise sums, products, quotients and square roots are exactly rounded (IEEE 754) wherever they are computed.
Exponentials and logarithms are not: they are taken in float64, whose last bit seldom reaches a float32.
"""

import math

import torch
from torch import Tensor


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, from -1022 to 1023, to the bit, which ``torch.exp2`` does not promise."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _slices(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(high, low, exponent) of ``x`` (..., M, K): ``x ≈ (high + low · 2⁻ᵇⁱᵗˢ) · 2^(exponent − bits)``, with integers of
    at most ``bits`` bits, and an exponent (..., M, 1) per row."""
    x = x.double()
    exponent = torch.frexp(x.abs().amax(-1, keepdim=True)).exponent.clamp(-900, 1024)
    half = exponent // 2  # In two steps: 2^(bits − exponent) may be no float64.
    scaled = x * _power_of_two(-half) * _power_of_two(bits - exponent + half)
    high = scaled.round()
    return high, ((scaled - high) * 2.0**bits).round(), exponent


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.mT`` in float64 for a (..., M, K) and b (..., N, K), whose element (i, j) depends on row i of ``a`` and
    row j of ``b`` alone, whatever the BLAS library does.

    Numbers are taken to 2·bits binary digits below the largest of their row, with ``K · 2^(2·bits) ≤ 2⁵³``: 40 digits
    at K = 8192. A row that holds an infinity or NaN gives NaN.
    """
    width = a.shape[-1]
    if width == 0 or a.numel() == 0 or b.numel() == 0:
        return a.double() @ b.double().mT
    bits = (53 - math.ceil(math.log2(max(width, 2)))) // 2
    a_high, a_low, a_exponent = _slices(a, bits)
    b_high, b_low, b_exponent = _slices(b, bits)
    low = a_high @ b_low.mT + a_low @ b_high.mT
    total = a_high @ b_high.mT + low * 2.0**-bits
    return total * _power_of_two(a_exponent - bits) * _power_of_two(b_exponent.mT - bits)


class _Product(torch.autograd.Function):
    """``exact_product``, differentiated as the plain product is."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return exact_product(a, b)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return (grad @ b.double()).to(a.dtype), (grad.mT @ a.double()).to(b.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``exact_product`` with gradients; leading dimensions of ``a`` and ``b`` are equal."""
    return _Product.apply(a, b)


def tree_sum(x: Tensor) -> Tensor:
    """The sum over the last dimension, by halves: an order that depends on its length alone. Zeros that are appended
    change nothing."""
    while x.shape[-1] > 1:
        half = 1 << (x.shape[-1] - 1).bit_length() - 1
        upper = x[..., half:]
        x = x[..., :half] + torch.nn.functional.pad(upper, (0, half - upper.shape[-1]))
    return x.sum(-1)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        total = weights.new_zeros(*weights.shape[:-1], values.shape[-1])
        for key in range(values.shape[-2]):
            total += weights[..., key : key + 1] * values[..., key : key + 1, :]
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        weights, values = ctx.saved_tensors
        return grad @ values.mT, weights.mT @ grad


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """``weights @ values`` (..., S, T) by (..., T, D) in float64, first to last: a row does not depend on the others,
    nor on values behind the last of its weights that is not 0."""
    return _WeightedSum.apply(weights.double(), values.double())
