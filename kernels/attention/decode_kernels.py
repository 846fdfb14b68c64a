"""Decoding against a cache of keys and values, in three kernels: append the new keys, attend in parallel over
parts of the cache (Flash-Decoding, Dao et al. 2023), and combine the parts in a fixed order.

The query heads that share a key head stand in one tile: row r is query r // GROUP of head r % GROUP of the
group.
"""

from ..frame._triton import tl, triton
from .tiles import INF, LN_2, LOG2_E, PRECISION, logits

DECODE_INTEGERS = [
    "pages_per_entry",
    "PAGE",
    "heads",
    "S",
    "T",
    "new",
    "splits",
    "left",
    "right",
    "rows_in_all",
] + [
    f"{name}_{stride}"
    for name in ("q", "k", "v", "out", "part", "k_new", "v_new")
    for stride in ("batch", "head", "row")
]


@triton.jit
def cache_rows(cache, page_table, entry, row, inside, PAGE, page_stride, row_stride):
    """Pointers to rows of one entry's cache. A contiguous cache is one page an entry, in order."""
    page = entry + row * 0
    if page_table is not None:
        page = tl.load(page_table + row // PAGE, mask=inside, other=0)
        row = row % PAGE
    return cache + (page.to(tl.int64) * page_stride + row * row_stride.to(tl.int64)) * 8


@triton.jit(do_not_specialize=DECODE_INTEGERS)
def append_kernel(
    k, v, k_new, v_new, lengths, page_table,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    k_new_batch: tl.int64, k_new_head: tl.int64, k_new_row: tl.int64,
    v_new_batch: tl.int64, v_new_head: tl.int64, v_new_row: tl.int64,
    pages_per_entry: tl.int64, PAGE, T, new,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(2)
    head = tl.program_id(1)
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.load(lengths + entry) + i
    inside = (i < new) & (row >= 0) & (row < T)
    column = tl.arange(0, BLOCK_D)[None, :]
    mask = inside[:, None] & (column < D)
    if page_table is not None:
        page_table += entry * pages_per_entry.to(tl.int64)
    k_to = cache_rows(k + head * k_head.to(tl.int64) * 8, page_table, entry, row, inside, PAGE, k_batch, k_row)
    v_to = cache_rows(v + head * v_head.to(tl.int64) * 8, page_table, entry, row, inside, PAGE, v_batch, v_row)
    k_from = (
        k_new + (entry * k_new_batch.to(tl.int64) + head * k_new_head.to(tl.int64) + i * k_new_row.to(tl.int64)) * 8
    )
    v_from = (
        v_new + (entry * v_new_batch.to(tl.int64) + head * v_new_head.to(tl.int64) + i * v_new_row.to(tl.int64)) * 8
    )
    tl.store(k_to[:, None] + column, tl.load(k_from[:, None] + column, mask=mask), mask=mask)
    tl.store(v_to[:, None] + column, tl.load(v_from[:, None] + column, mask=mask), mask=mask)


@triton.jit(do_not_specialize=DECODE_INTEGERS)
def decode_kernel(
    q, k, v, part, part_lse, lengths, page_table, sinks, alibi, leftpad,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    part_batch: tl.int64, part_head: tl.int64, part_row: tl.int64,
    pages_per_entry: tl.int64, PAGE, rows_in_all: tl.int64, heads, S, T, new, splits, left, right,
    scale: tl.float32, softcap,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One part of the cache of one key head, for BLOCK_M of the rows that read it. ``part`` is out itself, or
    with several splits (splits, B, H, S, D) float32, of which split s starts s · rows_in_all rows of D after
    the first."""
    split = tl.program_id(0) % splits
    tile = tl.program_id(0) // splits
    kv_head = tl.program_id(1)
    entry = tl.program_id(2)
    if lengths is not None:
        T = min(tl.load(lengths + entry) + new, T)
    if page_table is not None:
        page_table += entry * pages_per_entry.to(tl.int64)

    r = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query = r // GROUP
    head = kv_head * GROUP + r % GROUP
    column = tl.arange(0, BLOCK_D)[None, :]
    q_mask = (query < S)[:, None] & (column < D)
    q_offset = (entry * q_batch.to(tl.int64) + head * q_head.to(tl.int64) + query * q_row.to(tl.int64)) * 8
    q_tile = tl.load(q + q_offset[:, None] + column, mask=q_mask, other=0.0)
    position = query + T - S

    # This split's share of the tiles that any row sees.
    low = 0
    high = T
    if left is not None:
        low = max(tile * BLOCK_M // GROUP + T - S - left, 0) // BLOCK_N
    if leftpad is not None:
        start = tl.load(leftpad + entry)
        low = max(low, start // BLOCK_N)
    if right is not None:
        high = max(min(high, min((tile * BLOCK_M + BLOCK_M - 1) // GROUP, S - 1) + T - S + right + 1), 0)
    high = tl.cdiv(high, BLOCK_N)
    share = tl.cdiv(max(high - low, 0), splits)
    low += split * share
    high = min(high, low + share)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum = tl.full([BLOCK_M], -INF, tl.float32)
    denominator = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:  # Counted once, by the first split.
        counts = (query < S) & (split == 0)
        maximum = tl.load(sinks + head, mask=counts, other=-INF).to(tl.float32) * LOG2_E
        denominator += tl.where(counts, 1.0, 0.0)
    if alibi is not None:
        slope = tl.load(alibi + entry * heads + head, mask=query < S, other=0.0) * LOG2_E
    for block in tl.range(low, high):
        key = block * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = key < T
        if leftpad is not None:
            inside &= key >= start
        kv_mask = inside[:, None] & (column < D)
        k_rows = cache_rows(k + kv_head * k_head.to(tl.int64) * 8, page_table, entry, key, inside, PAGE, k_batch, k_row)
        k_tile = tl.load(k_rows[:, None] + column, mask=kv_mask, other=0.0)
        x = logits(tl.dot(q_tile, k_tile.T, input_precision=PRECISION), scale, softcap)
        if alibi is not None:
            x -= slope[:, None] * tl.abs(position[:, None] - key[None, :]).to(tl.float32)
        seen = inside[None, :]
        if left is not None:
            seen &= key[None, :] >= position[:, None] - left
        if right is not None:
            seen &= key[None, :] <= position[:, None] + right
        x = tl.where(seen, x, -INF)
        new_maximum = tl.maximum(maximum, tl.max(x, 1))
        base = tl.where(new_maximum == -INF, 0.0, new_maximum)
        p = tl.exp2(x - base[:, None])
        rescale = tl.exp2(maximum - base)
        denominator = denominator * rescale + tl.sum(p, 1)
        v_rows = cache_rows(v + kv_head * v_head.to(tl.int64) * 8, page_table, entry, key, inside, PAGE, v_batch, v_row)
        v_tile = tl.load(v_rows[:, None] + column, mask=kv_mask, other=0.0)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * rescale[:, None], input_precision=PRECISION)
        maximum = new_maximum

    empty = denominator == 0.0
    denominator = tl.where(empty, 1.0, denominator)
    acc = acc / denominator[:, None]
    lse = tl.where(empty, -INF, (maximum + tl.log2(denominator)) * LN_2)
    lse_offset = split * rows_in_all.to(tl.int64) + (entry.to(tl.int64) * heads + head) * S + query
    tl.store(part_lse + lse_offset, lse, mask=query < S)
    part_offset = (
        split * rows_in_all.to(tl.int64) * D
        + (entry * part_batch.to(tl.int64) + head * part_head.to(tl.int64) + query * part_row.to(tl.int64)) * 8
    )
    tl.store(part + part_offset[:, None] + column, acc.to(part.dtype.element_ty), mask=q_mask)


@triton.jit(do_not_specialize=DECODE_INTEGERS)
def combine_kernel(
    part, part_lse, out, lse,
    out_batch: tl.int64, out_head: tl.int64, out_row: tl.int64,
    rows_in_all: tl.int64, heads, S, splits,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row of one head: out = Σ exp(lse_s - lse) out_s over the splits s, BLOCK_N at a time, in order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    maximum = -INF
    denominator = 0.0
    for first in range(0, splits, BLOCK_N):
        split = first + tl.arange(0, BLOCK_N)
        inside = split < splits
        x = tl.load(part_lse + split * rows_in_all.to(tl.int64) + row, mask=inside, other=-INF)
        new_maximum = max(maximum, tl.max(x, 0))
        base = tl.where(new_maximum == -INF, 0.0, new_maximum)
        weight = tl.exp2((x - base) * LOG2_E)
        rescale = tl.exp2((maximum - base) * LOG2_E)
        mask = inside[:, None] & (column < D)[None, :]
        offset = (split * rows_in_all.to(tl.int64) + row) * D
        values = tl.load(part + offset[:, None] + column[None, :], mask=mask, other=0.0)
        acc = acc * rescale + tl.sum(values * weight[:, None], 0)
        denominator = denominator * rescale + tl.sum(weight, 0)
        maximum = new_maximum
    empty = denominator == 0.0
    denominator = tl.where(empty, 1.0, denominator)
    tl.store(lse + row, tl.where(empty, -INF, maximum + tl.log2(denominator) * LN_2))
    acc = acc / denominator
    query = row % S
    head = row // S % heads
    entry = row // S // heads
    to = out + (entry * out_batch.to(tl.int64) + head * out_head.to(tl.int64) + query * out_row.to(tl.int64)) * 8
    tl.store(to + column, acc.to(out.dtype.element_ty), mask=column < D)
