"""``dequantize_nf4``: the numbers of an ``NF4Tensor``, in one launch, nested scales included."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .._triton import tl, triton
from ..backend import use_triton
from ..launch import Device, cdiv, run
from ..operator import define
from ..reference import nf4 as definition
from ..tuned import tuned
from .decode import coded_scales, plain_scales, scales_of_codes
from .layout import SCHEMA, Layout
from .tensor import NF4Tensor, check_dtype

# -------------------------------------------------------------------------------------------- launch choices

SEGMENT = 16  # bytes that a thread loads at once: 32 numbers, of one block


@dataclass(frozen=True)
class DequantizeLaunch:
    """A program decodes ``segments`` runs of 16 bytes."""

    segments: int
    warps: int


@tuned("nf4", DequantizeLaunch)
@lru_cache
def dequantize_launch(device: Device, itemsize: int) -> DequantizeLaunch:
    """One 16-byte load a thread, and 64 bytes (16-bit results) or 128 bytes to store."""
    return DequantizeLaunch(segments=128, warps=4)


# ---------------------------------------------------------------------------------------------------- kernel


@triton.jit
def dequantize_kernel(
    record, code, out, numbers, absmax_at, nested_absmax_at, nested_code_at, offset_at,
    BLOCK: tl.constexpr, DOUBLE_QUANT: tl.constexpr, GROUP: tl.constexpr, SEGMENTS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    table = tl.load(code + tl.arange(0, 16))
    segment = tl.program_id(0).to(tl.int64) * SEGMENTS + tl.arange(0, SEGMENTS)
    inside = (
        segment * 32 < numbers
    )  # what a last segment reads past the end is there: parts are padded to 16 bytes
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


def by_kernel(record: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """All numbers, by the kernel."""
    out = torch.empty(layout.shape, dtype=dtype, device=record.device)
    chosen = dequantize_launch(Device.of(record.device), dtype.itemsize)
    run(
        dequantize_kernel,
        (cdiv(layout.numbers, 32 * chosen.segments),),
        record,
        *(record, definition.code_values(layout.quant_type, record.device), out, layout.numbers),
        *layout.scale_starts,
        BLOCK=layout.block_size,
        DOUBLE_QUANT=layout.double_quant,
        GROUP=definition.GROUP,
        SEGMENTS=chosen.segments,
        EVEN=layout.numbers % 32 == 0,
        num_warps=chosen.warps,
    )
    return out


# -------------------------------------------------------------------------------------------------- operator


def _allocate(record: Tensor, dtype: torch.dtype, kernels: bool, shape: list[int], *_) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=record.device)


def _run(record: Tensor, dtype: torch.dtype, kernels: bool, *layout) -> Tensor:
    return (by_kernel if kernels else by_definition)(record, Layout.of(*layout), dtype)


def by_definition(record: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    w = NF4Tensor(record, layout, torch.float32)
    code = definition.code_values(layout.quant_type, record.device)
    return definition.dequantize(w.packed, w.scales, code, w.shape, layout.block_size, dtype)


_dequantize_op = define(
    f"nf4_dequantize(Tensor record, ScalarType dtype, bool kernels, {SCHEMA}) -> Tensor", _run, _allocate
)


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
    return _dequantize_op(w.bytes, dtype, use_triton(w.to(dtype)), *w.layout.arguments)
