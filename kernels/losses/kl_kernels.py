"""The Triton kernels of ``linear_kl_divergence``: what they compute is written there."""

from ..frame._triton import tl, triton
from .cross_entropy_kernels import shift_of
from .loss_math import exp


@triton.jit
def _counts(target, row, ignore_index):
    if target is None:
        return True
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return tl.load(target + row).to(tl.int64) != ignore_index


@triton.jit
def _log_probability(logits, column, mask, temperature, top, log_total):
    """``log p`` of some classes; −inf, as of an impossible class, past the last. The log-sum-exp comes in two
    parts: their sum, rounded, would cost log p its last digits."""
    z = tl.load(logits + column, mask, other=float("-inf")).to(tl.float32) / temperature
    return (z - top) - log_total


@triton.jit
def _times(p, difference):
    """``p · difference``, and 0 where p = 0, whose difference may be infinite."""
    return tl.where(p > 0.0, p * difference, 0.0)


@triton.jit
def _mixture(log_student, log_teacher, beta):
    """``log(β·p_T + (1 − β)·p_S)``"""
    top = tl.maximum(log_student, log_teacher)
    shift = shift_of(top)
    return shift + tl.log(beta * exp(log_teacher - shift) + (1.0 - beta) * exp(log_student - shift))


@triton.jit
def _log_sum_exp(logits, vocabulary, temperature, BLOCK: tl.constexpr):
    """Of one row, in one pass: (the largest logit, the logarithm of the sum of exponentials below it)."""
    top = float("-inf")
    lanes = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = _log_probability(logits, column, column < vocabulary, temperature, 0.0, 0.0)
        higher = tl.maximum(top, tl.max(z, 0))
        shift = shift_of(higher)
        lanes = lanes * exp(top - shift) + exp(z - shift)
        top = higher
    return shift_of(top), tl.log(tl.sum(lanes, 0))


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def kl_forward(
    student, teacher, target, loss, statistics,
    rows: tl.int64, vocabulary, ignore_index: tl.int64, beta, temperature, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program: its divergence; and as ``statistics`` (5, rows) both log-sum-exps in their two parts,
    and what the gradient is centered by."""
    row = tl.program_id(0).to(tl.int64)
    if not _counts(target, row, ignore_index):
        tl.store(loss + row, 0.0)
        return
    student += row * vocabulary
    teacher += row * vocabulary
    top_s, total_s = _log_sum_exp(student, vocabulary, temperature, BLOCK)
    top_t, total_t = _log_sum_exp(teacher, vocabulary, temperature, BLOCK)
    from_teacher = tl.zeros((BLOCK,), tl.float32)
    from_student = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < vocabulary
        log_s = _log_probability(student, column, mask, temperature, top_s, total_s)
        log_t = _log_probability(teacher, column, mask, temperature, top_t, total_t)
        if KIND == "forward":
            from_teacher += _times(exp(log_t), log_t - log_s)
        elif KIND == "reverse":
            from_student += _times(exp(log_s), log_s - log_t)
        else:
            log_m = _mixture(log_s, log_t, beta)
            from_teacher += _times(exp(log_t), log_t - log_m)
            from_student += _times(exp(log_s), log_s - log_m)
    center = tl.sum(from_student, 0)
    if KIND == "js":
        tl.store(loss + row, beta * tl.sum(from_teacher, 0) + (1.0 - beta) * center)
    else:
        tl.store(loss + row, tl.sum(from_teacher, 0) + center)
    tl.store(statistics + row, top_s)
    tl.store(statistics + rows + row, total_s)
    tl.store(statistics + 2 * rows + row, top_t)
    tl.store(statistics + 3 * rows + row, total_t)
    tl.store(statistics + 4 * rows + row, center)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def kl_backward(
    student, teacher, target, grad_loss, statistics,
    rows: tl.int64, vocabulary, ignore_index: tl.int64, beta, temperature, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The derivative by the student's logits, in their place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < vocabulary
    student += row * vocabulary
    if not _counts(target, row, ignore_index):
        tl.store(student + column, tl.zeros((BLOCK,), student.dtype.element_ty), mask)
        return
    teacher += row * vocabulary
    statistics += row
    factor = tl.load(grad_loss + row) / temperature
    top, log_total = tl.load(statistics), tl.load(statistics + rows)
    log_s = _log_probability(student, column, mask, temperature, top, log_total)
    top, log_total = tl.load(statistics + 2 * rows), tl.load(statistics + 3 * rows)
    log_t = _log_probability(teacher, column, mask, temperature, top, log_total)
    center = tl.load(statistics + 4 * rows)
    p = exp(log_s)
    if KIND == "forward":
        gradient = p - exp(log_t)
    elif KIND == "reverse":
        gradient = _times(p, log_s - log_t - center)
    else:
        gradient = (1.0 - beta) * _times(p, log_s - _mixture(log_s, log_t, beta) - center)
    tl.store(student + column, (factor * gradient).to(student.dtype.element_ty), mask)
