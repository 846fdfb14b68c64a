"""The Triton kernels of ``nf4_linear``: what they compute is written there.

Both compute yᵀ = W · xᵀ, so that the decoded weight is the first operand of the tensor cores, which they take from
registers: it never goes through shared memory again. A byte holds two neighbors of a row. Their order within a
sum is free, so the even places of a run of bytes make one product with the even places of x, and the odd places
another; nothing is interleaved. Codes are multiplied as they are and the scale of a block, float32, after its sum.

With double quantization the scales are read two steps ahead, and what their codes mean one: Triton's pipeline leaves
out loads narrower than 4 bytes, and a warp would wait in each step, twice. Plain scales it takes along by itself.
"""

from ..frame._triton import tl, triton
from .decode import coded_scales, decode, plain_scales, scales_of_codes


@triton.jit
def _low_rank(hidden, lora_b, n, m, rows, tokens, rank, STEP: tl.constexpr):
    """``lora_b @ hiddenᵀ`` for rows ``n`` and tokens ``m``, float32."""
    total = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
    for start in range(0, rank, STEP):
        r = start + tl.arange(0, STEP)
        b = tl.load(lora_b + n[:, None] * rank + r[None, :], (n < rows)[:, None] & (r < rank)[None, :], other=0.0)
        h = tl.load(hidden + m[:, None] * rank + r[None, :], (m < tokens)[:, None] & (r < rank)[None, :], other=0.0)
        total = tl.dot(b, h.T, total)
    return total


