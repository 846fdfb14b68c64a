"""The Triton kernels of ``int8_linear``; how they go about it is written in ``nf4/linear_kernels.py``.

Whole numbers to 127 are exact in bfloat16 and float16, so the products are of the codes themselves, and the scale of
a row is multiplied once, float32, after its sum.
"""

from ..frame._triton import tl, triton


@triton.jit
def _finish(total, scale, bias, n, rows, first):
    """Times the scale of each row, plus its bias in the first part of the width."""
    out = total * tl.load(scale + n, n < rows, other=0.0)[:, None]
    if bias is not None:
        out += tl.load(bias + n, (n < rows) & first, other=0.0).to(tl.float32)[:, None]
    return out


@triton.jit(do_not_specialize=["tokens"])
def int8_few_tokens(
    x, codes, scale, bias, y, tokens, rows, width, x_stride,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """All of the tokens for ROWS rows; each of PARTS warps takes every PARTS-th run of STEP columns."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.arange(0, TOKENS)
    part = tl.arange(0, PARTS)
    row = tl.where(n < rows, n, 0).to(tl.int64)
    column = (part[:, None] * STEP + tl.arange(0, STEP)[None, :])[:, None, :]
    w = codes + row[None, :, None] * tl.multiple_of(width, STEP) + column
    here = x + m[None, :, None].to(tl.int64) * x_stride + column
    total = tl.zeros((PARTS, ROWS, TOKENS), tl.float32)
    for k in range(0, width, PARTS * STEP):
        inside = (k + part * STEP < width)[:, None, None]
        weight = tl.load(w + k, inside, other=0).to(x.dtype.element_ty)
        values = tl.load(here + k, inside & (m < tokens)[None, :, None], other=0.0)
        total = tl.dot(weight, values.permute(0, 2, 1), total)
    out = _finish(tl.sum(total, 0), scale, bias, n, rows, True)
    place = y + m[None, :].to(tl.int64) * rows + n[:, None]
    tl.store(place, out.to(y.dtype.element_ty), (n < rows)[:, None] & (m < tokens)[None, :])


@triton.jit(do_not_specialize=["tokens", "steps_a_split"])
def int8_tiles(
    x, codes, scale, bias, y, tokens, rows, width, x_stride, steps_a_split,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS × TOKENS, over one part of the width; ``y`` is (splits, tokens, rows)."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    split = tl.program_id(2)
    row = tl.where(n < rows, n, 0).to(tl.int64)
    token = tl.where(m < tokens, m, 0).to(tl.int64)
    column = tl.arange(0, STEP)[None, :]
    width = tl.multiple_of(width, STEP)
    w = codes + row[:, None] * width + column
    here = x + token[:, None] * x_stride + column
    first = split * steps_a_split * STEP
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for k in range(first, tl.minimum(first + steps_a_split * STEP, width), STEP):
        total = tl.dot(tl.load(w + k).to(x.dtype.element_ty), tl.load(here + k).T, total)
    out = _finish(total, scale, bias, n, rows, split == 0)
    place = y + (split * tokens.to(tl.int64) + m[None, :]) * rows + n[:, None]
    tl.store(place, out.to(y.dtype.element_ty), (n < rows)[:, None] & (m < tokens)[None, :])
