"""The Triton kernels of ``adamw`` and ``adamw_8bit``: what they compute is written there and in ``adamw_reference``.

A launch works on several tensors, given as tuples of pointers: program p finds its own in a few comparisons. Whole
numbers in tuples come disguised (``adamw_ops.disguised``), because Triton would compile again for the values it likes.
"""

from ..frame._triton import tl, triton
from ..frame.philox import PHILOX_ROUNDS
from .adamw_reference import BLOCK as _BLOCK
from .adamw_reference import LANES as _LANES
from .adamw_reference import SMALLEST as _SMALLEST
from .adamw_reference import WORDS as _WORDS

LANES = tl.constexpr(_LANES)
WORDS = tl.constexpr(_WORDS)
BLOCK = tl.constexpr(_BLOCK)
SMALLEST = tl.constexpr(_SMALLEST)
ROUNDS = tl.constexpr(PHILOX_ROUNDS)
DISGUISE = tl.constexpr(2**48)


@triton.jit
def _revealed(number):
    return (number - DISGUISE) >> 1


@triton.jit
def _pick(values, index):
    """``values[index]`` of a tuple of scalars or pointers."""
    picked = values[0]
    for i in tl.static_range(1, len(values)):
        if index == i:
            picked = values[i]
    return picked


@triton.jit
def _place(first_programs, sizes, EVEN: tl.constexpr):
    """(index of the tensor, its size, first element) of this program."""
    program = tl.program_id(0).to(tl.int64)
    index = 0
    for i in tl.static_range(1, len(first_programs)):
        index += (program >= _revealed(first_programs[i])).to(tl.int32)
    size = _revealed(_pick(sizes, index))
    if EVEN:  # tells the compiler, so that it accesses 16 bytes at a time under the mask
        size = size // 16 * 16
    return index, size, (program - _revealed(_pick(first_programs, index))) * (LANES * WORDS)


@triton.jit
def _one_minus_power(log_beta, step):
    """1 - beta^step; by its series near 0, where the difference would cancel."""
    x = -log_beta * step
    series = 1.0
    for i in tl.static_range(8, 1, -1):
        series = 1.0 - x / i * series
    return tl.where(x < 0.5, x * series, 1.0 - tl.exp(-x))


@triton.jit
def _hyperparameters(steps, index, lr, scale, log_beta1, log_beta2, weight_decay, MAXIMIZE: tl.constexpr):
    """(step, what gradients are multiplied by, decay of the parameter, learning rate over its correction, square
    root of the other correction)."""
    step = tl.load(_pick(steps, index))
    rate = tl.load(lr).to(tl.float32)
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale).to(tl.float32)
    if MAXIMIZE:
        factor = -factor
    root2 = tl.sqrt(_one_minus_power(log_beta2, step))
    return step, factor, 1.0 - rate * weight_decay, rate / _one_minus_power(log_beta1, step), root2


