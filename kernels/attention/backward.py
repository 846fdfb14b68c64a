"""The backward pass (FlashAttention-2, Dao 2023, algorithm 2) without atomic additions: one kernel owns tiles
of dK and dV and walks over the queries, another owns tiles of dQ and walks over the keys. Probabilities are
computed again from the saved log-sum-exp; that costs 7 products of a tile instead of 5, and makes every run
give equal bits.
"""

from ..frame._triton import tl, triton
from .tiles import (
    INF,
    LOG2_E,
    POINTERS,
    PRECISION,
    RUNTIME_INTEGERS,
    alibi_slope,
    in_listed_blocks,
    in_sequence,
    keep_mask,
    key_ranges,
    listed_blocks,
    load_rows,
    locate,
    logits,
    make_source,
    matrix,
    row_ranges,
    sees,
    step_start,
    steps,
    store_tile,
    with_alibi,
)


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def delta_kernel(
    out, d_out, d_lse, delta,
    out_batch: tl.int64, out_head: tl.int64, out_row: tl.int64,
    d_out_batch: tl.int64, d_out_head: tl.int64, d_out_row: tl.int64,
    rows_in_all: tl.int64, heads, tiles,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(O ∘ dO) - dLSE, which is subtracted from dP: dS = P ∘ (dP - rowsum(O ∘ dO) + dLSE)."""
    program = tl.program_id(0)
    first_row = program % tiles * BLOCK_M
    head = program // tiles % heads
    entry = program // tiles // heads
    out = matrix(out, entry, head, 0, out_batch, out_head, out_row)
    d_out = matrix(d_out, entry, head, 0, d_out_batch, d_out_head, d_out_row)
    o = load_rows(out, first_row, out_row, rows_in_all, D, BLOCK_M, BLOCK_D, POINTERS, True).to(tl.float32)
    g = load_rows(d_out, first_row, d_out_row, rows_in_all, D, BLOCK_M, BLOCK_D, POINTERS, True).to(tl.float32)
    rows = first_row + tl.arange(0, BLOCK_M)
    offset = (entry * heads + head) * rows_in_all.to(tl.int64) + rows
    value = tl.sum(o * g, 1)
    if d_lse is not None:
        value -= tl.load(d_lse + offset, mask=rows < rows_in_all, other=0.0)
    tl.store(delta + offset, value, mask=rows < rows_in_all)


@triton.jit
def load_lse(lse, rows, length):
    """Base-2 log-sum-exp; +inf where a row sees nothing or does not exist, which makes its probabilities
    0."""
    value = tl.load(lse + rows, mask=rows < length, other=INF) * LOG2_E
    return tl.where(value == -INF, INF, value)


@triton.jit
def score_gradient(p, dp, x, delta, softcap, keep, keep_scale):
    """(dropped probabilities for dV, gradient of the products but for the scale)."""
    dropped = p
    if keep is not None:
        dropped = tl.where(keep, p * keep_scale, 0.0)
        dp = tl.where(keep, dp * keep_scale, 0.0)
    ds = p * (dp - delta)
    if softcap is not None:  # x = softcap · tanh(·), and tanh' = 1 - tanh²
        ds *= 1 - (x / softcap) * (x / softcap)
    return dropped, ds


@triton.jit
def gather_keys_gradient(
    dk, dv, k, v, q_source, d_out_source, lse, delta, q_row, d_out_row, low, full_low, full_high, high, blocks, keys,
    S, T, left, right, scale, softcap, slope, seed, threshold, keep_scale, sequence, head, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, MASK_BLOCK: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds to dK and dV of a tile of keys what the masked rows or the full ones of one head give. Scores
    stand transposed, so that P and dS enter their products from registers."""
    for step in tl.range(0, steps(low, full_low, full_high, high, BLOCK_M, MASKED)):
        first = in_sequence(step_start(step, low, full_low, full_high, BLOCK_M, MASKED), blocks, MASK_BLOCK)
        rows = first + tl.arange(0, BLOCK_M)
        q = load_rows(q_source, first, q_row, S, D, BLOCK_M, BLOCK_D, TMA, MASKED)
        product = tl.dot(k, q.T, input_precision=PRECISION)
        d_out = load_rows(d_out_source, first, d_out_row, S, D, BLOCK_M, BLOCK_D, TMA, MASKED)
        row_lse = load_lse(lse, rows, S)
        row_delta = tl.load(delta + rows, mask=rows < S, other=0.0)
        dp = tl.dot(v, d_out.T, input_precision=PRECISION)  # Runs while the probabilities are computed.
        x = logits(product, scale, softcap)
        p = tl.exp2(with_alibi(x, slope, rows[None, :], keys[:, None], S, T) - row_lse[None, :])
        if MASKED:
            p = tl.where(sees(rows[None, :], keys[:, None], S, T, left, right), p, 0.0)
        keep = None
        if seed is not None:
            keep = keep_mask(seed, threshold, sequence, head, rows[None, :], keys[:, None])
        dropped, ds = score_gradient(p, dp, x, row_delta[None, :], softcap, keep, keep_scale)
        dv = tl.dot(dropped.to(d_out.dtype), d_out, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def keys_gradient_kernel(
    q, k, v, d_out, lse, delta, dk, dv, alibi, mask_of_keys, seed, cu_q, cu_k, used_q, used_k, pad_k,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    d_out_batch: tl.int64, d_out_head: tl.int64, d_out_row: tl.int64,
    dk_batch: tl.int64, dk_head: tl.int64, dk_row: tl.int64,
    dv_batch: tl.int64, dv_head: tl.int64, dv_row: tl.int64,
    rows_in_all: tl.int64, batch, heads, tiles, S, T, left, right, scale: tl.float32,
    natural_scale: tl.float32, softcap, threshold, keep_scale: tl.float32,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, MASK_BLOCK: tl.constexpr, MASK_BY_ENTRY: tl.constexpr, MASK_BY_HEAD: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)  # Under a causal mask the first tile of keys is seen by the most queries.
    kv_head = program // tiles % (heads // GROUP)
    tile, sequence, k_start, q_start, T, S = locate(
        program % tiles, program // tiles // (heads // GROUP), batch, cu_k, cu_q, used_k, used_q, pad_k, None, T, S,
        BLOCK_N,
    )  # fmt: skip
    first_key = tile * BLOCK_N
    if first_key >= T:
        return
    entry = sequence if cu_q is None else 0
    k_source = make_source(k, entry, kv_head, k_start, k_batch, k_head, k_row, T, D, BLOCK_N, BLOCK_D, TMA)
    v_source = make_source(v, entry, kv_head, k_start, v_batch, v_head, v_row, T, D, BLOCK_N, BLOCK_D, TMA)
    keys = first_key + tl.arange(0, BLOCK_N)
    k_tile = load_rows(k_source, first_key, k_row, T, D, BLOCK_N, BLOCK_D, TMA, True)
    v_tile = load_rows(v_source, first_key, v_row, T, D, BLOCK_N, BLOCK_D, TMA, True)
    dk_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    low, full_low, full_high, high = row_ranges(first_key, S, T, left, right, BLOCK_M, BLOCK_N)
    for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
        q_source = make_source(q, entry, head, q_start, q_batch, q_head, q_row, S, D, BLOCK_M, BLOCK_D, TMA)
        d_out_source = make_source(
            d_out, entry, head, q_start, d_out_batch, d_out_head, d_out_row, S, D, BLOCK_M, BLOCK_D, TMA
        )
        row_offset = (entry * heads + head) * rows_in_all.to(tl.int64) + q_start
        slope = None if alibi is None else alibi_slope(alibi, sequence, heads, head)
        blocks = None
        if mask_of_keys is not None:
            blocks = listed_blocks(
                mask_of_keys, entry, head, heads, first_key, T, S, MASK_BLOCK, MASK_BY_ENTRY, MASK_BY_HEAD
            )
        ranges = in_listed_blocks(low, full_low, full_high, high, blocks, S, BLOCK_M, MASK_BLOCK)
        for phase in tl.static_range(2):  # First without masks, then the boundaries.
            dk_tile, dv_tile = gather_keys_gradient(
                dk_tile, dv_tile, k_tile, v_tile, q_source, d_out_source, lse + row_offset, delta +
                row_offset, q_row, d_out_row, ranges[0], ranges[1], ranges[2], ranges[3], blocks, keys, S, T, left,
                right, scale, softcap, slope, seed, threshold, keep_scale, sequence, head, D, BLOCK_M, BLOCK_D,
                MASK_BLOCK, TMA, phase == 1,
            )  # fmt: skip
    dk_source = make_source(dk, entry, kv_head, k_start, dk_batch, dk_head, dk_row, T, D, BLOCK_N, BLOCK_D, TMA)
    store_tile(dk_source, first_key, dk_row, T, dk_tile * natural_scale, D, BLOCK_N, BLOCK_D, TMA)
    dv_source = make_source(dv, entry, kv_head, k_start, dv_batch, dv_head, dv_row, T, D, BLOCK_N, BLOCK_D, TMA)
    store_tile(dv_source, first_key, dv_row, T, dv_tile, D, BLOCK_N, BLOCK_D, TMA)


@triton.jit
def gather_queries_gradient(
    dq, q, d_out, lse, delta, k_source, v_source, k_row, v_row, low, full_low, full_high, high, blocks, rows,
    S, T, left, right, scale, softcap, slope, seed, threshold, keep_scale, sequence, head, D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASK_BLOCK: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds to dQ of a tile of rows what the masked keys or the full ones give."""
    for step in tl.range(0, steps(low, full_low, full_high, high, BLOCK_N, MASKED)):
        first = in_sequence(step_start(step, low, full_low, full_high, BLOCK_N, MASKED), blocks, MASK_BLOCK)
        keys = first + tl.arange(0, BLOCK_N)
        k = load_rows(k_source, first, k_row, T, D, BLOCK_N, BLOCK_D, TMA, MASKED)
        product = tl.dot(q, k.T, input_precision=PRECISION)
        v = load_rows(v_source, first, v_row, T, D, BLOCK_N, BLOCK_D, TMA, MASKED)
        dp = tl.dot(d_out, v.T, input_precision=PRECISION)  # Runs while the probabilities are computed.
        x = logits(product, scale, softcap)
        p = tl.exp2(with_alibi(x, slope, rows[:, None], keys[None, :], S, T) - lse[:, None])
        if MASKED:
            p = tl.where(sees(rows[:, None], keys[None, :], S, T, left, right), p, 0.0)
        keep = None
        if seed is not None:
            keep = keep_mask(seed, threshold, sequence, head, rows[:, None], keys[None, :])
        _, ds = score_gradient(p, dp, x, delta[:, None], softcap, keep, keep_scale)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def queries_gradient_kernel(
    q, k, v, d_out, lse, delta, dq, alibi, mask, seed, cu_q, cu_k, used_q, used_k, pad_k,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    d_out_batch: tl.int64, d_out_head: tl.int64, d_out_row: tl.int64,
    dq_batch: tl.int64, dq_head: tl.int64, dq_row: tl.int64,
    rows_in_all: tl.int64, batch, heads, tiles, S, T, left, right, scale: tl.float32,
    natural_scale: tl.float32, softcap, threshold, keep_scale: tl.float32,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, MASK_BLOCK: tl.constexpr, MASK_BY_ENTRY: tl.constexpr, MASK_BY_HEAD: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = program // tiles % heads
    tile, sequence, q_start, k_start, S, T = locate(
        tiles - 1 - program % tiles, program // tiles // heads, batch, cu_q, cu_k, used_q, used_k, None, pad_k, S, T,
        BLOCK_M,
    )  # fmt: skip
    first_row = tile * BLOCK_M
    if first_row >= S:
        return
    entry = sequence if cu_q is None else 0
    kv_head = head // GROUP
    k_source = make_source(k, entry, kv_head, k_start, k_batch, k_head, k_row, T, D, BLOCK_N, BLOCK_D, TMA)
    v_source = make_source(v, entry, kv_head, k_start, v_batch, v_head, v_row, T, D, BLOCK_N, BLOCK_D, TMA)
    q_source = make_source(q, entry, head, q_start, q_batch, q_head, q_row, S, D, BLOCK_M, BLOCK_D, TMA)
    d_out_source = make_source(
        d_out, entry, head, q_start, d_out_batch, d_out_head, d_out_row, S, D, BLOCK_M, BLOCK_D, TMA
    )
    row_offset = (entry * heads + head) * rows_in_all.to(tl.int64) + q_start

    rows = first_row + tl.arange(0, BLOCK_M)
    q_tile = load_rows(q_source, first_row, q_row, S, D, BLOCK_M, BLOCK_D, TMA, True)
    d_out_tile = load_rows(d_out_source, first_row, d_out_row, S, D, BLOCK_M, BLOCK_D, TMA, True)
    row_lse = load_lse(lse + row_offset, rows, S)
    row_delta = tl.load(delta + row_offset + rows, mask=rows < S, other=0.0)
    dq_tile = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    slope = None if alibi is None else alibi_slope(alibi, sequence, heads, head)
    low, full_low, full_high, high = key_ranges(first_row, S, T, left, right, BLOCK_M, BLOCK_N)
    blocks = None
    if mask is not None:
        blocks = listed_blocks(mask, entry, head, heads, first_row, S, T, MASK_BLOCK, MASK_BY_ENTRY, MASK_BY_HEAD)
    low, full_low, full_high, high = in_listed_blocks(low, full_low, full_high, high, blocks, T, BLOCK_N, MASK_BLOCK)
    for phase in tl.static_range(2):  # First without masks, then the boundaries.
        dq_tile = gather_queries_gradient(
            dq_tile, q_tile, d_out_tile, row_lse, row_delta, k_source, v_source, k_row, v_row,
            low, full_low, full_high, high, blocks, rows, S, T, left, right, scale, softcap, slope,
            seed, threshold, keep_scale, sequence, head, D, BLOCK_N, BLOCK_D, MASK_BLOCK, TMA, phase == 1,
        )  # fmt: skip
    dq_source = make_source(dq, entry, head, q_start, dq_batch, dq_head, dq_row, S, D, BLOCK_M, BLOCK_D, TMA)
    store_tile(dq_source, first_row, dq_row, S, dq_tile * natural_scale, D, BLOCK_M, BLOCK_D, TMA)
