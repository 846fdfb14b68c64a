"""The operator of ``rope``: what it is called with, what is launched, and the derivative, which is the turn back."""

import math
from typing import NamedTuple

from torch import Tensor

from ..frame.launch import Chip, cdiv, contiguous, empty, next_power_of_2
from ..frame.operator import define
from ..frame.plan import Plan, planned
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


@planned
def plan(
    chip: Chip,
    shape: tuple[int, int, int, int],
    k_heads: int,
    table_rows: int,
    strides: tuple[tuple[int, ...], ...],
    base: float,
    rotary_dim: int,
    sections: tuple[int, ...],
    interleaved: bool,
    inverse: bool,
) -> Plan:
    """``strides`` of q, k and the positions, of three dimensions each."""
    batch, length, q_heads, width = shape
    chosen = launch(chip, max(q_heads, k_heads), rotary_dim)
    passed = width - rotary_dim
    return Plan(
        rope_kernel,
        (batch * length, cdiv(q_heads, chosen.heads) + cdiv(k_heads, chosen.heads)),
        *(length, table_rows),
        round(math.log2(base) * 2 / rotary_dim * 2**EXPONENT_BITS),
        *(stride for each in strides for stride in each),
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


NO_STRIDES = (0, 0, 0)


def rotate(call: RopeCall) -> tuple[Tensor, Tensor]:
    q_out, k_out = call.allocate()
    q, k, (positions, cos, sin, base, rotary_dim, sections, interleaved, inverse) = call
    if q.stride(3) != 1:
        q = q.contiguous()
    k_heads, k_strides = 0, NO_STRIDES
    if k is not None:
        k = k if k.stride(3) == 1 else k.contiguous()
        k_heads, k_strides = k.shape[2], k.stride()[:3]
    position_strides = NO_STRIDES
    if positions is not None:
        axis, *strides = positions.stride() if sections else (0, *positions.stride())
        position_strides = (0, *strides, axis) if len(strides) == 1 else (*strides, axis)
    table_rows = 0 if cos is None else cos.shape[0]
    strides = q.stride()[:3], k_strides, position_strides
    turn = (base, rotary_dim, tuple(sections), interleaved, inverse)
    chosen = plan(Chip.of(q.device), q.shape, k_heads, table_rows, strides, *turn)
    chosen.run(q, q, k, q_out, k_out, positions, contiguous(cos), contiguous(sin))
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
