"""``nf4_linear`` for up to 16 tokens, in Gluon: bytes are decoded by a table in shared memory.

A byte is two neighbors of a row, and so one register of the tensor cores' first operand. The table holds both numbers
of each of the 256 bytes in 16 bits, once per lane: 32 KiB, which a lane reads in its own bank, without a conflict. A
decoded byte costs four instructions (shift, mask, add to the lane's address, load); ``decode`` spends 5.5.

Each of PARTS warps takes every PARTS-th run of 256 columns of the same 16 rows; the sums are put together at the end.
Columns go to the tensor cores in an order in which nothing moves between threads: thread t of four that share a row
holds columns 16 t ... 16 t + 15 of a block of 64, of the weight as of x, and gives four of them to each product.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ..frame._triton import HAS_TRITON, INTERPRETING, ampere, gl, gluon
from ..frame.launch import KIB, Chip
from .layout import Layout
from .reference import code_values

ROWS = gl.constexpr(16)
WORDS = gl.constexpr(8)  # of 32 bits in a block of 64 numbers
BLOCKS = gl.constexpr(4)  # that a warp takes at a time: their codes are one word
LANES = gl.constexpr(32)
PARTS = gl.constexpr(8)

# Gluon gathers from shared memory since Triton 3.7, and only compiles, for NVIDIA's chips.
AVAILABLE = HAS_TRITON and hasattr(gl.shared_memory_descriptor, "gather") and not (INTERPRETING or torch.version.hip)


def registers(tokens: int) -> int:
    """The most per thread, told to the compiler: left alone, it spills some in the loop to fit a third program on 8.6,
    8.9 and 10.0. 128 fit two."""
    return 128 if tokens <= 8 else 168


def takes(layout: Layout, chip: Chip) -> bool:
    """Whether the kernel reads this layout: blocks of 64, and rows in whole runs of four. The tables of three programs
    fit every NVIDIA chip, 99 KiB; with one alone a multiprocessor would wait for memory."""
    reads = layout.block_size == 64 and layout.shape[1] % (64 * BLOCKS.value) == 0
    return AVAILABLE and reads and chip.shared_memory >= 3 * 32 * KIB


@lru_cache
def byte_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """int32 (256,): both codes of each byte in 16 bits, the earlier number's (the high half of the byte) first."""
    code = code_values("nf4", torch.device("cpu")).to(dtype).view(torch.int16)
    byte = torch.arange(256)
    return torch.stack((code[byte >> 4], code[byte & 15]), -1).view(torch.int32).flatten().to(device)


@gluon.jit
def load_words(w, run, inside):
    """The packed words of the four blocks of each part's next run; those behind the last are not loaded."""
    inside = (run < inside)[:, None, None]
    first = gl.load(w, mask=inside, other=0)
    second = gl.load(w + WORDS, mask=inside, other=0)
    third = gl.load(w + 2 * WORDS, mask=inside, other=0)
    return first, second, third, gl.load(w + 3 * WORDS, mask=inside, other=0)


