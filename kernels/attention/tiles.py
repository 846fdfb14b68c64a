"""What every attention kernel shares: where a tile lies, which elements it sees, how it is loaded and scored.

Positions: row i of a sequence with S queries and T keys stands at position i + T - S; it sees the keys j with
position - left <= j <= position + right, and a bound that is ``None`` does not exist, at compile time.

Strides are passed in units of eight elements: the compiler then knows that every row is 16-byte aligned,
without a specialization on the stride's value that would recompile when a length changes.
"""

from ..frame._triton import tl, triton
from ..frame.philox import PHILOX_ROUNDS

ROUNDS = tl.constexpr(PHILOX_ROUNDS)
INF = tl.constexpr(float("inf"))
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Of float32 products, and without effect on others: three tensor-core products of tf32 parts, which keep 22 bits.
# IEEE products would hold both operands in registers, and spill from D = 64 on.
PRECISION = tl.constexpr("tf32x3")


# How tiles are addressed: see ``make_source``.
POINTERS, DEVICE, HOST = (tl.constexpr(how) for how in ("pointers", "device", "host"))


# No kernel is compiled again when these change.
RUNTIME_INTEGERS = ["rows_in_all", "batch", "heads", "tiles", "S", "T", "left", "right", "threshold"] + [
    f"{name}_{stride}"
    for name in ("q", "k", "v", "out", "d_out", "dq", "dk", "dv")
    for stride in ("batch", "head", "row")
]


@triton.jit
def locate(
    tile, entry, batch, cu_q, cu_k, used_q, used_k, pad_q, pad_k, S, T,
    BLOCK_M: tl.constexpr, SEQUENCES: tl.constexpr = 128,
):  # fmt: skip
    """(tile within its sequence, sequence, first query, first key, queries, keys) of a tile over the queries.

    Packed sequences are given tiles by an upper bound, sequence s from cu_q[s] // BLOCK_M + s on, so that the
    grid depends on the number of tokens alone; a tile past the end of its sequence has nothing to do. Of a sequence,
    the first ``used`` rows count, less ``pad`` at the start.
    """
    q_start = 0
    k_start = 0
    if cu_q is not None:
        entry = -1
        for first in range(0, batch, SEQUENCES):  # ``batch`` is the number of sequences here.
            index = first + tl.arange(0, SEQUENCES)
            starts = tl.load(cu_q + index, mask=index < batch, other=0) // BLOCK_M + index
            entry += tl.sum(((starts <= tile) & (index < batch)).to(tl.int32))
        q_start = tl.load(cu_q + entry)
        k_start = tl.load(cu_k + entry)
        S = tl.load(cu_q + entry + 1) - q_start
        T = tl.load(cu_k + entry + 1) - k_start
        tile -= q_start // BLOCK_M + entry
        if used_q is not None:
            S = min(tl.load(used_q + entry), S)
        if used_k is not None:
            T = min(tl.load(used_k + entry), T)
        if pad_q is not None:
            q_start += tl.load(pad_q + entry)
            S -= tl.load(pad_q + entry)
        if pad_k is not None:
            k_start += tl.load(pad_k + entry)
            T -= tl.load(pad_k + entry)
    return tile, entry, q_start, k_start, S, T