@triton.jit(do_not_specialize=["tokens", "lora_scale"])
def linear_few_tokens(
    x, record, code, bias, hidden, lora_b, y,
    tokens, rows, width, x_stride, rank, lora_scale: tl.float32,
    absmax_at, nested_absmax_at, nested_code_at, offset_at,
    BLOCK: tl.constexpr, DOUBLE_QUANT: tl.constexpr, GROUP: tl.constexpr, ASSEMBLY: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """All of the tokens for ROWS rows of the weight. Each of PARTS warps takes every PARTS-th run of BYTES bytes,
    so that together they read whole lines; their sums are put together at the end."""
    dtype: tl.constexpr = x.dtype.element_ty
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.arange(0, TOKENS)
    part = tl.arange(0, PARTS)
    row = tl.where(n < rows, n, 0).to(tl.int64)
    half = width // 2
    w = record + row[None, :, None] * tl.multiple_of(half, BYTES)
    w += (part[:, None] * BYTES + tl.arange(0, BYTES)[None, :])[:, None, :]
    here = x + m[None, :, None].to(tl.int64) * x_stride
    here += (part[:, None] * (2 * BYTES) + tl.arange(0, 2 * BYTES)[None, :])[:, None, :]
    first_block = row * (width // BLOCK)

    at = (part * BYTES)[:, None]  # of the step to come
    if DOUBLE_QUANT:
        block = first_block[None, :] + at * 2 // BLOCK
        codes, group = coded_scales(record, absmax_at, nested_absmax_at, block, at < half, GROUP)
        next_scale = scales_of_codes(record, nested_code_at, offset_at, codes, group)
        at += PARTS * BYTES
        block = first_block[None, :] + at * 2 // BLOCK
        codes, group = coded_scales(record, absmax_at, nested_absmax_at, block, at < half, GROUP)
    total = tl.zeros((PARTS, ROWS, TOKENS), tl.float32)
    for k in range(0, half, PARTS * BYTES):
        if DOUBLE_QUANT:
            scale = next_scale
            next_scale = scales_of_codes(record, nested_code_at, offset_at, codes, group)
            at += PARTS * BYTES
            block = first_block[None, :] + at * 2 // BLOCK
            codes, group = coded_scales(record, absmax_at, nested_absmax_at, block, at < half, GROUP)
        else:
            at = (k + part * BYTES)[:, None]
            scale = plain_scales(record, absmax_at, first_block[None, :] + at * 2 // BLOCK, at < half)
        inside = (k + part * BYTES < half)[:, None]
        packed = tl.load(w + k, inside[:, :, None], other=0)
        both = tl.load(here + 2 * k, inside[:, :, None] & (m < tokens)[None, :, None], other=0.0)
        x_even, x_odd = tl.split(both.reshape(PARTS, TOKENS, BYTES, 2))
        even, odd = decode(packed, code, dtype, ASSEMBLY)
        product = tl.dot(even, x_even.permute(0, 2, 1))
        product = tl.dot(odd, x_odd.permute(0, 2, 1), product)
        total += product * scale[:, :, None]
    out = tl.sum(total, 0)
    if hidden is not None:
        out += lora_scale * _low_rank(hidden, lora_b, n, m, rows, tokens, rank, 16)
    if bias is not None:
        out += tl.load(bias + n, n < rows, other=0.0).to(tl.float32)[:, None]
    place = y + m[None, :].to(tl.int64) * rows + n[:, None]
    tl.store(place, out.to(y.dtype.element_ty), (n < rows)[:, None] & (m < tokens)[None, :])


@triton.jit(do_not_specialize=["tokens", "steps_a_split", "lora_scale"])
def linear_tiles(
    x, record, code, bias, hidden, lora_b, y,
    tokens, rows, width, rank, lora_scale: tl.float32, steps_a_split,
    absmax_at, nested_absmax_at, nested_code_at, offset_at,
    BLOCK: tl.constexpr, DOUBLE_QUANT: tl.constexpr, GROUP: tl.constexpr, ASSEMBLY: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS × TOKENS, over one of ``splits`` parts of the width. ``x`` (2, tokens, width / 2) has the even
    places first and then the odd ones; ``y`` is (splits, tokens, rows)."""
    dtype: tl.constexpr = x.dtype.element_ty
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    split = tl.program_id(2)
    row = tl.where(n < rows, n, 0).to(tl.int64)
    token = tl.where(m < tokens, m, 0).to(tl.int64)
    half = tl.multiple_of(width // 2, BYTES)
    first = split * steps_a_split * BYTES
    byte = tl.arange(0, BYTES)[None, :]
    w = record + row[:, None] * half + byte
    x_even = x + token[:, None] * half + byte
    x_odd = x_even + tokens.to(tl.int64) * half
    first_block = row * (width // BLOCK)

    inside = n < rows
    at = first  # of the step to come
    if DOUBLE_QUANT:
        block = first_block + at * 2 // BLOCK
        codes, group = coded_scales(record, absmax_at, nested_absmax_at, block, inside, GROUP)
        next_scale = scales_of_codes(record, nested_code_at, offset_at, codes, group)
        at += BYTES
        block = first_block + at * 2 // BLOCK
        codes, group = coded_scales(record, absmax_at, nested_absmax_at, block, inside & (at < half), GROUP)
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for k in range(first, tl.minimum(first + steps_a_split * BYTES, half), BYTES):
        if DOUBLE_QUANT:
            scale = next_scale
            next_scale = scales_of_codes(record, nested_code_at, offset_at, codes, group)
            at += BYTES
            block = first_block + at * 2 // BLOCK
            codes, group = coded_scales(record, absmax_at, nested_absmax_at, block, inside & (at < half), GROUP)
        else:
            scale = plain_scales(record, absmax_at, first_block + k * 2 // BLOCK, inside)
        even, odd = decode(tl.load(w + k), code, dtype, ASSEMBLY)
        product = tl.dot(even, tl.load(x_even + k).T)
        product = tl.dot(odd, tl.load(x_odd + k).T, product)
        total += product * scale[:, None]
    if split == 0:
        if hidden is not None:
            total += lora_scale * _low_rank(hidden, lora_b, n, m, rows, tokens, rank, 16)
        if bias is not None:
            total += tl.load(bias + n, n < rows, other=0.0).to(tl.float32)[:, None]
    place = y + (split * tokens.to(tl.int64) + m[None, :]) * rows + n[:, None]
    tl.store(place, total.to(y.dtype.element_ty), (n < rows)[:, None] & (m < tokens)[None, :])
