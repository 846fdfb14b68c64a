"""The Triton kernels of ``cross_entropy`` with probabilities as targets: what they compute is written there."""

from ..frame._triton import tl, triton
from .cross_entropy_kernels import shift_of
from .loss_math import cap, cap_slope, exp


@triton.jit
def _target_mass(target, weight, row_start, column, inside, vocabulary, label_smoothing):
    """w·q of each class, smoothed; 0 outside of the row."""
    q = tl.load(target + row_start + column, inside, other=0.0).to(tl.float32)
    if label_smoothing is not None:
        q = q * (1.0 - label_smoothing) + label_smoothing / vocabulary
    if weight is not None:
        q *= tl.load(weight + column, column < vocabulary, other=0.0)
    return tl.where(inside, q, 0.0)


@triton.jit(do_not_specialize=["rows"])
def soft_cross_entropy_forward(
    logits, target, weight, loss, lse, mass,
    rows: tl.int64, vocabulary, label_smoothing, z_loss, softcap,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    top = tl.full((ROWS, 1), float("-inf"), tl.float32)
    lanes = tl.zeros((ROWS, BLOCK), tl.float32)  # sums of exp(z − top),
    masses = tl.zeros((ROWS, BLOCK), tl.float32)  # of w·q,
    below = tl.zeros((ROWS, BLOCK), tl.float32)  # and of w·q·(top − z), which no large logit rounds away
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < vocabulary)
        z = tl.load(logits + row * vocabulary + column, inside, other=float("-inf")).to(tl.float32)
        z = cap(z, softcap)
        if softcap is not None:
            z = tl.where(inside, z, float("-inf"))
        q = _target_mass(target, weight, row * vocabulary, column, inside, vocabulary, label_smoothing)
        higher = tl.maximum(top, tl.max(z, 1, keep_dims=True))
        shift = shift_of(higher)
        lanes = lanes * exp(top - shift) + exp(z - shift)
        below += masses * (shift - shift_of(top)) + tl.where(q == 0.0, 0.0, q * (shift - z))
        masses += q
        top = higher
    total = tl.where(row < rows, tl.sum(lanes, 1, keep_dims=True), 1.0)
    row_mass = tl.sum(masses, 1, keep_dims=True)
    log_sum = shift_of(top) + tl.log(total)
    value = row_mass * tl.log(total) + tl.sum(below, 1, keep_dims=True)
    if z_loss is not None:
        value += z_loss * log_sum * log_sum
    tl.store(loss + row, value, row < rows)
    tl.store(lse + row, log_sum, row < rows)
    tl.store(mass + row, row_mass, row < rows)


@triton.jit(do_not_specialize=["rows"])
def soft_cross_entropy_backward(
    grad_loss, grad_lse, logits, target, weight, lse, mass, grad_logits,
    rows: tl.int64, vocabulary, label_smoothing, z_loss, softcap,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < vocabulary)
    z = cap(tl.load(logits + row * vocabulary + column, inside, other=0.0).to(tl.float32), softcap)
    q = _target_mass(target, weight, row * vocabulary, column, inside, vocabulary, label_smoothing)
    log_sum = tl.load(lse + row, row < rows, other=0.0)
    upstream = tl.load(grad_loss + row, row < rows, other=0.0)
    along = upstream * tl.load(mass + row, row < rows, other=0.0)
    if z_loss is not None:
        along += upstream * 2.0 * z_loss * log_sum
    if grad_lse is not None:
        along += tl.load(grad_lse + row, row < rows, other=0.0)
    gradient = (along * exp(z - log_sum) - upstream * q) * cap_slope(z, softcap)
    tl.store(grad_logits + row * vocabulary + column, gradient.to(grad_logits.dtype.element_ty), inside)
