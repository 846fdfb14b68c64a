"""Cross entropy of logits with integer targets."""

from torch import Tensor

from .checks import check_floating
from .loss_checks import check_options, check_target, finish
from .reference import loss as definition


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross entropy of ``logits`` (..., V) with the class indices ``target`` (...).

    With z = softcap·tanh(logits / softcap) (z = logits without a softcap), lse = log Σ exp(z), target class t,
    class weights w (1 without weights) and smoothing ε, the loss of one token is

        (1 − ε)·w[t]·(lse − z[t]) + ε/V · Σ_v w[v]·(lse − z[v]) + z_loss·w[t]·lse²

    The first two terms are ``torch.nn.functional.cross_entropy``'s; the third keeps lse near 0 (PaLM,
    arXiv:2204.02311, section 5). ``mean`` divides the sum by Σ w[t] over the tokens that are not ignored; where
    all are, loss and gradients are 0 (PyTorch's are NaN).

    Args:
        logits: (..., V), any floating dtype.
        target: (...), integers in [0, V), or ``ignore_index`` for tokens that count nothing.
        weight: (V,), how much each class counts. It gets no gradient.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for each token's loss (...).
        label_smoothing: ε in [0, 1].
        z_loss: the factor of lse²; 1e-4 in PaLM.
        softcap: the bound of the capped logits; None for none.
        return_lse: also return each token's log-sum-exp (...), 0 where ignored, with gradients.

    Returns:
        the loss, float32 (float64 for float64 logits); with ``return_lse`` the pair (loss, lse).

    Raises:
        ValueError: for a target, weight or option that does not fit.
    """
    check_floating("logits", logits)
    if logits.dim() == 0:
        raise ValueError("logits must be (..., V), got a scalar")
    check_target(target, logits, "logits")
    check_options(logits, logits.shape[-1], "weight", weight, reduction, label_smoothing, softcap)
    loss, lse = definition.cross_entropy(
        logits, target, weight, ignore_index, label_smoothing, z_loss, softcap
    )
    return finish(loss, lse, target, weight, ignore_index, reduction, return_lse)
