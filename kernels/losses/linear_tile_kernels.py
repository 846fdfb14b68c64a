"""The Triton kernels of ``linear_tiles``: what they compute is written there and in ``loss_math``.

Every kernel sees the tokens with those that count first, and reads from ``count`` how many these are: what
lies behind them is neither loaded nor computed.
"""

from ..frame._triton import tl, triton
from .cross_entropy_kernels import shift_of
from .loss_math import cap, exp, gradient_factors, logit_gradient, token_loss


@triton.jit
def _tile_of(program, rows, columns, GROUP: tl.constexpr):
    """(row, column) of a program's tile: GROUP rows of tiles go through the columns together, so that what
    they read of the other operand comes from the L2 cache."""
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    inside = program % (GROUP * columns)
    return first + inside % height, inside // height


@triton.jit
def _wrapped(e, width):
    """``e`` modulo ``width``, a multiple of 64: what is past the end reads from the start, without a mask."""
    return tl.max_contiguous(tl.multiple_of(e % width, 64), 64)


@triton.jit
def _logits(
    hidden, weight, bias, block, tile, start, tokens, vocabulary, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The float32 logits of a block of tokens and a tile of the classes from ``start`` on; garbage, but no fault, past
    the ends. With TMA hidden and weight are descriptors, and else pointers."""
    row = block * ROWS + tl.arange(0, ROWS)
    column = start + tile * COLUMNS + tl.arange(0, COLUMNS)
    z = tl.zeros((ROWS, COLUMNS), tl.float32)
    if TMA:
        for k in range(0, width, DEPTH):
            z = tl.dot(hidden.load([block * ROWS, k]), weight.load([start + tile * COLUMNS, k]).T, z)
    else:
        depth = tl.arange(0, DEPTH)
        h = hidden + tl.where(row < tokens, row, 0).to(tl.int64)[:, None] * width + depth[None, :]
        w = weight + tl.where(column < vocabulary, column, 0).to(tl.int64)[:, None] * width + depth[None, :]
        for _ in range(0, width, DEPTH):
            z = tl.dot(tl.load(h), tl.load(w).T, z)
            h += DEPTH
            w += DEPTH
    if bias is not None:
        z += tl.load(bias + column, column < vocabulary, other=0.0).to(tl.float32)[None, :]
    return z


@triton.jit(do_not_specialize=["tokens", "splits", "tiles_a_split"])
def tile_statistics(
    hidden, weight, bias, target, class_weight, count, statistics, target_logit, largest, place,
    tokens: tl.int64, vocabulary, width, splits, tiles_a_split, softcap,
    SMOOTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Of each token and one split of the vocabulary: the largest logit, the sum of exponentials below it, and
    where it is asked for the weighted sum of logits, and the ``largest`` before the cap with its ``place``. The logits
    stay in registers."""
    block, split = _tile_of(tl.program_id(0), tl.cdiv(tokens, ROWS).to(tl.int32), splits, GROUP)
    if block * ROWS >= tl.load(count):
        return
    row = block * ROWS + tl.arange(0, ROWS)
    label = tl.load(target + row, row < tokens, other=-1).to(tl.int64)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    best_class = tl.zeros((ROWS,), tl.int32)
    first = split * tiles_a_split
    for tile in range(first, tl.minimum(first + tiles_a_split, tl.cdiv(vocabulary, COLUMNS))):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        z = _logits(hidden, weight, bias, block, tile, 0, tokens, vocabulary, width, ROWS, COLUMNS, DEPTH, TMA)
        inside = (column < vocabulary)[None, :]
        if largest is not None:
            within = tl.where(inside, z, float("-inf"))
            here_best = tl.max(within, 1)
            here_class = tl.min(tl.where(within == here_best[:, None], column[None, :], vocabulary), 1)
            best_class = tl.where(here_best > best, here_class, best_class)
            best = tl.maximum(best, here_best)
        z = cap(z, softcap)
        if SMOOTH:
            if class_weight is None:
                weighted += tl.sum(tl.where(inside, z, 0.0), 1)
            else:
                w = tl.load(class_weight + column, column < vocabulary, other=0.0)
                weighted += tl.sum(tl.where(inside, z, 0.0) * w[None, :], 1)
        at_target = column[None, :] == label.to(tl.int32)[:, None]  # int64 would double the registers
        here = (label // COLUMNS == tile) & (row < tokens)  # one program in all sees a token's target
        tl.store(target_logit + row, tl.sum(tl.where(at_target, z, 0.0), 1), here)
        z = tl.where(inside, z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 1))
        shift = shift_of(higher)
        total = total * exp(top - shift) + tl.sum(exp(z - shift[:, None]), 1)
        top = higher
    at = statistics + split * tokens + row
    tl.store(at, top, row < tokens)
    tl.store(at + splits * tokens, total, row < tokens)
    if SMOOTH:
        tl.store(at + 2 * splits * tokens, weighted, row < tokens)
    if largest is not None:
        tl.store(largest + split * tokens + row, best, row < tokens)
        tl.store(place + split * tokens + row, best_class, row < tokens)


@triton.jit(do_not_specialize=["tokens", "splits", "ignore_index"])
def combine_statistics(
    statistics, target_logit, largest, place, target, order, class_weight, weight_sum, loss, lse, correct,
    tokens: tl.int64, vocabulary, splits, ignore_index: tl.int64, label_smoothing, z_loss,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The splits of each token put together, first to last, and written where the token came from."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < tokens
    label = tl.load(target + row, inside, other=0).to(tl.int64)
    valid = inside & (label != ignore_index)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    predicted = tl.zeros((BLOCK,), tl.int32)
    for split in range(splits):
        at = statistics + split * tokens + row
        other_top = tl.load(at, valid, other=float("-inf"))
        other_total = tl.load(at + splits * tokens, valid, other=0.0)
        higher = tl.maximum(top, other_top)
        shift = shift_of(higher)
        total = total * exp(top - shift) + other_total * exp(other_top - shift)
        top = higher
        if label_smoothing is not None:
            weighted += tl.load(at + 2 * splits * tokens, valid, other=0.0)
        if largest is not None:
            other_best = tl.load(largest + split * tokens + row, valid, other=float("-inf"))
            other_class = tl.load(place + split * tokens + row, valid, other=0)
            predicted = tl.where(other_best > best, other_class, predicted)
            best = tl.maximum(best, other_best)
    total = tl.where(valid, total, 1.0)
    top = shift_of(top)
    log_sum = top + tl.log(total)  # 0 where ignored
    known = valid & (label >= 0) & (label < vocabulary)
    value, _ = token_loss(
        top, total, tl.load(target_logit + row, known, other=0.0), weighted, log_sum, label, valid,
        vocabulary, class_weight, weight_sum, label_smoothing, z_loss, None,
    )  # fmt: skip
    home = tl.load(order + row, inside, other=0)
    tl.store(loss + home, value, inside)
    tl.store(lse + home, log_sum, inside)
    if correct is not None:
        tl.store(correct + home, (known & (predicted == label)).to(tl.float32), inside)


@triton.jit(do_not_specialize=["tokens", "ignore_index", "start"])
def tile_gradients(
    grad_loss, grad_lse, hidden, weight, bias, target, class_weight, weight_sum, lse, count, gradients, live,
    tokens: tl.int64, vocabulary, width, start, columns, ignore_index: tl.int64,
    label_smoothing, z_loss, softcap, gradient_filter,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The derivative by the logits of ``columns`` classes from ``start`` on; 0 past the ends. Where gradients are
    filtered, ``live`` says of each tile whether any is left."""
    block, tile = _tile_of(tl.program_id(0), tl.cdiv(tokens, ROWS).to(tl.int32), tl.cdiv(columns, COLUMNS), GROUP)
    if block * ROWS >= tl.load(count):
        return
    row = block * ROWS + tl.arange(0, ROWS)
    here = tile * COLUMNS + tl.arange(0, COLUMNS)
    column = start + here
    z = _logits(hidden, weight, bias, block, tile, start, tokens, vocabulary, width, ROWS, COLUMNS, DEPTH, TMA)
    z = cap(z, softcap)
    label = tl.load(target + row, row < tokens, other=0).to(tl.int64)
    valid = (row < tokens) & (label != ignore_index)
    log_sum = tl.load(lse + row, valid, other=0.0)
    upstream = tl.load(grad_loss + row, valid, other=0.0)
    upstream_lse = 0.0
    if grad_lse is not None:
        upstream_lse = tl.load(grad_lse + row, valid, other=0.0)
    a, b, c = gradient_factors(
        upstream, upstream_lse, log_sum, label, valid, vocabulary,
        class_weight, weight_sum, label_smoothing, z_loss, None,
    )  # fmt: skip
    gradient = logit_gradient(
        z, log_sum[:, None], a[:, None], b[:, None], c[:, None], column[None, :], label.to(tl.int32)[:, None],
        vocabulary, class_weight, label_smoothing, softcap, gradient_filter,
    )  # fmt: skip
    gradient = tl.where(valid[:, None] & (column < vocabulary)[None, :], gradient, 0.0)
    at = row.to(tl.int64)[:, None] * columns + here[None, :]
    tl.store(gradients + at, gradient.to(gradients.dtype.element_ty))
    if live is not None:
        left = tl.max(tl.abs(gradient)) > 0.0
        tl.store(live + block * tl.cdiv(columns, COLUMNS) + tile, left.to(tl.int32))


@triton.jit
def _is_live(live, block, column, columns, LIVE: tl.constexpr):
    """Whether the filter left anything in the tile, LIVE columns wide, of this block of tokens and this column."""
    if live is None:
        return True
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return tl.load(live + block * (columns // LIVE) + column // LIVE) != 0


@triton.jit(do_not_specialize=["tokens", "start"])
def hidden_gradient(
    gradients, live, weight, order, count, sums, grad_hidden,
    tokens: tl.int64, vocabulary, width, start, columns, LIVE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """``sums (N, E) + gradients (N, C) @ weight[start : start + C]``, which the last chunk writes home."""
    block, tile = _tile_of(tl.program_id(0), tl.cdiv(tokens, ROWS).to(tl.int32), tl.cdiv(width, COLUMNS), GROUP)
    if block * ROWS >= tl.load(count):
        return
    row = block * ROWS + tl.arange(0, ROWS)
    e = tile * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    d = gradients + row.to(tl.int64)[:, None] * columns + depth[None, :]
    w = weight + (start + depth).to(tl.int64)[:, None] * width + _wrapped(e, width)[None, :]
    mask = (row < tokens)[:, None] & (e < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + e[None, :]
    if FIRST:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        total = tl.load(sums + at, mask, other=0.0)
    for v in range(0, columns, DEPTH):
        if _is_live(live, block, v, columns, LIVE):
            w_tile = tl.load(w, (start + v + depth < vocabulary)[:, None], other=0.0)
            total = tl.dot(tl.load(d), w_tile, total)
        d += DEPTH
        w += DEPTH * width
    if LAST:
        home = tl.load(order + row, row < tokens, other=0)[:, None] * width + e[None, :]
        tl.store(grad_hidden + home, total.to(grad_hidden.dtype.element_ty), mask)
    else:
        tl.store(sums + at, total, mask)


@triton.jit(do_not_specialize=["start"])
def weight_gradient(
    gradients, live, hidden, count, grad_weight,
    vocabulary, width, start, columns, LIVE_ROWS: tl.constexpr, LIVE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """``gradients (N, C)ᵀ @ hidden (N, E)``: one float32 sum over all tokens that count, rounded once."""
    block, tile = _tile_of(tl.program_id(0), tl.cdiv(columns, ROWS), tl.cdiv(width, COLUMNS), GROUP)
    v = block * ROWS + tl.arange(0, ROWS)
    e = tile * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    tokens = tl.load(count)
    d = gradients + depth.to(tl.int64)[:, None] * columns + _wrapped(v, columns)[None, :]
    h = hidden + depth.to(tl.int64)[:, None] * width + _wrapped(e, width)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n in range(0, tokens, DEPTH):
        if _is_live(live, n // LIVE_ROWS, block * ROWS, columns, LIVE):
            counted = (n + depth < tokens)[:, None]
            total = tl.dot(tl.load(d, counted, other=0.0).T, tl.load(h, counted, other=0.0), total)
        d += DEPTH * columns
        h += DEPTH * width
    at = (start + v).to(tl.int64)[:, None] * width + e[None, :]
    mask = ((v < columns) & (start + v < vocabulary))[:, None] & (e < width)[None, :]
    tl.store(grad_weight + at, total.to(grad_weight.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["start"])
def bias_gradient(gradients, count, grad_bias, vocabulary, start, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of ``gradients`` (N, C) over the tokens that count."""
    v = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tokens = tl.load(count)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n in range(0, tokens, ROWS):
        row = n + tl.arange(0, ROWS)
        mask = (row < tokens)[:, None] & (v < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + v[None, :]
        total += tl.load(gradients + at, mask, other=0.0).to(tl.float32)
    sums = tl.sum(total, 0).to(grad_bias.dtype.element_ty)
    tl.store(grad_bias + start + v, sums, (v < columns) & (start + v < vocabulary))
