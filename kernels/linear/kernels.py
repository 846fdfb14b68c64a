"""The Triton kernel of ``linear``: one program adds up the whole depth of its tile, first to last."""

from ..frame._triton import tl, triton

# Of float32 products, and without effect on others: three tensor-core products of tf32 parts, which keep 22 bits.
PRECISION = tl.constexpr("tf32x3")
GROUP = tl.constexpr(8)  # rows of tiles that go through the columns together, so that the weight comes from L2


@triton.jit
def _tile_of(program, rows, columns):
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    inside = program % (GROUP * columns)
    return first + inside % height, inside // height


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x, weight, bias, y, rows: tl.int64, columns, depth, x_stride, weight_stride,
    TRANSPOSED: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``x (rows, depth) @ weight (columns, depth)ᵀ + bias``; TRANSPOSED: the weight is (depth, columns)."""
    block, tile = _tile_of(tl.program_id(0), tl.cdiv(rows, ROWS).to(tl.int32), tl.cdiv(columns, COLUMNS))
    row = block * ROWS + tl.arange(0, ROWS)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    # What lies past the ends reads the first row or column, and is not stored.
    a = x + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * x_stride + k[None, :]
    inside = tl.where(column < columns, column, 0).to(tl.int64)
    if TRANSPOSED:
        b = weight + k.to(tl.int64)[:, None] * weight_stride + inside[None, :]
        step = DEPTH * weight_stride
    else:
        b = weight + inside[None, :] * weight_stride + k[:, None]
        step = DEPTH
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        if EVEN:
            total = tl.dot(tl.load(a), tl.load(b), total, input_precision=PRECISION)
        else:
            left = tl.load(a, (start + k < depth)[None, :], other=0.0)
            right = tl.load(b, (start + k < depth)[:, None], other=0.0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
        a += DEPTH
        b += step
    if bias is not None:
        total += tl.load(bias + column, column < columns, other=0.0).to(tl.float32)[None, :]
    place = y + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(place, total.to(y.dtype.element_ty), (row < rows)[:, None] & (column < columns)[None, :])
