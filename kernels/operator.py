"""Registers the ops with PyTorch: one ``torch.library`` operator ``llmfast::<name>`` each."""

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("llmfast", "FRAGMENT")


def define(
    schema: str,
    run: Callable,
    fake: Callable,
    *,
    backward: Callable | None = None,
    save: Callable | None = None,
) -> Callable:
    """The operator ``llmfast::<schema>``, which ``torch.compile`` takes as one opaque node.

    Without an autocast registration the operator keeps the dtypes it is given, which is the autocast rule of
    every op whose sums are float32 anyway.

    Args:
        schema: ``"name(Tensor x, ...) -> Tensor"``, without default values.
        run: computes it with Triton, on CUDA tensors or, in the interpreter, CPU tensors.
        fake: allocates the outputs and computes nothing.
        backward: ``(ctx, *grads) -> one gradient an argument``. Left out, differentiating raises.
        save: ``(ctx, inputs, output)``, keeps what backward needs.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    for device in ("CUDA", "CPU"):
        _LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"llmfast::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.llmfast, name).default
    _LIBRARY.impl(name, _autograd(op, backward or _refuse(name), save), "Autograd", with_keyset=True)
    return op


def define_with_gradients(schema: str, run: Callable, fake: Callable) -> Callable:
    """The operator ``name(bool[] wanted, Tensor a, ..., ...) -> (Tensor, Tensor grad_a, ...)``: a number together with
    its gradients by the first tensors, those that are wanted, found in the same pass.

    What the number is multiplied by later (1 / N, a loss scale) waits for the backward pass, so that no float16
    underflows in ``run``, whose gradients may be wider than the tensors.
    """

    def save(ctx, inputs, output) -> None:
        gradients = output[1:]
        ctx.wanted, ctx.dtype, ctx.others = inputs[0], inputs[1].dtype, len(inputs) - 1 - len(gradients)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)

    def backward(ctx, grad: torch.Tensor | None, *_) -> tuple[torch.Tensor | None, ...]:
        # Scaled copies: what is saved must serve a second backward pass.
        gradients = (
            (saved * grad).to(ctx.dtype) if want and grad is not None else None
            for saved, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)
        )
        return None, *gradients, *(None,) * ctx.others

    return define(schema, run, fake, backward=backward, save=save)


def _autograd(op: torch._ops.OpOverload, differentiate: Callable, save: Callable | None) -> Callable:
    """What ``torch.library.register_autograd`` builds, less its search for default values of arguments, which
    takes half the host time of a call."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            *args, keyset = args
            output = below(keyset, args)
            if save is not None:
                save(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return *differentiate(ctx, *grads), None

    def below(keyset, args):
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def autograd(keyset, *args):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Function.apply(*args, keyset)
        return below(keyset, args)

    Function.__name__ = f"{op._opname}_autograd"
    return autograd


def _refuse(name: str) -> Callable:
    def backward(ctx, *grads):
        raise RuntimeError(
            f"llmfast::{name} has no derivative (second derivatives are not written): "
            'use llmfast.kernels.backend("reference") for them'
        )

    return backward
