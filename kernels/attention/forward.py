"""The forward pass: one program computes BLOCK_M rows of one head, walking over the keys (FlashAttention-2,
Dao 2023, algorithm 1).

Two orders of tiles, and ``launch.persistent_programs`` chooses: a program a tile, those of a head longest first
(under a causal mask the last tile sees the most keys), which the hardware hands to whichever multiprocessor is
free; or as many programs as multiprocessors, each walking over pairs of tiles that see equally many keys.
"""

from ..frame._triton import tl, triton
from .tiles import (
    INF,
    LN_2,
    LOG2_E,
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
    sees,
    step_start,
    steps,
    store_tile,
    with_alibi,
)


@triton.jit
def softmax_step(
    product, denominator, maximum, rows, first, S, T, left, right, scale, softcap, slope, seed, threshold, sequence,
    head, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """(probabilities, denominator, maximum, factor for what was summed before), after the products with one more tile
    of keys: online softmax in the base-2 exponent, see FlashAttention-2, section 3.1."""
    keys = first + tl.arange(0, BLOCK_N)
    if MASKED or softcap is not None or slope is not None:
        x = with_alibi(logits(product, scale, softcap), slope, rows[:, None], keys[None, :], S, T)
        if MASKED:
            x = tl.where(sees(rows[:, None], keys[None, :], S, T, left, right), x, -INF)
        new_maximum = tl.maximum(maximum, tl.max(x, 1))
        base = tl.where(new_maximum == -INF, 0.0, new_maximum)  # Rows that have seen nothing yet.
        p = tl.exp2(x - base[:, None])
    else:
        # The scale is positive, so it can wait until after the maximum: one fused multiply-add per element.
        new_maximum = tl.maximum(maximum, tl.max(product, 1) * scale)
        base = new_maximum
        p = tl.exp2(product * scale - base[:, None])
    rescale = tl.exp2(maximum - base)
    denominator = denominator * rescale + tl.sum(p, 1)
    if seed is not None:
        p = tl.where(keep_mask(seed, threshold, sequence, head, rows[:, None], keys[None, :]), p, 0.0)
    return p, denominator, new_maximum, rescale


@triton.jit
def attend_keys(
    acc, denominator, maximum, waiting, before, begin, q, k_source, v_source, k_stride, v_stride,
    low, full_low, full_high, high, blocks, rows, S, T, left, right, scale, softcap, slope, seed, threshold, sequence,
    head, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr, ROTATED: tl.constexpr,
    MASK_BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds the masked tiles of keys or the full ones, from step ``begin`` on. ROTATED: ``waiting`` are the
    probabilities of the tile at ``before``, whose product with their values runs while the tensor cores would
    otherwise wait for the softmax of the next tile."""
    for step in tl.range(begin, steps(low, full_low, full_high, high, BLOCK_N, MASKED)):
        first = in_sequence(step_start(step, low, full_low, full_high, BLOCK_N, MASKED), blocks, MASK_BLOCK)
        k = load_rows(k_source, first, k_stride, T, D, BLOCK_N, BLOCK_D, TMA, MASKED)
        product = tl.dot(q, k.T, input_precision=PRECISION)
        if ROTATED:
            v = load_rows(v_source, before, v_stride, T, D, BLOCK_N, BLOCK_D, TMA, True)
            acc = tl.dot(waiting.to(v.dtype), v, acc, input_precision=PRECISION)
        p, denominator, maximum, rescale = softmax_step(
            product, denominator, maximum, rows, first, S, T, left, right, scale, softcap, slope,
            seed, threshold, sequence, head, BLOCK_N, MASKED,
        )  # fmt: skip
        acc = acc * rescale[:, None]
        if ROTATED:
            waiting = p
            before = first
        else:
            v = load_rows(v_source, first, v_stride, T, D, BLOCK_N, BLOCK_D, TMA, MASKED)
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, denominator, maximum, waiting, before


@triton.jit
def attend_rows(
    q, k, v, out, lse, sinks, alibi, mask, seed,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    entry, sequence, head, heads, rows_in_all, first_row, q_start, k_start, S, T, left, right, scale, softcap,
    threshold, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, MASK_BLOCK: tl.constexpr, MASK_BY_ENTRY: tl.constexpr, MASK_BY_HEAD: tl.constexpr,
    TMA: tl.constexpr, ROTATED: tl.constexpr, IN_ORDER: tl.constexpr,
):  # fmt: skip
    """The BLOCK_M rows of a head of a sequence from first_row on."""
    kv_head = head // GROUP
    slope = None if alibi is None else alibi_slope(alibi, sequence, heads, head)
    k_source = make_source(k, entry, kv_head, k_start, k_batch, k_head, k_row, T, D, BLOCK_N, BLOCK_D, TMA)
    v_source = make_source(v, entry, kv_head, k_start, v_batch, v_head, v_row, T, D, BLOCK_N, BLOCK_D, TMA)
    q_source = make_source(q, entry, head, q_start, q_batch, q_head, q_row, S, D, BLOCK_M, BLOCK_D, TMA)
    lse += (entry * heads + head) * rows_in_all.to(tl.int64) + q_start

    rows = first_row + tl.arange(0, BLOCK_M)
    q_tile = load_rows(q_source, first_row, q_row, S, D, BLOCK_M, BLOCK_D, TMA, True)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if sinks is None:
        maximum = tl.full([BLOCK_M], -INF, tl.float32)
        denominator = tl.zeros([BLOCK_M], tl.float32)
    else:  # A key that has been seen already, and whose value is 0.
        maximum = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        denominator = tl.full([BLOCK_M], 1.0, tl.float32)

    low, full_low, full_high, high = key_ranges(first_row, S, T, left, right, BLOCK_M, BLOCK_N)
    if IN_ORDER:  # Every tile of keys by the same arithmetic, first to last, whichever rows are beside a row.
        full_high = full_low
    blocks = None
    if mask is not None:
        blocks = listed_blocks(mask, entry, head, heads, first_row, S, T, MASK_BLOCK, MASK_BY_ENTRY, MASK_BY_HEAD)
    low, full_low, full_high, high = in_listed_blocks(low, full_low, full_high, high, blocks, T, BLOCK_N, MASK_BLOCK)
    waiting, before, taken = 0, 0, 0
    if ROTATED:  # The first tile, whose values the loop takes, is not in the loop.
        before = tl.where(full_high > full_low, full_low, step_start(0, low, full_low, full_high, BLOCK_N, True))
        before = in_sequence(before, blocks, MASK_BLOCK)
        k_tile = load_rows(k_source, before, k_row, T, D, BLOCK_N, BLOCK_D, TMA, True)
        waiting, denominator, maximum, _ = softmax_step(
            tl.dot(q_tile, k_tile.T, input_precision=PRECISION), denominator, maximum, rows, before,
            S, T, left, right, scale, softcap, slope, seed, threshold, sequence, head, BLOCK_N, True,
        )  # fmt: skip
        taken = 1
    for phase in tl.static_range(2):  # First without masks, then the boundaries.
        acc, denominator, maximum, waiting, before = attend_keys(
            acc, denominator, maximum, waiting, before, taken, q_tile, k_source, v_source, k_row, v_row,
            low, full_low, full_high, high, blocks, rows, S, T, left, right, scale, softcap, slope,
            seed, threshold, sequence, head, D, BLOCK_N, BLOCK_D, TMA, ROTATED, MASK_BLOCK, phase == 1,
        )  # fmt: skip
        if ROTATED:
            taken = tl.where(full_high > full_low, 0, 1)
    if ROTATED:
        v_tile = load_rows(v_source, before, v_row, T, D, BLOCK_N, BLOCK_D, TMA, True)
        acc = tl.dot(waiting.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION)

    empty = denominator == 0.0
    denominator = tl.where(empty, 1.0, denominator)
    acc = acc * (keep_scale / denominator)[:, None]
    tl.store(lse + rows, tl.where(empty, -INF, (maximum + tl.log2(denominator)) * LN_2), mask=rows < S)
    out_source = make_source(out, entry, head, q_start, out_batch, out_head, out_row, S, D, BLOCK_M, BLOCK_D, TMA)
    store_tile(out_source, first_row, out_row, S, acc, D, BLOCK_M, BLOCK_D, TMA)


@triton.jit
def turns(tiles, heads_in_all, PERSISTENT: tl.constexpr):
    """How many tiles this program takes; of a pair's two, an odd number's middle tile is taken once."""
    if PERSISTENT:
        pairs = (tiles + 1) // 2 * heads_in_all
        return 2 * tl.cdiv(pairs - tl.program_id(0), tl.num_programs(0))
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return 1


@triton.jit
def tile_of_turn(turn, tiles, PERSISTENT: tl.constexpr):
    """(tile, head in all, whether there is such a tile) of a program's turn."""
    program = tl.program_id(0)
    if PERSISTENT:
        # Tile i of n and tile n - 1 - i see n + 1 tiles of keys together, whichever pair it is.
        half = (tiles + 1) // 2
        pair = program + turn // 2 * tl.num_programs(0)
        short = pair % half
        tile = tl.where(turn % 2 == 0, tiles - 1 - short, short)
        return tile, pair // half, (turn % 2 == 0) | (2 * short != tiles - 1)
    else:  # noqa: RET505
        return tiles - 1 - program % tiles, program // tiles, True


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def forward_kernel(
    q, k, v, out, lse, sinks, alibi, mask, seed, cu_q, cu_k, used_q, used_k, pad_k,
    q_batch: tl.int64, q_head: tl.int64, q_row: tl.int64,
    k_batch: tl.int64, k_head: tl.int64, k_row: tl.int64,
    v_batch: tl.int64, v_head: tl.int64, v_row: tl.int64,
    out_batch: tl.int64, out_head: tl.int64, out_row: tl.int64,
    rows_in_all: tl.int64, batch, heads, tiles, S, T, left, right, scale: tl.float32, softcap,
    threshold, keep_scale: tl.float32,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, MASK_BLOCK: tl.constexpr, MASK_BY_ENTRY: tl.constexpr, MASK_BY_HEAD: tl.constexpr,
    TMA: tl.constexpr, ROTATED: tl.constexpr, PERSISTENT: tl.constexpr, IN_ORDER: tl.constexpr,
):  # fmt: skip
    for turn in tl.range(0, turns(tiles, heads * batch, PERSISTENT), disable_licm=True):
        tile, head_in_all, exists = tile_of_turn(turn, tiles, PERSISTENT)
        tile, sequence, q_start, k_start, rows, keys = locate(
            tile, head_in_all // heads, batch, cu_q, cu_k, used_q, used_k, None, pad_k, S, T, BLOCK_M
        )
        if exists & (tile * BLOCK_M < rows):
            attend_rows(
                q, k, v, out, lse, sinks, alibi, mask, seed,
                q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
                out_batch, out_head, out_row, sequence if cu_q is None else 0, sequence, head_in_all % heads,
                heads, rows_in_all, tile * BLOCK_M, q_start, k_start, rows, keys, left, right, scale, softcap,
                threshold, keep_scale, GROUP, D, BLOCK_M, BLOCK_N, BLOCK_D, MASK_BLOCK, MASK_BY_ENTRY, MASK_BY_HEAD,
                TMA, ROTATED, IN_ORDER,
            )  # fmt: skip
