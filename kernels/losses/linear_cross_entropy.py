"""Cross entropy of a linear layer's output, whose logits (N, V) never exist.

What it computes is ``cross_entropy(hidden @ weightᵀ + bias, target)``, see there. Three ways, chosen by what is asked
for (``strategy``): the two calls as they stand where the logits are few; ``linear_chunks``, matrix products of the BLAS
library on some tokens at a time, where the loss is one number; ``linear_tiles``, matrix products that keep the logits
in registers, where each token's loss is asked for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.autocast import autocast
from ..frame.backend import is_transformed, use_triton
from ..frame.checks import check_choice, check_floating, check_same_device, check_same_dtype
from ..frame.invariance import is_batch_invariant
from ..frame.launch import contiguous
from .checks import check_options, check_target, finish
from .cross_entropy import cross_entropy
from .launch import METHODS, capability_of, strategy, tiles_fit
from .linear_call import LinearCrossEntropyCall
from .linear_cross_entropy_ops import sum_op, tokens_op
from .objective import Asked, LossOptions


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    return_z_loss: bool = False,
    return_token_accuracy: bool = False,
    gradient_filter: float | None = None,
    method: str = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """``cross_entropy(hidden @ weightᵀ + bias, target)`` without its logits (N, V), N = tokens of ``hidden``.

    The options, the loss and what is returned are those of ``cross_entropy``, ``class_weight`` being its
    ``weight``. ``-linear_cross_entropy(..., reduction="none")`` gives each token's log-probability, with
    gradients. Gradients reach hidden, weight and bias; they are exact and the same in every run, and the
    weight's is summed in float32 over all tokens; on a CPU in bfloat16 each chunk's product, of 1024 tokens and more,
    is rounded to bfloat16 first, as the gradient of ``torch.nn.functional.linear`` is.

    There are two methods, and ``"auto"`` takes the faster (where logits are few, up to 64 MiB on a GPU and 1 MiB on a
    CPU, neither: they are then computed at once):

    - ``"chunks"`` of tokens, whose products the BLAS library computes: wherever the loss is reduced and ``return_lse``
      is not set. Three matrix products, forward and backward together. Memory beside inputs and gradients: a workspace
      of 256 MiB or half of the weight, whichever is more, and a float32 copy of the weight's gradient. The host waits
      once per call for the number of tokens that count; into a CUDA graph all are captured.
    - ``"tiles"``, which never write a logit: for ``reduction="none"``, ``return_lse`` and ``gradient_filter``, in 16
      bits and at a width in steps of 64, but not on capability 10.0. Four matrix products, by Triton's own kernels.
      Memory: copies of ``hidden`` in its dtype and in float32, and a workspace of 256 MiB or a quarter of ``hidden``
      and ``weight``, whichever is more. Ask for them where memory is short.

    Tokens that are ignored cost nothing in either: no matrix product has a row for them.

    The scheme is that of Liger (arXiv:2410.10989, section 3.2) by chunks of tokens and of cut cross-entropy
    (arXiv:2411.09009) by tiles; see ``linear_chunks`` and ``linear_tiles``.

    Args:
        hidden: (..., E), any floating dtype. Under autocast hidden, weight and bias are cast as for
            ``torch.nn.functional.linear``.
        weight: (V, E), in hidden's dtype.
        target: (...), integers in [0, V), or ``ignore_index``.
        bias: (V,), in hidden's dtype.
        gradient_filter: treat the gradient of every logit whose probability is below this (and whose class is
            not the target) as 0; tiles left empty then skip two of the backward pass's three products. An
            approximation, which raises the loss of pretraining; None for exact.
        method: ``"auto"``, ``"chunks"`` or ``"tiles"``, see above. Without kernels, as on a CPU, all are chunks; and in
            batch-invariant mode ``"auto"`` is.

    Raises:
        ValueError: for a shape, dtype, device or option that does not fit, and for tiles where there are none.

    Example::

        body = torch.nn.Embedding(1000, 64)
        head = torch.nn.Linear(64, 1000)
        tokens = torch.randint(1000, (4, 128))
        loss = linear_cross_entropy(body(tokens[:, :-1]), head.weight, tokens[:, 1:], head.bias)
        loss.backward()
    """
    _check(hidden, weight, bias, gradient_filter)
    check_choice("method", method, METHODS)
    target = check_target(target, hidden, "hidden")
    options = LossOptions(ignore_index, label_smoothing, z_loss, softcap)
    options = check_options(hidden, weight.shape[0], "class_weight", class_weight, reduction, options)
    hidden, weight, bias = autocast(hidden, weight, bias)
    tokens, (vocabulary, width) = target.numel(), weight.shape
    capability = capability_of(hidden.device.type, hidden.device.index) if use_triton(hidden) else None
    per_token = reduction == "none" or return_lse
    if is_batch_invariant():
        if method == "tiles":
            raise ValueError('method="tiles" depends on the batch: choose "auto" or "chunks" in batch-invariant mode')
        method = "chunks"
    skips = gradient_filter is not None  # Only tiles skip what is filtered.
    how = strategy(tokens, vocabulary, width, hidden.dtype, capability, per_token or skips, method)
    if how == "tiles" and not tiles_fit(width, hidden.dtype):
        raise ValueError(
            f'method="tiles" needs hidden in 16 bits and a width in steps of 64, got {hidden.dtype} and {width}: '
            'choose "auto" or "chunks"'
        )
    transformed = is_transformed()
    if gradient_filter is None and (how == "plain" or transformed):
        # Rows that are ignored may hold anything; times a gradient of 0, infinities would be NaN in the weight's.
        if transformed or (weight.requires_grad and torch.is_grad_enabled()):
            hidden = hidden.masked_fill((target == options.ignore_index).unsqueeze(-1), 0)
        return cross_entropy(
            F.linear(hidden, weight, bias),
            target,
            weight=class_weight,
            ignore_index=options.ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            return_lse=return_lse,
            return_z_loss=return_z_loss,
            return_token_accuracy=return_token_accuracy,
        )
    if how == "plain":
        how = "reference" if capability is None else "chunks"
    flat_target = target.reshape(-1)
    rows = hidden.reshape(tokens, hidden.shape[-1])
    asked = Asked(return_lse, return_z_loss, return_token_accuracy)
    call = LinearCrossEntropyCall(
        rows, weight, contiguous(bias), flat_target, class_weight, gradient_filter, how, return_token_accuracy, options
    )
    wanted = [torch.is_grad_enabled() and p is not None and p.requires_grad for p in call[:3]]
    if any(wanted) and how != "tiles" and not per_token:
        loss, lse, correct, *_ = sum_op(wanted, call)
    else:
        loss, lse, correct = tokens_op(*call)
        loss = loss.view(target.shape)
    if return_token_accuracy:
        correct = correct.view(target.shape)
    lse = lse.view(target.shape)
    return finish(loss, lse, correct, target, class_weight, vocabulary, reduction, options, asked)


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None, gradient_filter: float | None) -> None:
    check_floating("hidden", hidden)
    if hidden.dim() == 0 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must be (V, E) for hidden (..., E), got {tuple(weight.shape)} for {tuple(hidden.shape)}"
        )
    if weight.shape[0] == 0:
        raise ValueError(f"weight must have at least one class, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have one element a class, ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_same_device(name, tensor, hidden)
        check_same_dtype(name, tensor, "hidden", hidden)
    if gradient_filter is not None and not 0.0 < gradient_filter < 1.0:
        raise ValueError(f"gradient_filter must be a probability, or None for none, got {gradient_filter}")
