"""Cross entropy of a linear layer's output, whose logits (N, V) never exist.

What it computes is ``cross_entropy(hidden @ weightᵀ + bias, target)``, see there. Three ways, chosen by shape
and chip (``strategy``): the two calls as they stand where the logits are few; ``linear_chunks``, matrix
products of the BLAS library on some tokens at a time; ``linear_tiles``, matrix products that keep the logits
in registers.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import linear_chunks, linear_tiles
from .backend import use_triton
from .checks import check_floating, check_same_device
from .cross_entropy import cross_entropy
from .gate import GateCase
from .launch import Device
from .linear_call import FEW_LOGITS, MIB, SCHEMA, Call
from .loss_checks import autocast, check_options, check_same_dtype, check_target, finish
from .operator import define, define_with_gradients

# -------------------------------------------------------------------------------------------- launch choices

FEW_ON_GPU = 64 * MIB  # about what an L2 cache holds: there logits cost little, and a fourth product more

DATA_CENTRE_BLACKWELL = (100, 103)


def strategy(tokens: int, vocabulary: int, width: int, dtype: torch.dtype, capability: int | None) -> str:
    """``"plain"``, ``"chunks"`` or ``"tiles"``; without kernels (``capability`` None) ``"reference"`` chunks.

    Tiles compute four products for the chunks' three, and in exchange write no logits (chunks move 10 bytes a
    logit, which at E = 1024 takes an H100 as long as a product), hold no float32 copy of the weight's
    gradient, and skip ignored tokens. That pays where Triton drives the tensor cores near their peak. It does
    not for float32, nor, by its published matrix products, on capability 10.0, which is still to be measured:
    chunks there. Tiles also need a width in whole steps of 64.
    """
    if tokens * vocabulary * dtype.itemsize <= (FEW_LOGITS if capability is None else FEW_ON_GPU):
        return "plain"
    if capability is None:
        return "reference"
    by_chunks = dtype == torch.float32 or capability in DATA_CENTRE_BLACKWELL or width % 64
    return "chunks" if by_chunks else "tiles"


def _capability(device_type: str, index: int | None) -> int:
    return Device.of(torch.device(device_type, index)).capability


# torch.compile asks once, while it traces: see ``backend``.
_capability._dynamo_marked_constant = True


# -------------------------------------------------------------------------------------------------- operators


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _allocate(*inputs) -> tuple[Tensor, Tensor]:
    call = Call(*inputs)
    loss, lse = (call.hidden.new_empty(call.target.shape, dtype=_wide(call.hidden)) for _ in range(2))
    return loss, lse


def _run(*inputs) -> tuple[Tensor, Tensor]:
    call = Call(*inputs)
    if call.how == "tiles":
        return linear_tiles.forward(call)
    loss, lse, _ = linear_chunks.sweep(call)
    return loss, lse


def _allocate_gradients(call: Call, wanted: list[bool], *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(
        call.hidden.new_empty(p.shape if want else 0, dtype=dtype)
        for p, want, dtype in zip(call[:3], wanted, dtypes, strict=True)
    )


def _allocate_backward(lse, grad_loss, grad_lse, wanted, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*inputs)
    return _allocate_gradients(call, wanted, *(3 * (call.hidden.dtype,)))


def _run_backward(lse, grad_loss, grad_lse, wanted, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*inputs)
    if call.how == "tiles":
        gradients = linear_tiles.backward(call, lse, grad_loss, grad_lse, wanted)
    else:
        *_, gradients = linear_chunks.sweep(
            call, lse=lse, grad_loss=grad_loss, grad_lse=grad_lse, wanted=wanted
        )
    return tuple(call.hidden.new_empty(0) if g is None else g.to(call.hidden.dtype) for g in gradients)


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


# The sum of all tokens' losses with its gradients: three matrix products where the operator above needs four,
# because the derivative by each token's loss is known from the start.


def _sum_dtypes(call: Call) -> tuple[torch.dtype, ...]:
    summed = linear_chunks.sum_dtype(call.hidden, call.weight)
    return call.hidden.dtype, summed, summed


def _allocate_sum(wanted, *inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(*inputs)
    dtypes = _sum_dtypes(call)
    return call.hidden.new_empty((), dtype=_wide(call.hidden)), *_allocate_gradients(call, wanted, *dtypes)


def _run_sum(wanted, *inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(*inputs)
    ones = call.hidden.new_ones((), dtype=_wide(call.hidden)).expand(call.target.shape)
    loss, _, gradients = linear_chunks.sweep(call, grad_loss=ones, wanted=wanted)
    return loss.sum(), *(
        call.hidden.new_empty(0, dtype=dtype) if g is None else g
        for g, dtype in zip(gradients, _sum_dtypes(call), strict=True)
    )


_sum_op = define_with_gradients(
    f"linear_cross_entropy_sum(bool[] wanted, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_sum,
    _allocate_sum,
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
    weight's is summed in float32 over all tokens; on a CPU in bfloat16 each chunk's product, of 1024 tokens and more,
    is rounded to bfloat16 first, as the gradient of ``torch.nn.functional.linear`` is.

    Memory beside the inputs and the gradients: copies of ``hidden`` in its dtype and in float32, and a
    workspace of at most 256 MiB or, where that is more, a quarter of ``hidden`` and ``weight``. In float32
    and on capability 10.0: a float32 copy of the weight's gradient, and a workspace of 256 MiB or half of
    the weight.

    Tokens that are ignored cost nothing: no matrix product has a row for them (but where logits are few, up to
    64 MiB on a GPU and 1 MiB on a CPU). In float32 and on capability 10.0 the host waits, once a call, to hear
    how many count; into a CUDA graph all are captured there.

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
    hidden, weight, bias = autocast(hidden, weight, bias)
    options = (ignore_index, label_smoothing, z_loss, softcap)
    tokens = target.numel()
    capability = _capability(hidden.device.type, hidden.device.index) if use_triton(hidden) else None
    how = strategy(tokens, *weight.shape, hidden.dtype, capability)
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
        how = "reference" if capability is None else "chunks"
    flat_target = target.reshape(-1)
    rows = hidden.reshape(tokens, hidden.shape[-1])
    call = Call(rows, weight, bias, flat_target, class_weight, *options, gradient_filter, how)
    wanted = [torch.is_grad_enabled() and p is not None and p.requires_grad for p in call[:3]]
    if any(wanted) and how != "tiles" and reduction != "none" and not return_lse:
        loss = _sum_op(wanted, *call)[0]
        return finish(loss, None, target, class_weight, ignore_index, reduction, False)
    loss, lse = _tokens_op(*call)
    shaped = (loss.view(target.shape), lse.view(target.shape))
    return finish(*shaped, target, class_weight, ignore_index, reduction, return_lse)


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


# ---------------------------------------------------------------------------------------------- compile gate


def gate_cases(device: Device) -> Iterator[GateCase]:
    """The tiles, plain, with all options, and filtered; the chunks launch what ``cross_entropy`` does."""
    product = "wgmma" if device.capability == 90 else "mma"
    logits = dict.fromkeys(("tile_statistics", "tile_gradients"), (product, "cp.async"))
    gradients = ("hidden_gradient", "weight_gradient")
    exact = logits | dict.fromkeys(gradients, (product, "cp.async"))
    filtered = logits | dict.fromkeys(
        gradients, (product,)
    )  # a tile that may be skipped is not fetched ahead
    for width, dtype, options, expect in (
        (4096, torch.bfloat16, "", exact),
        (960, torch.float16, "all options", exact),
        (4096, torch.bfloat16, "filtered", filtered),
    ):
        if strategy(8192, 128256, width, dtype, device.capability) == "tiles":
            name = ", ".join(filter(None, (f"{width} {str(dtype)[6:]}", options)))
            run = partial(_gate_run, width, dtype, options)
            yield GateCase("linear_cross_entropy", name, run, expect)


def _gate_run(width: int, dtype: torch.dtype, options: str) -> None:
    tokens, vocabulary = 8192, 128256
    hidden, weight, bias = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
    )
    target = torch.empty(tokens, dtype=torch.int64, device="meta")
    everything = options == "all options"
    if everything:
        class_weight = torch.empty(vocabulary, device="meta")
        inputs = (hidden, weight, bias, target, class_weight, -100, 0.1, 1e-4, 30.0, None, "tiles")
    else:
        threshold = 1e-4 if options == "filtered" else None
        inputs = (hidden, weight, None, target, None, -100, 0.0, 0.0, None, threshold, "tiles")
    loss, lse = _run(*inputs)
    _run_backward(lse, loss, lse if everything else None, [True, True, everything], *inputs)
