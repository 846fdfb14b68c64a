"""From packed bytes to numbers, inside a kernel.

Where numbers become operands of a matrix product, four bytes at a time are decoded in registers by ``prmt``,
which picks four bytes out of eight by four 3-bit selectors: a 4-bit index is such a selector and a bit that says
in which half of the sixteen codes to look. A code in 16 bits is two bytes, so there are two tables of sixteen
bytes; 22 instructions decode eight weights, with no branch, no memory and no bank conflict. See
benchmarks/log/kernels-nf4.md for what else was tried.
"""

import torch

from ..frame._triton import INTERPRETING, tl, triton
from .reference import CODES


def _table_words(quant_type: str, dtype: torch.dtype) -> list[int]:
    """The codes in 16 bits: their low bytes in four words, then their high bytes."""
    code = torch.tensor(CODES[quant_type], dtype=torch.float32)
    numbers = (code / code.abs().max()).to(dtype).view(torch.int16).tolist()
    planes = (bytes(n & 255 for n in numbers), bytes(n >> 8 & 255 for n in numbers))
    return [int.from_bytes(plane[at : at + 4], "little") for plane in planes for at in range(0, 16, 4)]


def decode_assembly(quant_type: str, dtype: torch.dtype) -> str:
    """PTX from four packed bytes ($4) to the codes of their low halves ($0, $1) and high halves ($2, $3), two in
    a register."""
    lines = [f"mov.b32 t{i}, 0x{word:08x};" for i, word in enumerate(_table_words(quant_type, dtype))]
    lines += [
        "and.b32 index, $4, 0x77777777;",  # within a half of the table
        "shr.u32 half, $4, 1;",  # the fourth bit of index i, as a selector: byte i of the first or second word
        "and.b32 half, half, 0x44444444;",
        "or.b32 half, half, 0x32103210;",
    ]
    for low, high in (("$0", "$2"), ("$1", "$3")):
        lines += [
            "prmt.b32 a, t0, t1, index;",
            "prmt.b32 b, t2, t3, index;",
            "prmt.b32 lows, a, b, half;",
            "prmt.b32 a, t4, t5, index;",
            "prmt.b32 b, t6, t7, index;",
            "prmt.b32 highs, a, b, half;",
            f"prmt.b32 {low}, lows, highs, 0x6240;",
            f"prmt.b32 {high}, lows, highs, 0x7351;",
            "shr.u32 index, index, 16;",
            "shr.u32 half, half, 16;",
        ]
    registers = ".reg .b32 index, half, a, b, lows, highs, t<8>;"
    return "\n".join(["{", registers, *lines[:-2], "}"])


# The interpreter knows no assembly, and looks the codes up in memory; so do AMD's chips.
ASSEMBLY = {dtype: "" if INTERPRETING else decode_assembly("nf4", dtype) for dtype in (torch.bfloat16, torch.float16)}


@triton.jit
def decode(packed, code, dtype: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The codes at even and at odd places of ``packed``, in ``dtype``, 16 bits."""
    if ASSEMBLY == "" or not tl.target_info.is_cuda():
        odd = tl.load(code + (packed & 15).to(tl.int32)).to(dtype)
        even = tl.load(code + (packed >> 4).to(tl.int32)).to(dtype)
    else:
        odd, even = tl.inline_asm_elementwise(
            ASSEMBLY, "=r,=r,=r,=r,r", [packed], dtype=(dtype.value, dtype.value), is_pure=True, pack=4
        )
    return even, odd


@triton.jit
def plain_scales(record, absmax_at, block, mask):
    """The float32 scales of blocks, without double quantization."""
    return tl.load((record + absmax_at).to(tl.pointer_type(tl.float32)) + block, mask, other=0.0)


@triton.jit
def coded_scales(record, absmax_at, nested_absmax_at, block, mask, GROUP: tl.constexpr):
    """With double quantization: the codes of the scales of blocks, and the scales of their groups."""
    nested_absmax = (record + nested_absmax_at).to(tl.pointer_type(tl.float32))
    codes = tl.load(record + absmax_at + block, mask, other=0)
    return codes, tl.load(nested_absmax + block // GROUP, mask, other=0.0)


@triton.jit
def scales_of_codes(record, nested_code_at, offset_at, codes, group):
    """The float32 scales that ``coded_scales`` stand for."""
    nested_code = (record + nested_code_at).to(tl.pointer_type(tl.float32))
    offset = tl.load((record + offset_at).to(tl.pointer_type(tl.float32)))
    return tl.load(nested_code + codes.to(tl.int32)) * group + offset
