"""Cross entropy of logits with integer targets, or probabilities (see ``cross_entropy``).

With z the logits (softcap·tanh(logits / softcap) with a softcap), lse = log Σ_v exp(z[v]), p = exp(z − lse),
t the target's class, w the class weights (1 without weights) and ε the label smoothing, the loss of one token
is

    (1 − ε)·w[t]·(lse − z[t]) + ε/V · Σ_v w[v]·(lse − z[v]) + z_loss·w[t]·lse²

and its derivative by z[v]

    p[v]·((1 − ε)·w[t] + ε/V·Σw + 2·z_loss·w[t]·lse) − [v = t]·(1 − ε)·w[t] − ε/V·w[v].

Forward reads the logits once (online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867) and keeps lse;
backward reads them once and writes the gradient once, never over the logits.
"""

from torch import Tensor

from ..frame.backend import use_triton
from ..frame.checks import check_floating
from . import reference
from .checks import check_options, check_soft_target, check_target, finish, finish_soft
from .cross_entropy_ops import cross_entropy_op
from .objective import Asked, LossOptions
from .soft_cross_entropy_ops import soft_cross_entropy_op


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    return_z_loss: bool = False,
    return_token_accuracy: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Cross entropy of ``logits`` (..., V) with the class indices ``target`` (...).

    With z = softcap·tanh(logits / softcap) (z = logits without a softcap), lse = log Σ_v exp(z[v]), the
    target's class t, class weights w (1 without weights) and label smoothing ε, the loss of one token is

        (1 − ε)·w[t]·(lse − z[t]) + ε/V · Σ_v w[v]·(lse − z[v]) + z_loss·w[t]·lse²

    The first two terms are those of ``torch.nn.functional.cross_entropy``; the third keeps lse near 0 (PaLM,
    arXiv:2204.02311, section 5). ``"mean"`` divides the sum by Σ w[t] over the tokens that count; where none
    does, loss and gradients are 0 (PyTorch's are NaN). Everything between the logits and the result, and
    between the logits and their gradient, is float32.

    Args:
        logits: (..., V), any floating dtype; they are never written to.
        target: (...), integers in [0, V), or ``ignore_index`` for a token that counts nothing. The loss of a token
            whose target is neither is NaN. Or (..., V), probabilities q, which get no gradient: the loss of a token is
            then Σ_v w[v]·q'[v]·(lse − z[v]) + z_loss·lse² with q' = (1 − ε)·q + ε/V, all tokens count, and ``"mean"``
            divides by their number, as in PyTorch.
        weight: (V,), how much each class counts. It gets no gradient.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for each token's loss (...).
        label_smoothing: ε, between 0 and 1.
        z_loss: the factor of lse²; 1e-4 in PaLM.
        softcap: the bound of the capped logits (Gemma 2, arXiv:2408.00118, section 2); None for no cap.
        return_lse: also return each token's lse (...), 0 where ignored, through which gradients flow, too.
        return_z_loss: also return what ``z_loss`` adds to the loss, reduced as the loss is; for the log, without a
            gradient. Liger's and flash-attn's have no class weights; without weights they are the same.
        return_token_accuracy: also return which tokens the largest logit predicts (the first, of equals), without a
            gradient: 1 or 0 for each token with ``reduction="none"``, 0 where ignored, and else the mean over the
            tokens that count, whatever their weights; 0 where none does.

    Returns:
        the loss, float32 (float64 for float64 logits), or a tuple of the loss and what else is asked for, in this
        order: lse, z-loss, token accuracy.

    Raises:
        ValueError: for a target, weight or option that does not fit.

    Example::

        model = torch.nn.Sequential(torch.nn.Embedding(1000, 64), torch.nn.Linear(64, 1000))
        tokens = torch.randint(1000, (4, 128))
        loss = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], z_loss=1e-4)
        loss.backward()
    """
    check_floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., V) with at least one class, got {tuple(logits.shape)}")
    soft = target.is_floating_point()
    options = LossOptions(ignore_index, label_smoothing, z_loss, softcap)
    options = check_options(logits, logits.shape[-1], "weight", weight, reduction, options)
    if soft:
        check_soft_target(target, logits, options.ignore_index, return_token_accuracy)
    else:
        target = check_target(target, logits, "logits")
    asked = Asked(return_lse, return_z_loss, return_token_accuracy)
    kernels = use_triton(logits)
    if soft:
        compute = soft_cross_entropy_op if kernels else reference.soft_cross_entropy
        loss, lse, *_ = compute(logits, target, weight, label_smoothing, z_loss, softcap)
        return finish_soft(loss, lse, reduction, z_loss, asked)
    classes = None
    if kernels:
        loss, lse, _, correct = cross_entropy_op(logits, target, weight, reduction, return_token_accuracy, options)
    else:
        classes = reference.classes_of(target, options.ignore_index, logits.shape[-1])
        with_lse = return_lse or return_z_loss
        loss, lse = reference.cross_entropy(logits, target, weight, *options, classes=classes, with_lse=with_lse)
        correct = reference.is_predicted(logits, target, options.ignore_index) if return_token_accuracy else lse
    vocabulary = logits.shape[-1]
    return finish(
        loss, lse, correct, target, weight, vocabulary, reduction, options, asked, reduced=kernels, classes=classes
    )
