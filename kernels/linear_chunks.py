"""``linear_cross_entropy`` by chunks of tokens: the logits of one chunk at a time, through the BLAS library.

A chunk's logits are ``h @ Wᵀ + b``. From their gradient D, dh = D @ W, and dW = Σ over chunks of Dᵀ @ h,
which is accumulated in float32 whatever the dtypes are. Where the loss of all tokens is one number, its
gradient is known while its logits are, so three matrix products do (6·N·V·E operations); where each token's
is asked for, the backward pass computes the logits a second time. Tokens that are ignored are in no chunk.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .counted_tokens import CountedTokens
from .cross_entropy import backward_rows, forward_rows, objective
from .linear_call import MIB, Call
from .reference import loss as definition
from .reference.dtypes import widen


def chunk_rows(vocabulary: int, width: int, itemsize: int, on_cpu: bool) -> int:
    """How many tokens share a chunk.

    Each chunk reads and writes the float32 gradient of the weight once, 8·V·E bytes, against its 6·rows·V·E
    operations. On a CPU 128 rows make that a tenth of the time, and 32 MiB of logits were the fastest of 32
    to 256 (4,096 × 50,304 × 256 on two cores: 2.6 s, where linear and cross_entropy of torch take 5.1). A
    GPU does some 300 operations while it moves one byte and wants 2048 rows for the same, which half the
    weight's size in logits gives where E = 4096.
    """
    if on_cpu:
        return max(128, 32 * MIB // (vocabulary * itemsize))
    workspace = max(256 * MIB, vocabulary * width * itemsize // 2)
    return max(128, workspace // (vocabulary * itemsize) // 128 * 128)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, where ``total`` is float32 (float64 for float64 operands)."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def row_losses(logits: Tensor, target: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The loss and the log-sum-exp of each row, by the kernels or the definition of ``cross_entropy``."""
    if call.how == "reference":
        return definition.cross_entropy(logits, target, *call.objective)
    loss, lse = logits.new_empty((2, logits.shape[0]), dtype=torch.float32)
    forward_rows(logits, target, objective(*call.objective), loss, lse)
    return loss, lse


def row_gradients(
    logits: Tensor, target: Tensor, lse: Tensor, grad_loss: Tensor, grad_lse: Tensor | None, call: Call
) -> Tensor:
    """The gradient of the logits, in their dtype; the kernels write it in the logits' place."""
    if call.how == "reference":
        gradient = definition.cross_entropy_gradient(
            logits, target, lse, grad_loss, grad_lse, *call.objective, call.gradient_filter
        )
        return gradient.to(logits.dtype)
    chosen = objective(*call.objective)
    backward_rows(grad_loss, grad_lse, None, logits, target, chosen, lse, logits, call.gradient_filter)
    return logits


def sweep(
    call: Call,
    *,
    lse: Tensor | None = None,
    grad_loss: Tensor | None = None,
    grad_lse: Tensor | None = None,
    wanted: Sequence[bool] = (False, False, False),
) -> tuple[Tensor | None, Tensor, list[Tensor | None]]:
    """One pass over the tokens.

    Without ``lse`` it computes the loss and the log-sum-exp of each token (N,). With ``grad_loss`` (N,), and
    ``grad_lse`` where it is not zero, it computes the gradients of hidden, weight and bias that are wanted,
    the last two in float32.
    """
    hidden, weight, bias, target = call[:4]
    wide = widen(hidden[:0]).dtype
    counted = CountedTokens(hidden.shape[0], target, call.ignore_index)
    loss = None
    given = lse
    if given is None:
        loss, lse = (hidden.new_zeros(hidden.shape[0], dtype=wide) for _ in range(2))
    grad_hidden = hidden.new_zeros(hidden.shape) if wanted[0] else None
    grad_weight = hidden.new_zeros(weight.shape, dtype=wide) if wanted[1] else None
    grad_bias = hidden.new_zeros(weight.shape[0], dtype=wide) if wanted[2] else None
    rows = chunk_rows(*weight.shape, weight.itemsize, on_cpu=hidden.device.type == "cpu")
    # The operands are in their dtype already: autocast must not narrow the float32 sums.
    with torch.autocast(hidden.device.type, enabled=False):
        for some in counted.chunks(rows):
            h, t = hidden[some], target[some]
            logits = F.linear(h, weight, bias)
            if given is None:
                loss[some], lse[some] = row_losses(logits, t, call)
            if not any(wanted):
                continue
            some_grad_lse = None if grad_lse is None else grad_lse[some]
            gradients = row_gradients(logits, t, lse[some], grad_loss[some], some_grad_lse, call)
            if grad_hidden is not None:
                grad_hidden[some] = gradients @ weight
            if grad_weight is not None:
                add_product(grad_weight, gradients.T, h)
            if grad_bias is not None:
                grad_bias += gradients.sum(0, dtype=wide)
    return loss, lse, [grad_hidden, grad_weight, grad_bias]
