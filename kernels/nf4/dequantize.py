"""``dequantize_nf4``: the numbers of an ``NF4Tensor``, in one launch, nested scales included."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..frame._triton import tl, triton
from ..frame.backend import use_triton
from ..frame.launch import Chip, cdiv
from ..frame.operator import define
from ..frame.plan import Plan, planned
from . import reference
from .decode import coded_scales, plain_scales, scales_of_codes
from .launch import dequantize_launch
from .layout import Layout, LayoutArguments
from .tensor import NF4Tensor, check_dtype


def dequantize_nf4(w: NF4Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers that ``w`` stands for: code times scale, in float32, rounded once.

    Args:
        w: from ``quantize_nf4`` or ``from_bitsandbytes``, NF4 or FP4.
        dtype: float32, bfloat16 or float16; None is ``w.dtype``.

    Raises:
        ValueError: for another dtype.
    """
    dtype = w.dtype if dtype is None else dtype
    check_dtype(dtype)
    return _dequantize_op(w.bytes, dtype, use_triton(w.to(dtype)), w.layout.arguments)


@triton.jit
def dequantize_kernel(
    record, code, out, numbers, absmax_at, nested_absmax_at, nested_code_at, offset_at,
    BLOCK: tl.constexpr, DOUBLE_QUANT: tl.constexpr, GROUP: tl.constexpr, SEGMENTS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    table = tl.load(code + tl.arange(0, 16))
    segment = tl.program_id(0).to(tl.int64) * SEGMENTS + tl.arange(0, SEGMENTS)
    # What a last segment reads past the end is there: parts are padded to 16 bytes.
    inside = segment * 32 < numbers
    block = segment * 32 // BLOCK
    if DOUBLE_QUANT:
        codes, group = coded_scales(record, absmax_at, nested_absmax_at, block, inside, GROUP)
        scale = scales_of_codes(record, nested_code_at, offset_at, codes, group)[:, None]
    else:
        scale = plain_scales(record, absmax_at, block, inside)[:, None]
    place = segment[:, None] * 16 + tl.arange(0, 16)[None, :]
    packed = tl.load(record + place, inside[:, None], other=0).to(tl.int32)
    even = tl.gather(table, (packed >> 4).reshape(SEGMENTS * 16), 0).reshape(SEGMENTS, 16)
    odd = tl.gather(table, (packed & 15).reshape(SEGMENTS * 16), 0).reshape(SEGMENTS, 16)
    values = tl.join(even * scale, odd * scale).reshape(SEGMENTS, 32)
    place = segment[:, None] * 32 + tl.arange(0, 32)[None, :]
    if EVEN:
        tl.store(out + place, values.to(out.dtype.element_ty), inside[:, None])
    else:
        tl.store(out + place, values.to(out.dtype.element_ty), place < numbers)


@planned
def _plan(chip: Chip, layout: Layout, itemsize: int) -> Plan:
    chosen = dequantize_launch(chip, itemsize)
    return Plan(
        dequantize_kernel,
        (cdiv(layout.numbers, 32 * chosen.segments),),
        *(layout.numbers, *layout.scale_starts),
        BLOCK=layout.block_size,
        DOUBLE_QUANT=layout.double_quant,
        GROUP=reference.GROUP,
        SEGMENTS=chosen.segments,
        EVEN=layout.numbers % 32 == 0,
        num_warps=chosen.warps,
    )


def by_kernel(record: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """All numbers, by the kernel."""
    out = torch.empty(layout.shape, dtype=dtype, device=record.device)
    code = reference.code_values(layout.quant_type, record.device)
    _plan(Chip.of(record.device), layout, dtype.itemsize).run(record, record, code, out)
    return out


def by_definition(record: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """All numbers, by the definition."""
    w = NF4Tensor(record, layout, torch.float32)
    code = reference.code_values(layout.quant_type, record.device)
    return reference.dequantize(w.packed, w.scales, code, w.shape, layout.block_size, dtype)


class DequantizeCall(NamedTuple):
    record: Tensor
    dtype: torch.dtype
    kernels: bool  # or the definition
    packing: LayoutArguments

    def allocate(self) -> Tensor:
        return torch.empty(self.packing.shape, dtype=self.dtype, device=self.record.device)


def _dequantize(call: DequantizeCall) -> Tensor:
    record, dtype, kernels, packing = call
    return (by_kernel if kernels else by_definition)(record, Layout.of(*packing), dtype)


_dequantize_op = define("nf4_dequantize", DequantizeCall, _dequantize)
