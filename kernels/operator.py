"""Registers the ops with PyTorch: one ``torch.library`` operator ``llmfast::<name>`` each."""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("llmfast", "FRAGMENT")

# What a function is given for an argument of each type of a schema, where the dispatcher converts nothing.
_AS_IS = {
    "Tensor": (torch.Tensor, torch.nn.Parameter),
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
    "str": (str,),
    "ScalarType": (torch.dtype,),
    "List[int]": (list,),
    "List[bool]": (list,),
}


def define(
    schema: str,
    run: Callable,
    fake: Callable,
    *,
    backward: Callable | None = None,
    save: Callable | None = None,
) -> Callable:
    """The operator ``llmfast::<schema>``, which ``torch.compile`` takes as one opaque node, as a function.

    Without an autocast registration the operator keeps the dtypes it is given, which is the autocast rule of
    every op whose sums are float32 anyway.

    Args:
        schema: ``"name(Tensor x, ...) -> Tensor"``, without default values.
        run: computes it, on CUDA tensors or, in the interpreter and for definitions, others.
        fake: allocates the outputs and computes nothing.
        backward: ``(ctx, *grads) -> one gradient an argument``. Left out, differentiating raises.
        save: ``(ctx, inputs, output)``, keeps what backward needs.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llmfast::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.llmfast, name).default
    function = _function(name, backward or _refuse(name), save)

    def autograd(keyset, *args):
        def below(*args):
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

        return _recorded(function.apply, below, args)

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    return op if op._schema.is_mutable else _without_dispatcher(op, function, run)


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
        gradients = [
            (saved * grad).to(ctx.dtype) if want and grad is not None else None
            for saved, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)
        ]
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: autograd knows nothing of where the saved ones come from
            gradients = [
                None if g is None else Last.apply(g, g.new_empty(0).requires_grad_()) for g in gradients
            ]
        return None, *gradients, *(None,) * ctx.others

    class Last(torch.autograd.Function):
        """A gradient, with the refusal of its derivative in place of the zero that autograd would take."""

        @staticmethod
        def forward(ctx, gradient: torch.Tensor, witness: torch.Tensor) -> torch.Tensor:
            return gradient.clone()

        backward = staticmethod(_refuse(schema[: schema.index("(")]))

    return define(schema, run, fake, backward=backward, save=save)


def _function(name: str, differentiate: Callable, save: Callable | None) -> type[torch.autograd.Function]:
    """What ``torch.library.register_autograd`` builds, less its search for default values of arguments, which takes
    half the host time of a call; applied to the arguments and what computes the outputs of them."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            *args, compute = args
            output = compute(*args)
            if save is not None:
                save(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return *differentiate(ctx, *grads), None

    Function.__name__ = f"{name}_autograd"
    return Function


def _recorded(apply: Callable, compute: Callable, args: tuple):
    """``compute(*args)``, which autograd records where a gradient may be asked for; in forward mode it refuses."""
    recording = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
    if recording or forward_ad._current_level >= 0:
        return apply(*args, compute)
    return compute(*args)


def _without_dispatcher(
    op: torch._ops.OpOverload, function: type[torch.autograd.Function], run: Callable
) -> Callable:
    """Calls ``op``; or straight away what that comes to, where nobody could tell. PyTorch's dispatcher takes a Python
    operator's arguments into C++ and back twice: 6 of 18 µs of the host for a swiglu on its way to the launch."""
    kinds = [str(argument.real_type) for argument in op._schema.arguments]
    first = kinds.index("Tensor")
    fitting: set[tuple[type, ...]] = set()
    # Without what Function.apply does for functorch, which ``_observed`` sees: 2 µs.
    apply = super(torch.autograd.Function, function).apply

    def call(*args):
        if _observed() or args[first].is_meta:
            return op(*args)
        types = tuple(map(type, args))
        if types not in fitting:
            if not all(map(_is_as_is, kinds, types)):
                return op(*args)
            fitting.add(types)
        return _recorded(apply, run, args)

    return call


def _is_as_is(kind: str, given: type) -> bool:
    optional = kind.startswith("Optional[")
    return (optional and given is type(None)) or given in _AS_IS[kind[9:-1] if optional else kind]


def _observed() -> bool:
    """Whether anything sees the calls of operators: torch.compile, a mode (fake tensors, selective checkpoints), vmap
    and its kin, a trace."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    )


def _refuse(name: str) -> Callable:
    def backward(ctx, *grads):
        raise RuntimeError(
            f"llmfast::{name} has no derivative (second derivatives are not written): use plain PyTorch operations "
            'for them (llmfast.kernels.backend("reference") does, but for the losses of large linear layers)'
        )

    return backward