@triton.jit
def _random_words(seed, first, step, index, stream):
    """Four random words for each of LANES places: those of the elements ``first + word · LANES + lane``."""
    lane = (first // WORDS).to(tl.int32) + tl.arange(0, LANES)
    zero = lane * 0
    return tl.philox(seed, lane, zero + step.to(tl.int32), zero + index, zero + stream, ROUNDS)


@triton.jit
def _rounded(x, random, dtype: tl.constexpr):
    """``x`` up or down in bfloat16, with probabilities that keep its mean; NaN stays."""
    bits = x.to(tl.uint32, bitcast=True) + (random >> 16).to(tl.uint32)
    up_or_down = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(x == x, up_or_down, x).to(dtype)


@triton.jit
def _store_parameter(param, master, at, mask, value, random, STOCHASTIC: tl.constexpr):
    if master is not None:
        tl.store(master + at, value, mask)
    if STOCHASTIC:
        tl.store(param + at, _rounded(value, random, param.dtype.element_ty), mask)
    else:
        tl.store(param + at, value.to(param.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["seed", "stream", "log_beta1", "log_beta2", "rest1", "rest2", "eps", "weight_decay"])
def adamw_kernel(
    parameters, grads, means, squares, masters, steps, indices, first_programs, sizes, lr, scale, found_inf,
    seed: tl.int64, stream: tl.int32, log_beta1: tl.float32, log_beta2: tl.float32,
    rest1: tl.float32, rest2: tl.float32, eps: tl.float32, weight_decay: tl.float32,
    STOCHASTIC: tl.constexpr, MAXIMIZE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """LANES · WORDS elements of one tensor. ``rest`` is 1 - beta: in float32 it would lose four digits."""
    if found_inf is not None:  # noqa: SIM102 (Triton decides this one when it compiles, the next when it runs)
        if tl.load(found_inf) != 0:
            return
    index, size, first = _place(first_programs, sizes, EVEN)
    param, grad, mean, square = (
        _pick(parameters, index),
        _pick(grads, index),
        _pick(means, index),
        _pick(squares, index),
    )
    source, master = param, None
    if masters is not None:
        master = _pick(masters, index)
        source = master
    step, factor, kept, rate, root2 = _hyperparameters(
        steps, index, lr, scale, log_beta1, log_beta2, weight_decay, MAXIMIZE
    )
    random = (0, 0, 0, 0)
    if STOCHASTIC:
        random = _random_words(seed, first, step, _revealed(_pick(indices, index)).to(tl.int32), stream)
    for word in tl.static_range(WORDS):
        at = first + word * LANES + tl.arange(0, LANES)
        mask = at < size
        g = tl.load(grad + at, mask, other=0.0).to(tl.float32) * factor
        m = tl.load(mean + at, mask, other=0.0)
        v = tl.load(square + at, mask, other=0.0)
        p = tl.load(source + at, mask, other=0.0).to(tl.float32)
        m += (g - m) * rest1
        v += (g * g - v) * rest2
        p = p * kept - rate * m / (tl.sqrt(v) / root2 + eps)
        tl.store(mean + at, m, mask)
        tl.store(square + at, v, mask)
        _store_parameter(param, master, at, mask, p, random[word], STOCHASTIC)


@triton.jit
def _decoded(codes, largest, table, at, mask, block, block_mask):
    code = tl.load(codes + at, mask, other=0).to(tl.int32)
    return tl.load(table + code) * tl.load(largest + block, block_mask, other=0.0)[:, None]


@triton.jit
def _encoded(x, SIGNED: tl.constexpr):
    """(codes, largest magnitude of each row).

    A number's code follows from its decade, found by comparing with the bounds between decades (the middle of their
    neighboring numbers), and from its place among the equal parts of the decade: neither search nor table.
    """
    magnitude = tl.abs(x)
    largest = tl.max(magnitude, 1)
    normal = largest >= SMALLEST
    magnitude *= tl.where(normal, 1.0 / tl.where(normal, largest, 1.0), 0.0)[:, None]
    FINER: tl.constexpr = 1 if SIGNED else 2  # Unsigned, a decade has twice the parts.
    parts = magnitude * 0.0 + FINER
    parts_in_1 = magnitude * 0.0 + FINER / 0.9 * 1e6
    for i in tl.static_range(6):
        higher = magnitude > 10.0 ** (i - 6) * (1.0 + 0.9 / (FINER * 2**i))
        parts = tl.where(higher, FINER * 2.0 ** (i + 1), parts)
        parts_in_1 = tl.where(higher, FINER / 0.9 * 2.0 ** (i + 1) * 10.0 ** (5 - i), parts_in_1)
    place = tl.floor(magnitude * parts_in_1 - parts * (1.0 / 9.0))
    place = tl.minimum(place + parts, 2.0 * parts - 1.0)
    place = tl.where(magnitude < 0.5e-6 * (0.1 + 0.45 / FINER), FINER - 1.0, place)  # 0
    place = tl.where(magnitude > 1.0 - 0.225 / (FINER * 64), FINER * 128.0, place)  # 1
    if SIGNED:
        code = 127.0 + tl.where(x < 0.0, -tl.minimum(place, 127.0), place)
    else:
        code = place - 1.0
    return code.to(tl.int32).to(tl.uint8), largest


@triton.jit(do_not_specialize=["seed", "stream", "log_beta1", "log_beta2", "rest1", "rest2", "eps", "weight_decay"])
def adamw_8bit_kernel(
    parameters, grads, means, squares, largest_means, largest_squares, masters, steps, indices, first_programs, sizes,
    signed_table, unsigned_table, lr, scale, found_inf,
    seed: tl.int64, stream: tl.int32, log_beta1: tl.float32, log_beta2: tl.float32,
    rest1: tl.float32, rest2: tl.float32, eps: tl.float32, weight_decay: tl.float32,
    STOCHASTIC: tl.constexpr, MAXIMIZE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """LANES · WORDS elements of one tensor, in rows of a BLOCK whose moments are coded by their largest magnitudes."""
    if found_inf is not None:  # noqa: SIM102 (Triton decides this one when it compiles, the next when it runs)
        if tl.load(found_inf) != 0:
            return
    index, size, first = _place(first_programs, sizes, EVEN)
    param, grad, mean, square = (
        _pick(parameters, index),
        _pick(grads, index),
        _pick(means, index),
        _pick(squares, index),
    )
    largest_mean, largest_square = _pick(largest_means, index), _pick(largest_squares, index)
    source, master = param, None
    if masters is not None:
        master = _pick(masters, index)
        source = master
    step, factor, kept, rate, root2 = _hyperparameters(
        steps, index, lr, scale, log_beta1, log_beta2, weight_decay, MAXIMIZE
    )
    random = (0, 0, 0, 0)
    if STOCHASTIC:
        random = _random_words(seed, first, step, _revealed(_pick(indices, index)).to(tl.int32), stream)
    ROWS: tl.constexpr = LANES // BLOCK
    for word in tl.static_range(WORDS):
        block = first // BLOCK + word * ROWS + tl.arange(0, ROWS)
        block_mask = block * BLOCK < size
        at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = at < size
        g = tl.load(grad + at, mask, other=0.0).to(tl.float32) * factor
        m = _decoded(mean, largest_mean, signed_table, at, mask, block, block_mask)
        v = _decoded(square, largest_square, unsigned_table, at, mask, block, block_mask)
        p = tl.load(source + at, mask, other=0.0).to(tl.float32)
        m = tl.where(mask, m + (g - m) * rest1, 0.0)
        v = tl.where(mask, v + (g * g - v) * rest2, 0.0)
        p = p * kept - rate * m / (tl.sqrt(v) / root2 + eps)
        code, largest = _encoded(m, True)
        tl.store(mean + at, code, mask)
        tl.store(largest_mean + block, largest, block_mask)
        code, largest = _encoded(v, False)
        tl.store(square + at, code, mask)
        tl.store(largest_square + block, largest, block_mask)
        if STOCHASTIC:
            noise = tl.reshape(random[word], (ROWS, BLOCK))
        else:
            noise = 0
        _store_parameter(param, master, at, mask, p, noise, STOCHASTIC)