@gluon.jit
def load_scales(record, absmax_at, nested_absmax_at, block, inside, DOUBLE_QUANT: gl.constexpr, GROUP: gl.constexpr):
    """What the scales of four blocks from ``block`` on are made of: with double quantization their codes, in one word,
    and the scale of these; else the four scales."""
    if DOUBLE_QUANT:
        codes = gl.load((record + absmax_at).to(gl.pointer_type(gl.int32)) + block // BLOCKS, mask=inside, other=0)
        nested = (record + nested_absmax_at).to(gl.pointer_type(gl.float32))
        return codes, gl.load(nested + block // GROUP, mask=inside, other=0.0)
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        scales = (record + absmax_at).to(gl.pointer_type(gl.float32)) + block
        first = gl.load(scales, mask=inside, other=0.0)
        second = gl.load(scales + 1, mask=inside, other=0.0)
        third = gl.load(scales + 2, mask=inside, other=0.0)
        return first, second, third, gl.load(scales + 3, mask=inside, other=0.0)


@gluon.jit
def scale_of(found, nested_code, offset, i: gl.constexpr, DOUBLE_QUANT: gl.constexpr):
    """The scale of block ``i`` of four, float32."""
    if DOUBLE_QUANT:
        return gl.load(nested_code + ((found[0] >> (8 * i)) & 255)) * found[1] + offset
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return found[i]


@gluon.jit
def decode(words, table, dtype: gl.constexpr):
    """(PARTS, ROWS, 8) words to (PARTS, ROWS, 64) codes, as the first operand has its columns: byte 8 t + 2 i + r of a
    row becomes columns 16 i + 8 r + 2 t and the next."""
    places_0_2 = gl.join(words & 255, (words >> 16) & 255)
    places_1_3 = gl.join((words >> 8) & 255, (words >> 24) & 255)
    index = gl.join(places_0_2, places_1_3).reshape([PARTS, 2, 8, 4, 8])  # half, row, t, byte of t
    index = index.permute((0, 1, 4, 2, 3)).reshape([PARTS * 16, LANES])
    found = table.gather(index, axis=0).reshape([PARTS, 2, 8, 8, 4])  # half, byte of t, row, t
    found = found.permute((0, 1, 3, 2, 4)).reshape([PARTS, ROWS, 32])
    early = found.to(gl.int16).to(dtype, bitcast=True)
    late = (found >> 16).to(gl.int16).to(dtype, bitcast=True)
    return gl.join(early, late).reshape([PARTS, ROWS, 64])


@gluon.jit(do_not_specialize=["tokens", "lora_scale"])
def table_kernel(
    x, record, table, bias, hidden, lora_b, y,
    tokens, rows, width, x_stride, rank, lora_scale: gl.float32,
    absmax_at, nested_absmax_at, nested_code_at, offset_at,
    DOUBLE_QUANT: gl.constexpr, GROUP: gl.constexpr, TOKENS: gl.constexpr,
):  # fmt: skip
    """16 rows of ``y (tokens, rows)``; arguments as of ``linear_few_tokens``, and ``table`` int32 (256,)."""
    product_layout: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [PARTS, 1, 1], [1, 16, 8])
    words_layout: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1], [0, 8, 0]],
        lane_bases=[[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0], [4, 0, 0]],
        block_bases=[],
        shape=[PARTS, ROWS, WORDS],
    )
    x_layout: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 0, 8]] + ([[0, 8, 0]] if TOKENS == 16 else []),
        lane_bases=[[0, 0, 16], [0, 0, 32], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0], [4, 0, 0]],
        block_bases=[],
        shape=[PARTS, TOKENS, 64],
    )
    scales_layout: gl.constexpr = gl.SliceLayout(2, product_layout)
    dtype: gl.constexpr = x.dtype.element_ty
    first_row = gl.program_id(0) * ROWS
    runs = width // (64 * BLOCKS)

    # Where each part's first run begins: the words of its rows, its tokens, its scales.
    part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, words_layout)))
    row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(2, words_layout)))
    row = gl.where(row < rows, row, 0).to(gl.int64)
    word = gl.arange(0, WORDS, layout=gl.SliceLayout(0, gl.SliceLayout(1, words_layout)))
    w = record.to(gl.pointer_type(gl.int32)) + row[None, :, None] * (width // 8)
    w += part[:, None, None] * (BLOCKS * WORDS) + word[None, None, :]
    words = load_words(w, part, runs)

    x_part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, x_layout)))
    token = gl.arange(0, TOKENS, layout=gl.SliceLayout(0, gl.SliceLayout(2, x_layout)))
    column = gl.arange(0, 64, layout=gl.SliceLayout(0, gl.SliceLayout(1, x_layout)))
    here = x + token[None, :, None].to(gl.int64) * x_stride
    here += x_part[:, None, None] * (64 * BLOCKS) + column[None, None, :]

    scale_part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, scales_layout))
    scale_row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(0, scales_layout))
    scale_row = gl.where(scale_row < rows, scale_row, 0)
    block = scale_row[None, :] * (width // 64) + scale_part[:, None] * BLOCKS
    inside = (scale_part < runs)[:, None]
    found = load_scales(record, absmax_at, nested_absmax_at, block, inside, DOUBLE_QUANT, GROUP)
    nested_code = (record + nested_code_at).to(gl.pointer_type(gl.float32))
    offset = 0.0
    if DOUBLE_QUANT:
        offset = gl.load((record + offset_at).to(gl.pointer_type(gl.float32)))

    # The table is filled while the first weights are on their way.
    fill_layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [PARTS, 1], [1, 0])
    entry = gl.load(table + gl.arange(0, 256, layout=gl.SliceLayout(1, fill_layout)))
    lanes = gl.allocate_shared_memory(gl.int32, [256, LANES], gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0]))
    lanes.store(entry[:, None] + gl.zeros([256, LANES], gl.int32, fill_layout))
    gl.barrier()

    total = gl.zeros([PARTS, ROWS, TOKENS], gl.float32, product_layout)
    for start in range(0, runs, PARTS):
        after = start + PARTS
        w += PARTS * BLOCKS * WORDS
        next_words = load_words(w, after + part, runs)
        inside = (after + scale_part < runs)[:, None]
        block += PARTS * BLOCKS
        next_found = load_scales(record, absmax_at, nested_absmax_at, block, inside, DOUBLE_QUANT, GROUP)
        x_mask = (start + x_part < runs)[:, None, None] & (token < tokens)[None, :, None]
        for i in gl.static_range(BLOCKS):
            codes = decode(words[i], lanes, dtype)
            values = gl.load(here + 64 * i, mask=x_mask, other=0.0)
            # (t, i, r, neighbor) of a column to (i, r, t, neighbor), as the codes have them.
            values = (
                values.reshape([PARTS, TOKENS, 4, 4, 2, 2]).permute((0, 3, 4, 2, 5, 1)).reshape([PARTS, 64, TOKENS])
            )
            product = ampere.mma_v2(
                gl.convert_layout(codes, gl.DotOperandLayout(0, product_layout, 2)),
                gl.convert_layout(values, gl.DotOperandLayout(1, product_layout, 2)),
                gl.zeros([PARTS, ROWS, TOKENS], gl.float32, product_layout),
            )
            total += product * scale_of(found, nested_code, offset, i, DOUBLE_QUANT)[:, :, None]
        here += PARTS * BLOCKS * 64
        words, found = next_words, next_found

    out = gl.sum(total, 0)
    n = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, out.type.layout))
    m = gl.arange(0, TOKENS, layout=gl.SliceLayout(0, out.type.layout))
    if hidden is not None:
        for r in range(rank):
            b = gl.load(lora_b + n * rank + r, mask=n < rows, other=0.0).to(gl.float32)
            h = gl.load(hidden + m * rank + r, mask=m < tokens, other=0.0).to(gl.float32)
            out += lora_scale * b[:, None] * h[None, :]
    if bias is not None:
        out += gl.load(bias + n, mask=n < rows, other=0.0).to(gl.float32)[:, None]
    place = y + m[None, :].to(gl.int64) * rows + n[:, None]
    gl.store(place, out.to(dtype), mask=(n < rows)[:, None] & (m < tokens)[None, :])
