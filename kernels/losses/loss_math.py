"""What the loss kernels compute of one logit and one token: see ``cross_entropy`` for the formulas."""

from ..frame._triton import tl, triton

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """exp of a difference from a maximum or a log-sum-exp, at most about 0. ``tl.exp`` also keeps results below 2⁻¹²⁶,
    for three instructions more: beside a sum that is at least 1 they are nothing."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _tanh(x):
    """tanh, to float32's last bits: its series to x¹¹ near 0, where 1 − 2 / (1 + exp(2x)) would cancel."""
    far = 1.0 - 2.0 / (1.0 + exp(2.0 * x))
    s = x * x
    near = x + x * s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 - s * (1382 / 155925)))))
    return tl.where(s < 0.14, near, far)


@triton.jit
def cap(x, softcap):
    if softcap is None:
        return x
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return softcap * _tanh(x / softcap)


@triton.jit
def cap_slope(z, softcap):
    """d cap(x) / dx, from z = cap(x)."""
    if softcap is None:
        return 1.0
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return 1.0 - z * z * (1.0 / (softcap * softcap))


@triton.jit
def target_weight(weight, target, known):
    if weight is None:
        return tl.where(known, 1.0, 0.0)
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return tl.load(weight + target, known, other=0.0)


@triton.jit
def all_weights(weight_sum, vocabulary):
    """The sum of all classes' weights."""
    if weight_sum is None:
        return vocabulary.to(tl.float32)
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return tl.load(weight_sum)


@triton.jit
def _smoothing_share(label_smoothing, vocabulary, classes):
    """What label smoothing gives each of the ``classes``, which are the vocabulary unless it is one part of them."""
    if classes is None:
        return label_smoothing / vocabulary
    else:  # noqa: RET505 (Triton compiles what follows a return, too)
        return label_smoothing / classes


@triton.jit
def token_loss(
    top, total, target_logit, weighted_logits, lse, target, valid, vocabulary, weight, weight_sum,
    label_smoothing, z_loss, classes,
):  # fmt: skip
    """One token's loss from lse = top + log(total); NaN for a target outside the vocabulary. With ``classes``, how many
    there are in all, the vocabulary is a part of them, and a target outside of it adds its smoothing alone."""
    known = valid & (target >= 0) & (target < vocabulary)
    w = target_weight(weight, target, known)
    # lse − z[t], without the rounding of lse
    loss = w * (tl.log(total) + (top - target_logit))
    if label_smoothing is not None:
        smooth = all_weights(weight_sum, vocabulary) * lse - weighted_logits
        loss = (1.0 - label_smoothing) * loss + _smoothing_share(label_smoothing, vocabulary, classes) * smooth
    if z_loss is not None:
        loss += z_loss * w * lse * lse
    if classes is None:
        loss = tl.where(known, loss, float("nan"))
    return tl.where(valid, loss, 0.0), w


@triton.jit
def gradient_factors(
    grad_loss, grad_lse, lse, target, valid, vocabulary, weight, weight_sum, label_smoothing, z_loss, classes
):  # fmt: skip
    """(a, b, c) of d loss / d z[v] = a·p[v] − b·[v = t] − c·w[v]; all 0 where the token is ignored."""
    w = target_weight(weight, target, valid & (target >= 0) & (target < vocabulary))
    along, at_target, everywhere = w, w, 0.0
    if label_smoothing is not None:
        at_target = (1.0 - label_smoothing) * w
        everywhere = _smoothing_share(label_smoothing, vocabulary, classes)
        along = at_target + everywhere * all_weights(weight_sum, vocabulary)
    if z_loss is not None:
        along += 2.0 * z_loss * w * lse
    grad_loss = tl.where(valid, grad_loss, 0.0)
    return grad_loss * along + tl.where(valid, grad_lse, 0.0), grad_loss * at_target, grad_loss * everywhere


@triton.jit
def logit_gradient(z, lse, a, b, c, column, target, vocabulary, weight, label_smoothing, softcap, gradient_filter):
    """d loss / d logit, float32 throughout: a·p − b cancels where the model is sure of its target."""
    p = exp(z - lse)
    at_target = column == target
    gradient = a * p
    gradient = tl.where(at_target, gradient - b, gradient)
    if label_smoothing is not None:
        if weight is None:
            gradient -= c
        else:
            gradient -= c * tl.load(weight + column, column < vocabulary, other=0.0)
    if gradient_filter is not None:
        gradient = tl.where((p < gradient_filter) & (column != target), 0.0, gradient)
    return gradient * cap_slope(z, softcap)
