"""The operator of ``rope``: what it is called with, what is launched, and the derivative, which is the turn back."""

import math
from typing import NamedTuple

from torch import Tensor

from ..frame.launch import Chip, cdiv, contiguous, empty, next_power_of_2, run
from ..frame.operator import define
from .kernels import EXPONENT_BITS, rope_kernel
from .launch import launch


class Rotation(NamedTuple):
    """By which angles which columns turn."""

    positions: Tensor | None  # (S,) or (B, S), or of three axes (3, S) or (3, B, S)
    cos: Tensor | None  # (positions, rotary_dim / 2)
    sin: Tensor | None  # as cos
    base: float
    rotary_dim: int
    sections: list[int]  # how many pairs turn by the positions of each axis; empty for one axis
    interleaved: bool
    inverse: bool

    @staticmethod
    def fields(call: "RopeCall", *outputs: Tensor) -> tuple:
        return call.rotation

    def turned_back(self) -> tuple:
        """The fields of the opposite rotation."""
        return *self[:-1], not self.inverse


class RopeCall(NamedTuple):
    q: Tensor  # (B, S, H, D)
    k: Tensor | None  # (B, S, K, D)
    rotation: Rotation

    def allocate(self) -> tuple[Tensor, Tensor]:
        return empty(self.q), self.q.new_empty(0) if self.k is None else empty(self.k)


def rotate(call: RopeCall) -> tuple[Tensor, Tensor]:
    q_out, k_out = call.allocate()
    q, k, (positions, cos, sin, base, rotary_dim, sections, interleaved, inverse) = call
    batch, length, q_heads, width = q.shape
    k_heads = 0 if k is None else k.shape[2]
    if q.stride(3) != 1:
        q = q.contiguous()
    if k is not None and k.stride(3) != 1:
        k = k.contiguous()
    position_strides = (0, 0, 0)
    if positions is not None:
        axis, *strides = positions.stride() if sections else (0, *positions.stride())
        position_strides = (0, *strides, axis) if len(strides) == 1 else (*strides, axis)
    chosen = launch(Chip.of(q.device), max(q_heads, k_heads), rotary_dim)
    passed = width - rotary_dim
    run(
        rope_kernel,
        (batch * length, cdiv(q_heads, chosen.heads) + cdiv(k_heads, chosen.heads)),
        q,
        *(q, k, q_out, k_out, positions, contiguous(cos), contiguous(sin)),
        *(length, 0 if cos is None else cos.shape[0]),
        round(math.log2(base) * 2 / rotary_dim * 2**EXPONENT_BITS),
        *q.stride()[:3],
        *((0, 0, 0) if k is None else k.stride()[:3]),
        *position_strides,
        Q_HEADS=q_heads,
        K_HEADS=k_heads,
        HEADS=chosen.heads,
        HALF=rotary_dim // 2,
        HALF_BLOCK=next_power_of_2(rotary_dim // 2),
        PASSED=passed,
        PASSED_BLOCK=next_power_of_2(passed),
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        FIRST_END=sections[0] if sections else 0,
        SECOND_END=sum(sections[:2]),
        num_warps=chosen.warps,
    )
    return q_out, k_out


def _differentiate(rotation: Rotation, wanted, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple:
    if not wanted[1]:
        grad_k = None
    back = rotation.turned_back()
    if grad_q is None:
        return None, None if grad_k is None else rope_op(grad_k, None, back)[0]
    back_q, back_k = rope_op(grad_q, grad_k, back)
    return back_q, None if grad_k is None else back_k


rope_op = define("rope", RopeCall, rotate, keeps=Rotation, backward=_differentiate)