@triton.jit
def key_ranges(first_row, S, T, left, right, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(low, full_low, full_high, high): the keys that the rows of a tile may see, and between the inner two,
    in multiples of BLOCK_N, the keys that all of its rows see, where no mask is needed."""
    first = first_row + T - S
    last = min(first_row + BLOCK_M, S) - 1 + T - S
    low = 0
    full_low = 0
    high = T
    full_high = T // BLOCK_N * BLOCK_N
    if right is not None:
        high = min(high, max(last + right + 1, 0))
        full_high = min(full_high, max(first + right + 1, 0) // BLOCK_N * BLOCK_N)
    if left is not None:
        low = max(first - left, 0) // BLOCK_N * BLOCK_N
        full_low = min(tl.cdiv(max(last - left, 0), BLOCK_N) * BLOCK_N, tl.cdiv(high, BLOCK_N) * BLOCK_N)
    return low, full_low, max(full_low, full_high), high


@triton.jit
def row_ranges(first_key, S, T, left, right, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(low, full_low, full_high, high): the rows that may see keys of a tile; see ``key_ranges``."""
    shift = T - S
    last_key = min(first_key + BLOCK_N, T) - 1
    low = 0
    full_low = 0
    high = S
    full_high = S // BLOCK_M * BLOCK_M
    if left is not None:
        high = min(high, max(last_key + left - shift + 1, 0))
        full_high = min(full_high, max(first_key + left - shift + 1, 0) // BLOCK_M * BLOCK_M)
    if right is not None:
        low = max(first_key - right - shift, 0) // BLOCK_M * BLOCK_M
        full_low = min(tl.cdiv(max(last_key - right - shift, 0), BLOCK_M) * BLOCK_M, tl.cdiv(high, BLOCK_M) * BLOCK_M)
    return low, full_low, max(full_low, full_high), high


@triton.jit
def steps(low, full_low, full_high, high, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """How many tiles the masked loop or the unmasked one walks over. Tiles are masked on both sides of the
    full ones; one loop takes both sides, so that its code is there once."""
    if MASKED:
        return max(full_low - low, 0) // BLOCK + tl.cdiv(max(high - full_high, 0), BLOCK)
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return (full_high - full_low) // BLOCK


@triton.jit
def step_start(step, low, full_low, full_high, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Where the tile of a step begins."""
    if MASKED:
        start = low + step * BLOCK
        return tl.where(start < full_low, start, start - full_low + full_high)
    else:  # noqa: RET505
        return full_low + step * BLOCK


@triton.jit
def listed_blocks(
    mask, entry, head, heads, first, S, T, BLOCK: tl.constexpr, BY_ENTRY: tl.constexpr, BY_HEAD: tl.constexpr
):  # fmt: skip
    """Pointer to what ``arguments.block_lists`` wrote about the block of rows that begins at or before ``first``, of S
    rows, by T keys, or the other way round. The mask may be one for all entries or heads."""
    matrix_of_blocks = entry * 0
    if BY_ENTRY:
        matrix_of_blocks = entry
    if BY_HEAD:
        matrix_of_blocks = matrix_of_blocks * heads + head
    row = matrix_of_blocks.to(tl.int64) * tl.cdiv(S, BLOCK) + first // BLOCK
    return mask + row * (2 * tl.cdiv(T, BLOCK) + 2)


@triton.jit
def laid_end_to_end(position, blocks, length, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Where a position, rounded up to a tile, would stand if there were no blocks but the listed ones."""
    if blocks is None:
        return position
    else:  # noqa: RET505
        count = tl.cdiv(length, BLOCK)
        position = tl.cdiv(position, TILE) * TILE
        block = min(position // BLOCK, count)
        before = tl.load(blocks + count + 1 + block)
        is_listed = tl.load(blocks + count + 1 + min(block + 1, count)) > before
        return before * BLOCK + tl.where(is_listed, position % BLOCK, 0)


@triton.jit
def in_listed_blocks(low, full_low, full_high, high, blocks, length, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Ranges as those of ``key_ranges``, over the listed blocks alone: ``steps`` counts no tile of another block."""
    return (
        laid_end_to_end(low, blocks, length, TILE, BLOCK),
        laid_end_to_end(full_low, blocks, length, TILE, BLOCK),
        laid_end_to_end(full_high, blocks, length, TILE, BLOCK),
        laid_end_to_end(high, blocks, length, TILE, BLOCK),
    )


@triton.jit
def in_sequence(start, blocks, BLOCK: tl.constexpr):
    """The position that ``laid_end_to_end`` moved to ``start``."""
    if blocks is None:
        return start
    else:  # noqa: RET505
        start = start.to(tl.uint32)  # Division of what may be negative takes registers.
        return tl.load(blocks + start // BLOCK) * BLOCK + (start % BLOCK).to(tl.int32)


@triton.jit
def sees(rows, keys, S, T, left, right):
    """Which of the keys the rows see; rows and keys broadcast."""
    seen = (keys < T) & (rows < S)
    if left is not None:
        seen &= keys >= rows + (T - S) - left
    if right is not None:
        seen &= keys <= rows + (T - S) + right
    return seen


@triton.jit
def matrix(base, entry, head, first_row, batch_stride, head_stride, row_stride):
    """Pointer to the first row of one head of one sequence; the offset has 64 bits."""
    in_head = head * head_stride.to(tl.int64) + first_row * row_stride.to(tl.int64)
    return base + (entry * batch_stride.to(tl.int64) + in_head) * 8


@triton.jit
def make_source(
    base, entry, head, first_row, batch_stride, head_stride, row_stride, length,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """What ``load_rows`` and ``store_tile`` address: the (length, D) matrix of one head of one sequence.

    TMA says how: by a descriptor of the whole tensor that the host made (``base``, zeros outside), by one of the
    matrix that the program makes, which packed sequences need, or by pointers.
    """
    if TMA == HOST:
        return base, entry, head
    elif TMA == DEVICE:  # noqa: RET505 (Triton compiles what follows a return, too)
        pointer = matrix(base, entry, head, first_row, batch_stride, head_stride, row_stride)
        # An empty side is never read, but a descriptor of no rows is invalid.
        return tl.make_tensor_descriptor(pointer, [max(length, 1), D], [row_stride * 8, 1], [BLOCK, BLOCK_D])
    else:
        return matrix(base, entry, head, first_row, batch_stride, head_stride, row_stride)


@triton.jit
def tile_pointers(base, first, stride, row, column):
    """The tile's start in 64 bits, once for all elements; inside a tile 32 bits reach."""
    return base + first * stride.to(tl.int64) * 8 + (row[:, None] * stride.to(tl.int32) * 8 + column[None, :])


@triton.jit
def load_rows(
    source,
    first,
    stride,
    length,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TMA: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Rows first ... first + BLOCK of a (length, D) matrix, zeros outside; without CHECK they lie inside."""
    if TMA == HOST:
        descriptor, entry, head = source
        return descriptor.load([entry, head, first, 0]).reshape([BLOCK, BLOCK_D])
    elif TMA == DEVICE:  # noqa: RET505 (Triton compiles what follows a return, too)
        return source.load([first, 0])
    else:
        row = tl.arange(0, BLOCK)
        column = tl.arange(0, BLOCK_D)
        inside = (column < D)[None, :]
        if CHECK:
            inside &= (first + row < length)[:, None]
        if CHECK or BLOCK_D != D:
            return tl.load(tile_pointers(source, first, stride, row, column), mask=inside, other=0.0)
        else:  # noqa: RET505
            return tl.load(tile_pointers(source, first, stride, row, column))


@triton.jit
def store_tile(
    source, first, stride, length, value, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr
):
    """The rows of the tile that lie inside a (length, D) matrix. A descriptor also spares the registers of
    one pointer a row, which the compiler would compute before the loop and keep."""
    if TMA == HOST:
        descriptor, entry, head = source
        descriptor.store([entry, head, first, 0], value.to(descriptor.dtype).reshape([1, 1, BLOCK, BLOCK_D]))
    elif TMA == DEVICE:
        source.store([first, 0], value.to(source.dtype))
    else:
        row = tl.arange(0, BLOCK)
        column = tl.arange(0, BLOCK_D)
        inside = (first + row < length)[:, None] & (column < D)[None, :]
        pointers = tile_pointers(source, first, stride, row, column)
        tl.store(pointers, value.to(source.dtype.element_ty), mask=inside)


@triton.jit
def tanh(x):
    # No cancellation for large |x|; near 0 the error is one rounding of 1, which softcap scales.
    t = tl.exp2(tl.abs(x) * (-2 * LOG2_E))
    y = (1 - t) / (1 + t)
    return tl.where(x < 0, -y, y)


@triton.jit
def logits(product, scale, softcap):
    """Logits times log2(e), for exp2: scale · product, or softcap · tanh(scale · product) with the cap folded
    into both factors on the host."""
    x = product * scale
    if softcap is not None:
        x = softcap * tanh(x)
    return x


@triton.jit
def alibi_slope(alibi, sequence, heads, head):
    """What ALiBi subtracts from a logit in base 2 for each position between a query and a key."""
    return tl.load(alibi + sequence * heads + head) * LOG2_E


@triton.jit
def with_alibi(x, slope, rows, keys, S, T):
    """Logits in base 2 with ALiBi's bias; rows and keys broadcast."""
    if slope is None:
        return x
    else:  # noqa: RET505
        return x - slope * tl.abs(rows + (T - S) - keys).to(tl.float32)


@triton.jit
def keep_mask(seed, threshold, sequence, head, rows, columns):
    """Which probabilities dropout keeps; as ``reference.attention.dropout_keep``."""
    zero = rows * 0 + columns * 0
    random, _, _, _ = tl.philox(tl.load(seed), columns + zero, rows + zero, head + zero, sequence + zero, ROUNDS)
    return (random >> 1).to(tl.int32) >= threshold
