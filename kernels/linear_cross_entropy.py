"""Cross entropy of a linear layer's output, whose logits (N, V) never exist.

What it computes is ``cross_entropy(hidden @ weightᵀ + bias, target)``, see there. Three ways, chosen by shape
and chip (``strategy``): the two calls as they stand where the logits are few; ``linear_chunks``, matrix
products of the BLAS library on some tokens at a time; ``linear_tiles``, matrix products that keep the logits
in registers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import linear_chunks, linear_tiles
from .backend import use_triton
from .checks import check_floating, check_same_device
from .cross_entropy import cross_entropy
from .launch import Device
from .linear_call import MIB, SCHEMA, Call
from .loss_checks import check_options, check_target, finish
from .operator import define
from .reference import loss as definition

# -------------------------------------------------------------------------------------------- launch choices

FEW_LOGITS = 64 * MIB  # about what an L2 cache holds: there logits cost little, and a fourth product more


def strategy(tokens: int, vocabulary: int, dtype: torch.dtype, device: Device | None) -> str:
    """``"plain"``, ``"chunks"`` or ``"tiles"``; without kernels (``device`` None) ``"reference"`` chunks.

    Tiles compute four products for the chunks' three, and in exchange write no logits (chunks move 10 bytes a
    logit, which at E = 1024 is half the time of a product on an H100), hold no float32 copy of the weight's
    gradient, and skip ignored tokens. They need tensor cores that Triton drives near their peak, so chunks
    remain for float32, and for capability 10.0, where its products reach about half of the BLAS library's.
    """
    if tokens * vocabulary * dtype.itemsize <= FEW_LOGITS:
        return "plain"
    if device is None:
        return "reference"
    return "chunks" if dtype == torch.float32 or device.capability in (100, 103) else "tiles"


# -------------------------------------------------------------------------------------------------- operators


def _allocate(*inputs) -> tuple[Tensor, Tensor]:
    call = Call(*inputs)
    dtype = torch.float64 if call.hidden.dtype == torch.float64 else torch.float32
    loss, lse = (call.hidden.new_empty(call.target.shape, dtype=dtype) for _ in range(2))
    return loss, lse


def _run(*inputs) -> tuple[Tensor, Tensor]:
    call = Call(*inputs)
    if call.how == "tiles":
        return linear_tiles.forward(call)
    loss, lse, _ = linear_chunks.sweep(call)
    return loss, lse


def _allocate_gradients(call: Call, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        torch.empty_like(p, memory_format=torch.contiguous_format) if want else call.hidden.new_empty(0)
        for p, want in zip(call[:3], wanted, strict=True)
    )


def _filled(gradients: list[Tensor | None], call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients as an operator returns them: empty where None."""
    return tuple(call.hidden.new_empty(0) if g is None else g for g in gradients)


