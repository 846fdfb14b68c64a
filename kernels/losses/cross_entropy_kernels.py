"""The Triton kernels of ``cross_entropy``: what they compute is written there and in ``loss_math``.

Rows of an odd vocabulary start anywhere. A program then starts ``shift`` columns before its row, where a unit of 16
bytes (UNIT elements) starts, and loads whole units; what belongs to the rows beside it is put aside afterwards. A
mask that is the same for all of a unit keeps the access whole, where one by element would split it.
"""

from ..frame._triton import tl, triton
from ..frame.rows import row_offset
from .loss_math import cap, exp, gradient_factors, logit_gradient, token_loss


@triton.jit
def shift_of(top):
    """What to subtract before exp: the maximum, but 0 where all logits so far are −inf."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _shift(offset, UNIT: tl.constexpr):
    """How many elements before ``offset`` a unit starts."""
    if UNIT == 1:
        return 0
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return (offset % UNIT).to(tl.int32)


@triton.jit
def _is_inside(at, shift, vocabulary, UNIT: tl.constexpr):
    """Whether the element ``at``, counted from where the row's first unit starts, is one of the row."""
    if UNIT == 1:
        return at < vocabulary
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return (at >= shift) & (at < vocabulary + shift)


@triton.jit
def _load_units(row_of_units, at, shift, valid, vocabulary, other, UNIT: tl.constexpr):
    """The elements ``at``, in whole units, of those units that hold any of the row; ``other`` behind them."""
    return tl.load(row_of_units + at, valid & (at // UNIT * UNIT < vocabulary + shift), other=other).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "n1", "n2", "s0", "s1", "ignore_index", "classes"])
def cross_entropy_forward(
    logits, target, weight, weight_sum, loss, lse, correct, partials,
    rows: tl.int64, vocabulary, n1: tl.int64, n2: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    ignore_index: tl.int64, label_smoothing, z_loss, softcap, classes,
    STRIDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    label = tl.load(target + row, row < rows, other=0).to(tl.int64)
    valid = (row < rows) & (label != ignore_index)
    offset = row_offset(row, n1, n2, s0, s1, s2, vocabulary, STRIDED)
    shift = _shift(offset, UNIT)
    units = logits + offset // UNIT * UNIT

    # One pass: the running maximum of each row, and each lane's sum of exponentials below it.
    top = tl.full((ROWS, 1), float("-inf"), tl.float32)
    lanes = tl.zeros((ROWS, BLOCK), tl.float32)
    weighted = tl.zeros((ROWS, BLOCK), tl.float32)
    if correct is not None:  # Each lane's largest logit, and the class that has it first.
        largest = tl.full((ROWS, BLOCK), float("-inf"), tl.float32)
        place = tl.zeros((ROWS, BLOCK), tl.int32)
    for start in range(0, vocabulary + UNIT - 1, BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        column = at - shift
        inside = _is_inside(at, shift, vocabulary, UNIT)
        mask = valid & inside
        z = _load_units(units, at, shift, valid, vocabulary, float("-inf"), UNIT)
        if correct is not None:  # Before the cap, which may round two logits to one.
            larger = mask & (z > largest)
            largest = tl.where(larger, z, largest)
            place = tl.where(larger, column, place)
        z = cap(z, softcap)
        if label_smoothing is not None:
            if weight is None:
                weighted += tl.where(mask, z, 0.0)
            else:
                weighted += tl.where(mask, z, 0.0) * tl.load(weight + column, inside, other=0.0)
        if UNIT > 1 or softcap is not None:  # Else the load has put -inf there already.
            z = tl.where(mask, z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 1, keep_dims=True))
        below = shift_of(higher)
        lanes = lanes * exp(top - below) + exp(z - below)
        top = higher
    total = tl.where(valid, tl.sum(lanes, 1, keep_dims=True), 1.0)
    top = shift_of(top)
    log_sum = top + tl.log(total)  # 0 where ignored
    tl.store(lse + row, log_sum, row < rows)

    known = valid & (label >= 0) & (label < vocabulary)
    target_logit = cap(tl.load(logits + offset + label, known, other=0.0).to(tl.float32), softcap)
    value, counted = token_loss(
        top, total, target_logit, tl.sum(weighted, 1, keep_dims=True), log_sum, label, valid, vocabulary,
        weight, weight_sum, label_smoothing, z_loss, classes,
    )  # fmt: skip
    if loss is not None:
        tl.store(loss + row, value, row < rows)
    if correct is not None:
        best = tl.max(largest, 1, keep_dims=True)
        predicted = tl.min(tl.where(largest == best, place, vocabulary), 1, keep_dims=True)
        tl.store(correct + row, (known & (predicted == label)).to(tl.float32), row < rows)
    if partials is not None:
        tl.store(partials + tl.program_id(0), tl.sum(value))
        tl.store(partials + tl.num_programs(0) + tl.program_id(0), tl.sum(counted))


@triton.jit(do_not_specialize=["programs"])
def reduce_loss(partials, loss, scale, programs, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The sum or mean over all tokens, and 1 / (what it was divided by): one program, one order."""
    total = tl.zeros((BLOCK,), tl.float32)
    counted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(partials + i, i < programs, other=0.0)
        counted += tl.load(partials + programs + i, i < programs, other=0.0)
    factor = 1.0
    if MEAN:
        divisor = tl.sum(counted)
        factor = tl.where(divisor == 0.0, 0.0, 1.0 / divisor)
    tl.store(loss, tl.sum(total) * factor)
    tl.store(scale, factor)


@triton.jit(do_not_specialize=["rows", "n1", "n2", "s0", "s1", "ignore_index", "classes"])
def cross_entropy_backward(
    grad_loss, grad_lse, scale, logits, target, weight, weight_sum, lse, grad_logits,
    rows: tl.int64, vocabulary, n1: tl.int64, n2: tl.int64, s0: tl.int64, s1: tl.int64, s2: tl.int64,
    ignore_index: tl.int64, label_smoothing, z_loss, softcap, gradient_filter, classes,
    STRIDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    home = row * vocabulary
    shift = _shift(home, UNIT)
    first = tl.program_id(1) * BLOCK
    at = first + tl.arange(0, BLOCK)[None, :]
    column = at - shift
    inside = (row < rows) & _is_inside(at, shift, vocabulary, UNIT)
    label = tl.load(target + row, row < rows, other=0).to(tl.int64)
    valid = (row < rows) & (label != ignore_index)

    # An ignored row is not read: its gradient is 0 whatever its logits are.
    if STRIDED:
        logits += row_offset(row, n1, n2, s0, s1, s2, vocabulary, STRIDED)
        z = tl.load(logits + column, valid & inside, other=0.0).to(tl.float32)
    else:  # what starts a unit of the gradient starts one of the logits
        z = _load_units(logits + home // UNIT * UNIT, at, shift, valid, vocabulary, 0.0, UNIT)
    z = cap(z, softcap)
    log_sum = tl.load(lse + row, row < rows, other=0.0)
    if scale is None:
        upstream = tl.load(grad_loss + row, row < rows, other=0.0)
    else:
        upstream = tl.load(grad_loss) * tl.load(scale)
    upstream_lse = 0.0
    if grad_lse is not None:
        upstream_lse = tl.load(grad_lse + row, row < rows, other=0.0)
    a, b, c = gradient_factors(
        upstream, upstream_lse, log_sum, label, valid, vocabulary, weight, weight_sum, label_smoothing, z_loss, classes
    )
    gradient = logit_gradient(
        z, log_sum, a, b, c, column, label, vocabulary, weight, label_smoothing, softcap, gradient_filter
    )
    gradient = tl.where(valid, gradient, 0.0).to(grad_logits.dtype.element_ty)
    units = grad_logits + home // UNIT * UNIT + at
    if UNIT > 1 and ROWS == 1:
        if first >= UNIT - 1 and first + BLOCK <= vocabulary:  # no unit is shared with another row
            tl.store(units, gradient)
        else:
            tl.store(units, gradient, inside)
    else:
        tl.store(units, gradient, inside)
