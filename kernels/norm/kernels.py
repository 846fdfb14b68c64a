"""The Triton kernels of ``norm``: what they compute is written there.

A kernel sees the rows in groups: row i of group g is row ``i · groups + g`` of the tensor, and the parameters
have one row a group. With per-head parameters a head is a group; else there is one group.
"""

from ..frame._triton import tl, triton
from ..frame.rows import row_offset


@triton.jit
def _row_mean(values, width):
    return tl.sum(values, 1) / width


@triton.jit
def _scale(weight, weight_offset, index, mask):
    """The weight of each column, float32; 1 without a weight."""
    if weight is None:
        return 1.0
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return tl.load(weight + index, mask, other=0.0).to(tl.float32) + weight_offset


@triton.jit(do_not_specialize=["rows", "n1", "n2", "s0", "s1"])
def norm_forward(
    x, residual, weight, bias, y, h, stats,
    rows: tl.int64, groups, width, n1: tl.int64, n2: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    eps: tl.float32, weight_offset: tl.float32,
    CENTER: tl.constexpr, STRIDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    in_group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    stat = stats + in_group * groups + group
    row = (in_group * groups + group)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (in_group < rows)[:, None] & (column < width)
    parameter = group * width + column
    scale = _scale(weight, weight_offset, parameter, column < width)

    value = tl.load(x + row_offset(row, n1, n2, s0, s1, s2, width, STRIDED) + column, mask, other=0.0)
    if residual is not None:
        added = value.to(tl.float32) + tl.load(residual + row * width + column, mask, other=0.0).to(tl.float32)
        value = added.to(h.dtype.element_ty)
        tl.store(h + row * width + column, value, mask)
    value = value.to(tl.float32)
    if CENTER:
        mean = _row_mean(value, width)
        value = tl.where(mask, value - mean[:, None], 0.0)
        tl.store(stat + rows * groups, mean, in_group < rows)
    inverse = tl.rsqrt(_row_mean(value * value, width) + eps)
    tl.store(stat, inverse, in_group < rows)

    out = value * inverse[:, None] * scale
    if bias is not None:
        out += tl.load(bias + parameter, column < width, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, out.to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "n1", "n2", "s0", "s1"])
def norm_forward_wide(
    x, residual, weight, bias, y, h, stats,
    rows: tl.int64, groups, width, n1: tl.int64, n2: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    eps: tl.float32, weight_offset: tl.float32,
    CENTER: tl.constexpr, STRIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * groups + group
    x += row_offset(row, n1, n2, s0, s1, s2, width, STRIDED)

    # Every lane keeps the mean and the sum of squared deviations of the columns it saw (Welford, 1962).
    lane_mean = tl.zeros((BLOCK,), tl.float32)
    lane_square = tl.zeros((BLOCK,), tl.float32)
    lane_count = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < width
        value = tl.load(x + column, mask, other=0.0)
        if residual is not None:
            added = value.to(tl.float32) + tl.load(residual + row * width + column, mask, other=0.0)
            value = added.to(h.dtype.element_ty)
            tl.store(h + row * width + column, value, mask)
        value = value.to(tl.float32)
        if CENTER:
            lane_count += mask.to(tl.float32)
            change = tl.where(mask, value - lane_mean, 0.0)
            lane_mean += change / tl.maximum(lane_count, 1.0)
            lane_square += tl.where(mask, change * (value - lane_mean), 0.0)
        else:
            lane_square += value * value
    mean = 0.0
    if CENTER:  # the lanes put together (Chan, Golub and LeVeque, 1979)
        mean = tl.sum(lane_mean * lane_count) / width
        lane_square += lane_count * (lane_mean - mean) * (lane_mean - mean)
        tl.store(stats + rows * groups + row, mean)
    inverse = tl.rsqrt(tl.sum(lane_square) / width + eps)
    tl.store(stats + row, inverse)

    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < width
        # Read x again, not h: another thread may have written it.
        value = tl.load(x + column, mask, other=0.0)
        if residual is not None:
            added = value.to(tl.float32) + tl.load(residual + row * width + column, mask, other=0.0)
            value = added.to(h.dtype.element_ty)
        out = (value.to(tl.float32) - mean) * inverse
        out *= _scale(weight, weight_offset, group * width + column, mask)
        if bias is not None:
            out += tl.load(bias + group * width + column, mask, other=0.0).to(tl.float32)
        tl.store(y + row * width + column, out.to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "n1", "n2", "s0", "s1"])