def _allocate_backward(lse, grad_loss, grad_lse, wanted, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    return _allocate_gradients(Call(*inputs), wanted)


def _run_backward(lse, grad_loss, grad_lse, wanted, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*inputs)
    if call.how == "tiles":
        gradients = linear_tiles.backward(call, lse, grad_loss, grad_lse, wanted)
    else:
        *_, gradients = linear_chunks.sweep(
            call, lse=lse, grad_loss=grad_loss, grad_lse=grad_lse, wanted=wanted
        )
    return _filled(gradients, call)


_backward_op = define(
    f"linear_cross_entropy_backward(Tensor lse, Tensor grad_loss, Tensor? grad_lse, bool[] wanted, {SCHEMA}) "
    "-> (Tensor, Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.rest = inputs[5:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_loss: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (len(Call._fields) - 3)
    wanted = list(ctx.needs_input_grad[:3])
    if grad_loss is None and grad_lse is None:
        return None, None, None, *nothing
    *tensors, lse = ctx.saved_tensors
    grad_loss = torch.zeros_like(lse) if grad_loss is None else grad_loss
    gradients = _backward_op(lse, grad_loss, grad_lse, wanted, *tensors, *ctx.rest)
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *nothing


_tokens_op = define(
    f"linear_cross_entropy({SCHEMA}) -> (Tensor, Tensor)",
    _run,
    _allocate,
    backward=_differentiate,
    save=_save,
)


# The loss of all tokens together, with its gradients: three matrix products where the operator above needs
# four, because the gradient of each token's loss is known from the start.


def _allocate_total(scale, wanted, *inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(scale), *_allocate_gradients(Call(*inputs), wanted)


def _run_total(scale, wanted, *inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(*inputs)
    loss, _, gradients = linear_chunks.sweep(call, grad_loss=scale.expand(call.target.shape), wanted=wanted)
    return loss.sum() * scale, *_filled(gradients, call)


def _save_total(ctx, inputs, output) -> None:
    ctx.wanted = inputs[1]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate_total(ctx, grad: Tensor | None, *_) -> tuple[Tensor | None, ...]:
    # Scaled copies: what is saved must serve a second backward pass.
    gradients = (
        saved * grad if want and grad is not None else None
        for saved, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)
    )
    return None, None, *gradients, *(None,) * (len(Call._fields) - 3)


_total_op = define(
    f"linear_cross_entropy_total(Tensor scale, bool[] wanted, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_total,
    _allocate_total,
    backward=_differentiate_total,
    save=_save_total,
)

# -------------------------------------------------------------------------------------------- public function


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
    gradient_filter: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``cross_entropy(hidden @ weightᵀ + bias, target)`` without its logits (N, V), N = tokens of ``hidden``.

    The options, the loss and what is returned are those of ``cross_entropy``, ``class_weight`` being its
    ``weight``. ``-linear_cross_entropy(..., reduction="none")`` gives each token's log-probability, with
    gradients. Gradients reach hidden, weight and bias; they are exact and the same in every run, and the
    weight's is summed in float32 over all tokens.

    Memory beside the inputs and the gradients: copies of ``hidden`` in its dtype and in float32, and a
    workspace of at most 256 MiB or, where that is more, a quarter of ``hidden`` and ``weight``. In float32 and
    on capability 10.0: a float32 copy of the weight's gradient, and a workspace of 256 MiB or half of the
    weight. On a GPU in float16 or bfloat16, tokens that are ignored cost nothing (10.0 excepted).

    The scheme is that of Liger (arXiv:2410.10989, section 3.2) by chunks of tokens and of cut cross-entropy
    (arXiv:2411.09009) by tiles; see ``linear_chunks`` and ``linear_tiles``.

    Args:
        hidden: (..., E), any floating dtype. Under autocast hidden, weight and bias are cast as for
            ``torch.nn.functional.linear``.
        weight: (V, E), in hidden's dtype.
        target: (...), integers in [0, V), or ``ignore_index``.
        bias: (V,), in hidden's dtype.
        gradient_filter: treat the gradient of every logit whose probability is below this (and whose class is
            not the target) as 0. An approximation, which raises the loss of pretraining; None for exact.

    Raises:
        ValueError: for a shape, dtype, device or option that does not fit.

    Example::

        body = torch.nn.Embedding(1000, 64)
        head = torch.nn.Linear(64, 1000)
        tokens = torch.randint(1000, (4, 128))
        loss = linear_cross_entropy(body(tokens[:, :-1]), head.weight, tokens[:, 1:], head.bias)
        loss.backward()
    """
    _check(hidden, weight, bias, gradient_filter)
    check_target(target, hidden, "hidden")
    check_options(hidden, weight.shape[0], "class_weight", class_weight, reduction, label_smoothing, softcap)
    hidden, weight, bias = _autocast(hidden, weight, bias)
    options = (ignore_index, label_smoothing, z_loss, softcap)
    tokens = target.numel()
    device = Device.of(hidden.device) if use_triton(hidden) else None
    how = strategy(tokens, weight.shape[0], hidden.dtype, device)
    if how == "plain" and gradient_filter is None:
        return cross_entropy(
            F.linear(hidden, weight, bias),
            target,
            weight=class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            reduction=reduction,
            return_lse=return_lse,
        )
    if how == "plain":
        how = "reference" if device is None else "chunks"
    flat_target = target.reshape(-1)
    rows = hidden.reshape(tokens, hidden.shape[-1])
    call = Call(rows, weight, bias, flat_target, class_weight, *options, gradient_filter, how)
    wanted = [torch.is_grad_enabled() and p is not None and p.requires_grad for p in call[:3]]
    if any(wanted) and how != "tiles" and reduction != "none" and not return_lse:
        counted = definition.token_weight(flat_target, class_weight, ignore_index, _sum_dtype(hidden))
        return _total_op(_scale(counted, reduction), wanted, *call)[0]
    loss, lse = _tokens_op(*call)
    shaped = (loss.view(target.shape), lse.view(target.shape))
    return finish(*shaped, target, class_weight, ignore_index, reduction, return_lse)


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _scale(counted: Tensor, reduction: str) -> Tensor:
    """What the sum of the losses is multiplied by."""
    if reduction == "sum":
        return counted.new_ones(())
    total = counted.sum()
    return torch.where(total == 0, 0, 1 / total)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


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
        if (
            tensor is not None
            and tensor.dtype != hidden.dtype
            and not torch.is_autocast_enabled(hidden.device.type)
        ):
            raise ValueError(f"{name} must have the dtype of hidden, {hidden.dtype}, got {tensor.dtype}")
    if gradient_filter is not None and not 0.0 < gradient_filter < 1.0:
        raise ValueError(f"gradient_filter must be a probability, or None for none, got {gradient_filter}")
