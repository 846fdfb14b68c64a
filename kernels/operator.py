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

    ``torch.library.custom_op`` would do the same with a third more host time a call: it checks aliasing on
    each. Without an autocast registration the operator keeps the dtypes it is given, which is the autocast
    rule of every op whose sums are float32 anyway.

    Args:
        schema: ``"name(Tensor x, ...) -> Tensor"``.
        run: computes it with Triton, on CUDA tensors or, in the interpreter, CPU tensors.
        fake: allocates the outputs and computes nothing.
        backward, save: as for ``torch.library.register_autograd``. Left out, differentiating raises.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    for device in ("CUDA", "CPU"):
        _LIBRARY.impl(name, run, device)
    qualified = f"llmfast::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_autograd(
        qualified, backward or _refuse_derivative(name), setup_context=save, lib=_LIBRARY
    )
    return getattr(torch.ops.llmfast, name).default


def _refuse_derivative(name: str) -> Callable:
    def backward(ctx, *grads):
        raise RuntimeError(
            f"llmfast::{name} has no derivative (second derivatives are not written): "
            'use llmfast.kernels.backend("reference") for them'
        )

    return backward