def norm_backward(
    grad_y, grad_h, h, weight, stats, grad_x, weight_partials, bias_partials,
    rows: tl.int64, groups, width, n1: tl.int64, n2: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    weight_offset: tl.float32,
    CENTER: tl.constexpr, STRIDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    column = tl.arange(0, BLOCK)[None, :]
    parameter = group * width + column
    scale = _scale(weight, weight_offset, parameter, column < width)
    weight_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    bias_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in range(first, rows, tl.num_programs(0) * ROWS):
        in_group = start + tl.arange(0, ROWS)
        stat = stats + in_group * groups + group
        row = (in_group * groups + group)[:, None]
        mask = (in_group < rows)[:, None] & (column < width)
        value = tl.load(h + row_offset(row, n1, n2, s0, s1, s2, width, STRIDED) + column, mask, other=0.0)
        grad = tl.load(grad_y + row * width + column, mask, other=0.0).to(tl.float32)
        inverse = tl.load(stat, in_group < rows, other=0.0)[:, None]
        normal = value.to(tl.float32)
        if CENTER:
            normal -= tl.load(stat + rows * groups, in_group < rows, other=0.0)[:, None]
        normal *= inverse
        if weight_partials is not None:
            weight_sum += grad * normal
        if bias_partials is not None:
            bias_sum += grad
        grad *= scale
        along = _row_mean(grad * normal, width)
        if CENTER:
            grad -= _row_mean(grad, width)[:, None]
        grad = (grad - normal * along[:, None]) * inverse
        if grad_h is not None:
            grad += tl.load(grad_h + row * width + column, mask, other=0.0).to(tl.float32)
        tl.store(grad_x + row * width + column, grad.to(grad_x.dtype.element_ty), mask)
    partial = (tl.program_id(0).to(tl.int64) * groups + group) * width + column
    if weight_partials is not None:
        tl.store(weight_partials + partial, tl.sum(weight_sum, 0, keep_dims=True), column < width)
    if bias_partials is not None:
        tl.store(bias_partials + partial, tl.sum(bias_sum, 0, keep_dims=True), column < width)


@triton.jit(do_not_specialize=["rows", "n1", "n2", "s0", "s1"])
def norm_backward_wide(
    grad_y, grad_h, h, weight, stats, grad_x,
    rows: tl.int64, groups, width, n1: tl.int64, n2: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    weight_offset: tl.float32,
    CENTER: tl.constexpr, STRIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * groups + group
    h += row_offset(row, n1, n2, s0, s1, s2, width, STRIDED)
    inverse = tl.load(stats + row)
    mean = 0.0
    if CENTER:
        mean = tl.load(stats + rows * groups + row)
    along = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < width
        normal = (tl.load(h + column, mask, other=0.0).to(tl.float32) - mean) * inverse
        grad = tl.load(grad_y + row * width + column, mask, other=0.0).to(tl.float32)
        grad *= _scale(weight, weight_offset, group * width + column, mask)
        along += grad * normal
        if CENTER:
            total += grad
    mean_along = tl.sum(along) / width
    mean_grad = tl.sum(total) / width
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < width
        normal = (tl.load(h + column, mask, other=0.0).to(tl.float32) - mean) * inverse
        grad = tl.load(grad_y + row * width + column, mask, other=0.0).to(tl.float32)
        grad *= _scale(weight, weight_offset, group * width + column, mask)
        grad = (grad - normal * mean_along - mean_grad) * inverse
        if grad_h is not None:
            grad += tl.load(grad_h + row * width + column, mask, other=0.0).to(tl.float32)
        tl.store(grad_x + row * width + column, grad.to(grad_x.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "n1", "n2", "s0", "s1"])
def parameter_gradients_wide(
    grad_y, h, stats, weight_partials, bias_partials,
    rows: tl.int64, groups, width, n1: tl.int64, n2: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    CENTER: tl.constexpr, STRIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)
    for in_group in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        row = in_group * groups + group
        offset = row_offset(row, n1, n2, s0, s1, s2, width, STRIDED)
        normal = tl.load(h + offset + column, mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_y + row * width + column, mask, other=0.0).to(tl.float32)
        if CENTER:
            normal -= tl.load(stats + rows * groups + row)
        weight_sum += grad * normal * tl.load(stats + row)
        bias_sum += grad
    partial = (tl.program_id(0).to(tl.int64) * groups + group) * width + column
    if weight_partials is not None:
        tl.store(weight_partials + partial, weight_sum, mask)
    if bias_partials is not None:
        tl.store(bias_partials + partial, bias_sum, mask)
