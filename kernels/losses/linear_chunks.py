"""``linear_cross_entropy`` by chunks of tokens: the logits of one chunk at a time, through the BLAS library.

A chunk's logits are ``h @ Wᵀ + b``. From their gradient D, dh = D @ W, and dW = Σ over chunks of Dᵀ @ h,
which is accumulated in float32 (``sum_dtype``, ``add_product``). Where the loss of all tokens is one number, its
gradient is known while its logits are, so three matrix products do (6·N·V·E operations); where each token's
is asked for, the backward pass computes the logits a second time. Tokens that are ignored are in no chunk.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame.dtypes import wide_dtype
from ..frame.invariance import is_batch_invariant
from ..linear.ops import multiply as multiply_rows
from . import reference
from .counted_tokens import CountedTokens
from .cross_entropy_ops import backward_rows, forward_rows
from .launch import MIB
from .linear_call import LinearCrossEntropyCall
from .objective import objective


def chunk_rows(vocabulary: int, width: int, itemsize: int, on_cpu: bool) -> int:
    """How many tokens share a chunk.

    Each chunk reads and writes the float32 gradient of the weight once, 8·V·E bytes, against its 6·rows·V·E
    operations. A CPU with bfloat16 products does some 100 operations while it moves one byte and wants 1024 rows, so
    that this is a tenth of the time; a GPU some 300, and wants 2048, which half the weight's size in logits gives where
    E = 4096.
    """
    if on_cpu:
        return min(max(1024, 16 * MIB // (vocabulary * itemsize)), max(128, 256 * MIB // (vocabulary * itemsize)))
    workspace = max(256 * MIB, vocabulary * width * itemsize // 2)
    return max(128, workspace // (vocabulary * itemsize) // 128 * 128)


def rows_a_chunk(hidden: Tensor, weight: Tensor) -> int:
    return chunk_rows(*weight.shape, weight.itemsize, on_cpu=hidden.device.type == "cpu")


def sum_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """In which dtype chunks add up the gradient of the weight: float32 at least. Where one chunk of a CPU holds all
    tokens there is nothing to add, and a product in bfloat16 stays as it is."""
    on_cpu = hidden.device.type == "cpu"
    if on_cpu and hidden.dtype == torch.bfloat16 and hidden.shape[0] <= rows_a_chunk(hidden, weight):
        return hidden.dtype
    return wide_dtype(hidden.dtype)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, where ``total`` has the operands' dtype or is wider.

    PyTorch's CPU has no product of bfloat16 with a float32 result, and float32 products cost several times as much:
    there a @ b, summed in float32, is rounded once before it is added, as the gradient of a linear layer is. float16,
    which could overflow, takes the float32 product.
    """
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    elif a.dtype == torch.bfloat16:
        total += a @ b
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def blocks_in_cache(logits: Tensor) -> Iterator[slice]:
    """Rows that make 1 MiB in float32: what the definitions do to them, step by step, stays in a core's cache."""
    rows, vocabulary = logits.shape
    step = max(1, MIB // (4 * vocabulary))
    return (slice(start, start + step) for start in range(0, rows, step))


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, how: str) -> Tensor:
    """By the BLAS library, or in batch-invariant mode by this library's own product."""
    if is_batch_invariant():
        return multiply_rows(hidden, weight, bias, kernels=how != "reference")
    return F.linear(hidden, weight, bias)


def row_losses(logits: Tensor, target: Tensor, call: LinearCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss, the log-sum-exp and, if asked for, whether the target is predicted, of each row, by the kernels or the
    definition of ``cross_entropy``."""
    loss, lse = logits.new_empty((2, logits.shape[0]), dtype=wide_dtype(logits.dtype))
    correct = torch.empty_like(lse) if call.predicts else None
    if call.how == "reference":
        for some in blocks_in_cache(logits):
            loss[some], lse[some] = reference.cross_entropy(logits[some], target[some], *call.objective)
            if correct is not None:
                correct[some] = reference.is_predicted(logits[some], target[some], call.ignore_index)
        return loss, lse, correct
    forward_rows(logits, target, objective(*call.objective), loss, lse, correct)
    return loss, lse, correct


def row_gradients(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    call: LinearCrossEntropyCall,
) -> Tensor:
    """The gradient of the logits, in their dtype and their place."""
    if call.how == "reference":
        for some in blocks_in_cache(logits):
            some_grad_lse = None if grad_lse is None else grad_lse[some]
            logits[some] = reference.cross_entropy_gradient(
                *(each[some] for each in (logits, target, lse, grad_loss)),
                *(some_grad_lse, *call.objective, call.gradient_filter),
            )
        return logits
    chosen = objective(*call.objective)
    backward_rows(grad_loss, grad_lse, None, logits, target, chosen, lse, logits, call.gradient_filter)
    return logits


def sweep(
    call: LinearCrossEntropyCall,
    *,
    lse: Tensor | None = None,
    grad_loss: Tensor | None = None,
    grad_lse: Tensor | None = None,
    wanted: Sequence[bool] = (False, False, False),
) -> tuple[Tensor | None, Tensor, Tensor, list[Tensor | None]]:
    """One pass over the tokens.

    Without ``lse`` it computes the loss, the log-sum-exp and, if asked for (else empty), whether the target is
    predicted, of each token (N,). With ``grad_loss`` (N,), and
    ``grad_lse`` where it is not zero, it computes the gradients of hidden, weight and bias that are wanted,
    the last two in ``sum_dtype``.
    """
    hidden, weight, bias, target = call[:4]
    wide, summed = wide_dtype(hidden.dtype), sum_dtype(hidden, weight)
    counted = CountedTokens(hidden.shape[0], target, call.ignore_index)
    loss, correct = None, hidden.new_zeros(hidden.shape[0] if call.predicts else 0, dtype=wide)
    given = lse
    if given is None:
        loss, lse = (hidden.new_zeros(hidden.shape[0], dtype=wide) for _ in range(2))
    grad_hidden = hidden.new_zeros(hidden.shape) if wanted[0] else None
    grad_weight = hidden.new_zeros(weight.shape, dtype=summed) if wanted[1] else None
    grad_bias = hidden.new_zeros(weight.shape[0], dtype=summed) if wanted[2] else None
    # The operands are in their dtype already: autocast must not narrow the float32 sums.
    with torch.autocast(hidden.device.type, enabled=False):
        for some in counted.chunks(rows_a_chunk(hidden, weight)):
            h, t = hidden[some], target[some]
            logits = logits_of(h, weight, bias, call.how)
            if given is None:
                loss[some], lse[some], some_correct = row_losses(logits, t, call)
                if some_correct is not None:
                    correct[some] = some_correct
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
    return loss, lse, correct, [grad_hidden, grad_weight, grad_bias]
