"""The Triton kernel of ``rope``: what it computes is written there.

Where no table of cosines is given, the angle is computed in integers, because float32 has too few digits: at
position 131,072 one rounding of the frequency turns the angle by 0.004 radians. A frequency in turns a token,
``base^(−2i/D) / 2π = 2^−(i·step + log2 2π)``, is held with 56 binary places. Position times frequency then drops
its whole turns by itself (integers wrap), and the angle is wrong by 2^-29 of itself at most.
"""

from ..frame._triton import tl, triton

EXPONENT_BITS = 40  # binary places of the exponent i·step + log2 2π

_PLACES: tl.constexpr = tl.constexpr(EXPONENT_BITS)
_FRACTION: tl.constexpr = tl.constexpr(2**EXPONENT_BITS - 1)
_LOG2_TWO_PI: tl.constexpr = tl.constexpr(round(2.651496129472319 * 2**EXPONENT_BITS))
_QUARTER_TURN: tl.constexpr = tl.constexpr(2**54)
_EIGHTH_TURN: tl.constexpr = tl.constexpr(2**53)
_RADIANS: tl.constexpr = tl.constexpr(6.283185307179586 / 2**56)


@triton.jit
def _power(fraction):
    """``2^−(fraction + 1/2)`` for a fraction in [−1/2, 1/2); both int64 with 30 binary places.

    Taylor's series: coefficient k is ``2^−1/2 · (−ln 2)^k / k!``. The first one left out is 2^-32 there.
    """
    total = 1003 - (fraction * 77 >> 30)
    total = (total * fraction >> 30) - 11581
    total = (total * fraction >> 30) + 116951
    total = (total * fraction >> 30) - 1012351
    total = (total * fraction >> 30) + 7302566
    total = (total * fraction >> 30) - 42141501
    total = (total * fraction >> 30) + 182392005
    total = (total * fraction >> 30) - 526272083
    return (total * fraction >> 30) + 759250125


@triton.jit
def _cos_sin_of_position(position, pair, step):
    """Cosine and sine, float32, of ``position · base^(−2·pair/D)``, given ``step`` = log2(base)·2/D with
    EXPONENT_BITS binary places."""
    exponent = pair.to(tl.int64) * step + _LOG2_TWO_PI
    whole = exponent >> _PLACES
    fraction = (exponent & _FRACTION) >> (_PLACES - 30)
    frequency = (_power(fraction - (1 << 29)) << 26) >> tl.minimum(whole, 60)

    # In turns: the nearest quarter, and the angle from there, within an eighth of a turn.
    turned = position * frequency + _EIGHTH_TURN
    quarter = (turned >> 54) & 3
    rest = (turned & (_QUARTER_TURN - 1)) - _EIGHTH_TURN
    x = rest.to(tl.float32) * _RADIANS
    square = x * x
    # Taylor's series; on |x| ≤ π/4 the first terms left out are below 2^-28.
    sine = x * (1.0 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880)))))
    cosine = 1.0 + square * (
        -1 / 2 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320 - square * (1 / 3628800))))
    )
    odd = (quarter & 1) == 1
    cos = tl.where(odd, sine, cosine) * tl.where((quarter == 1) | (quarter == 2), -1.0, 1.0)
    sin = tl.where(odd, cosine, sine) * tl.where(quarter >= 2, -1.0, 1.0)
    return cos, sin


@triton.jit
def _rotate(
    x, out, head, heads, head_stride, cos, sin, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr,
    PASSED: tl.constexpr, PASSED_BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The heads ``head`` of one token; ``x`` and ``out`` point at its first."""
    width: tl.constexpr = 2 * HALF + PASSED
    x_row = x + head[:, None] * head_stride
    out_row = out + head[:, None] * width
    row_mask = (head < heads)[:, None]
    if INTERLEAVED:
        column = tl.arange(0, 2 * HALF_BLOCK)[None, :]
        mask = row_mask & (column < 2 * HALF)
        pairs = tl.load(x_row + column, mask, other=0.0).to(tl.float32)
        first, second = tl.split(pairs.reshape(pairs.shape[0], HALF_BLOCK, 2))
        rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
        rotated = rotated.reshape(pairs.shape[0], 2 * HALF_BLOCK)
        tl.store(out_row + column, rotated.to(out.dtype.element_ty), mask)
    else:
        column = tl.arange(0, HALF_BLOCK)[None, :]
        mask = row_mask & (column < HALF)
        first = tl.load(x_row + column, mask, other=0.0).to(tl.float32)
        second = tl.load(x_row + HALF + column, mask, other=0.0).to(tl.float32)
        tl.store(out_row + column, (first * cos - second * sin).to(out.dtype.element_ty), mask)
        tl.store(out_row + HALF + column, (second * cos + first * sin).to(out.dtype.element_ty), mask)
    if PASSED > 0:
        column = 2 * HALF + tl.arange(0, PASSED_BLOCK)[None, :]
        mask = row_mask & (column < width)
        tl.store(out_row + column, tl.load(x_row + column, mask), mask)


@triton.jit(do_not_specialize=["length", "table_rows", "step", "position_batch", "position_token", "position_axis"])
def rope_kernel(
    q, k, q_out, k_out, positions, cos, sin, length: tl.int64, table_rows: tl.int64, step: tl.int64,
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64,
    k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    position_batch: tl.int64, position_token: tl.int64, position_axis: tl.int64,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, PASSED: tl.constexpr, PASSED_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, FIRST_END: tl.constexpr, SECOND_END: tl.constexpr,
):  # fmt: skip
    """Program (token, block) rotates one block of heads of a token, of q or, past its heads, of k."""
    token = tl.program_id(0).to(tl.int64)
    batch, place = token // length, token % length
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    position = place
    if positions is not None:
        at = positions + batch * position_batch + place * position_token
        if FIRST_END > 0:  # Each section of the pairs has positions of its own.
            at += ((pair >= FIRST_END).to(tl.int64) + (pair >= SECOND_END).to(tl.int64)) * position_axis
        position = tl.load(at).to(tl.int64)
    if cos is not None:
        # A position outside of the table shows: it makes NaN, not a read of other memory.
        mask = (pair < HALF) & (position >= 0) & (position < table_rows)
        cos_row = tl.load(cos + position * HALF + pair, mask, other=float("nan")).to(tl.float32)
        sin_row = tl.load(sin + position * HALF + pair, mask, other=float("nan")).to(tl.float32)
    else:
        cos_row, sin_row = _cos_sin_of_position(position, pair, step)
    if INVERSE:
        sin_row = -sin_row
    q_blocks: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    block = tl.program_id(1)
    head = tl.arange(0, HEADS)
    width: tl.constexpr = 2 * HALF + PASSED
    if block < q_blocks:
        _rotate(
            q + batch * q_batch + place * q_token, q_out + token * (Q_HEADS * width), block * HEADS + head,
            Q_HEADS, q_head, cos_row, sin_row, HALF, HALF_BLOCK, PASSED, PASSED_BLOCK, INTERLEAVED,
        )  # fmt: skip
    elif k is not None:
        _rotate(
            k + batch * k_batch + place * k_token, k_out + token * (K_HEADS * width),
            (block - q_blocks) * HEADS + head,
            K_HEADS, k_head, cos_row, sin_row, HALF, HALF_BLOCK, PASSED, PASSED_BLOCK, INTERLEAVED,
        )  # fmt: skip
