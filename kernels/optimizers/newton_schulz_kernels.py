"""The Triton kernel of ``newton_schulz``: what it computes is written there."""

from ..frame._triton import tl, triton

# Of float32 products, and without effect on others: three tensor-core products of tf32 parts, which keep 22 bits.
PRECISION = tl.constexpr("tf32x3")


@triton.jit
def _triangle(index):
    """(row, column), column <= row, of an element of a lower triangle counted row by row."""
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row -= (row * (row + 1) // 2 > index).to(tl.int32)  # The root is rounded; one off at most.
    row += ((row + 1) * (row + 2) // 2 <= index).to(tl.int32)
    return row, index - row * (row + 1) // 2


@triton.jit
def symmetric_product_kernel(
    x, out, size, depth, matrix_stride: tl.int64, row_stride, depth_stride, alpha: tl.float32, beta: tl.float32,
    ADD: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of the lower triangle of ``alpha · x xᵀ + beta · x``, written twice: as it is and mirrored."""
    tile_row, tile_column = _triangle(tl.program_id(0))
    x += tl.program_id(1).to(tl.int64) * matrix_stride
    out += tl.program_id(1).to(tl.int64) * size * size
    first_row, first_column = tile_row * BLOCK, tile_column * BLOCK
    within = tl.arange(0, BLOCK)
    k = tl.arange(0, DEPTH)
    offset = within[:, None] * row_stride + k[None, :] * depth_stride
    left = x + first_row.to(tl.int64) * row_stride + offset
    right = x + first_column.to(tl.int64) * row_stride + offset
    row_inside = (first_row + within < size)[:, None]
    column_inside = (first_column + within < size)[:, None]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, depth, DEPTH):
        inside = (start + k < depth)[None, :]
        a = tl.load(left, row_inside & inside, other=0.0)
        b = tl.load(right, column_inside & inside, other=0.0)
        total = tl.dot(a, b.T, total, input_precision=PRECISION)
        left += DEPTH * depth_stride
        right += DEPTH * depth_stride
    total *= alpha
    mask = row_inside & column_inside.T
    tile = first_row.to(tl.int64) * size + first_column + within[:, None] * size + within[None, :]
    if ADD:  # x is as contiguous as out
        total += beta * tl.load(x + tile, mask, other=0.0).to(tl.float32)
    result = total.to(out.dtype.element_ty)
    tl.store(out + tile, result, mask)
    if tile_row != tile_column:
        mirrored = first_column.to(tl.int64) * size + first_row + within[:, None] * size + within[None, :]
        tl.store(out + mirrored, result.T, mask.T)
