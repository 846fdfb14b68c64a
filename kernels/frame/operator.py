"""Registers the ops with PyTorch: one ``torch.library`` operator ``llmfast::<name>`` each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import torch_private as private
from .call import Description

_LIBRARY = torch.library.Library("llmfast", "FRAGMENT")


def define(
    name: str,
    call: type,
    run: Callable[[Any], Any],
    *,
    keeps: type | None = None,
    backward: Callable[..., tuple] | None = None,
    auxiliary: int = 0,
) -> Callable[..., Any]:
    """The operator ``llmfast::<name>``, which ``torch.compile`` takes as one opaque node, as a function that is called
    with the fields of a ``call``.

    Without an autocast registration the operator keeps the dtypes it is given, which is the autocast rule of every op
    whose sums are float32 anyway.

    Args:
        call: a ``NamedTuple``, see ``call``: its fields are the arguments, and ``allocate`` makes the outputs.
        run: computes the outputs of a call, on CUDA tensors or, in the interpreter and for definitions, others.
        keeps: what the backward pass keeps, a ``NamedTuple`` that lists its tensors first, with a static method
            ``fields(call, *outputs)``. Left out, the call itself is kept.
        backward: ``(kept, wanted, *gradients of the outputs) -> gradients of the first arguments``, None for those that
            have none; ``wanted`` says of each argument whether its gradient is asked for. Left out, differentiating
            raises an error.
        auxiliary: how many of the last outputs have no gradient.
    """
    described = Description(call)
    _LIBRARY.define(
        f"{name}({described.arguments}) -> {described.returns}",
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
    )

    def compute(*args):
        output = run(described.build(args))
        if described.is_mutable:  # What autograd saved of these tensors is no longer valid.
            torch.autograd.graph.increment_version(described.mutated(args))
        return output

    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llmfast::{name}", lambda *args: described.build(args).allocate(), lib=_LIBRARY)
    op = getattr(torch.ops.llmfast, name).default
    function = _function(name, described, Description(keeps or call), keeps, backward, auxiliary)

    def autograd(keyset, *args):
        def below(call):
            return private.redispatch_below_autograd(op, keyset, described.flatten(call))

        if _records(args):
            if private.transforms_active():
                raise _no_rules(name)
            return function.apply(*args, None, below)
        return below(described.build(args))

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    if described.is_mutable:
        return lambda *fields: op(*described.flatten(fields))
    return _without_dispatcher(op, described, function, run)


def define_with_gradients(name: str, call: type, run: Callable[[Any], tuple], *, beside: int = 0) -> Callable[..., Any]:
    """An operator that computes a number together with its gradients by its first tensors, those that are wanted, in
    the same pass: a call is ``(wanted: list[bool], a call that begins with these tensors)``, its outputs the number,
    what stands ``beside`` it (so many outputs, without a gradient), and a gradient of each tensor.

    What the number is multiplied by later (1 / N, a loss scale) waits for the backward pass, so that no float16
    underflows in ``run``, whose gradients may be wider than the tensors.
    """
    auxiliary = len(Description(call).returns.split(",")) - 1
    gradients = auxiliary - beside

    class Kept(NamedTuple("Kept", [*((f"gradient{i}", Tensor) for i in range(gradients)), ("dtype", torch.dtype)])):
        @staticmethod
        def fields(call, number, *found):
            return *found[beside:], call[1][0].dtype

    def backward(kept, wanted, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        *saved, dtype = kept
        # Scaled copies: what is saved must serve a second backward pass.
        scaled = [
            (gradient * grad).to(dtype) if want else None
            for gradient, want in zip(saved, wanted[1 : 1 + gradients], strict=True)
        ]
        if torch.is_grad_enabled():  # create_graph=True: autograd knows nothing of where the saved ones come from.
            scaled = [None if g is None else Last.apply(g, g.new_empty(0).requires_grad_()) for g in scaled]
        return None, *scaled

    class Last(torch.autograd.Function):
        """A gradient, with the refusal of its derivative in place of the zero that autograd would take."""

        @staticmethod
        def forward(ctx, gradient: Tensor, witness: Tensor) -> Tensor:
            return gradient.clone()

        backward = staticmethod(_refuse(name))

    return define(name, call, run, keeps=Kept, backward=backward, auxiliary=auxiliary)


def _function(
    name: str,
    described: Description,
    kept: Description,
    keeps: Any,
    differentiate: Callable[..., tuple] | None,
    auxiliary: int,
) -> type[torch.autograd.Function]:
    """What ``torch.library.register_autograd`` builds, less its search for default values of arguments, which takes
    half the host time of a call. It is applied to the arguments, the call that they make (or None, to be built of
    them), and the function that computes the outputs of a call."""
    tensors = kept.leading_tensors if differentiate else 0
    fields, flatten, build = keeps.fields if keeps else None, kept.flatten, kept.build
    nothing = (None,) * (len(described.fields) + 2)
    keep = private.keep
    padding = [nothing[count:] for count in range(len(nothing))]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            call, compute = args[-2], args[-1]
            if call is None:
                call = described.build(args[:-2])
            output = compute(call)
            if differentiate is None:
                return output
            outputs = output if type(output) is tuple else (output,)
            values = flatten(call if fields is None else fields(call, *outputs))
            ctx.options = values[tensors:]
            keep(ctx, values[:tensors], outputs[-auxiliary:] if auxiliary else ())
            return output

        @staticmethod
        def backward(ctx, *grads):
            if differentiate is None:
                return _refuse(name)(ctx, *grads)
            for grad in grads:
                if grad is not None:
                    break
            else:
                return nothing
            values = build((*ctx.saved_tensors, *ctx.options))
            found = differentiate(values, ctx.needs_input_grad, *grads)
            return found + padding[len(found)]

        @staticmethod
        def jvp(ctx, *tangents):
            raise _no_rules(name)

    Function.__name__ = f"{name}_autograd"
    return Function


def _records(args: tuple) -> bool:
    """Whether autograd records the call: a gradient may be asked for, or forward mode is on, which it refuses."""
    return (torch.is_grad_enabled() and private.any_requires_grad(*args)) or private.in_forward_mode()


def _without_dispatcher(
    op: private.Overload,
    described: Description,
    function: type[torch.autograd.Function],
    run: Callable[[Any], Any],
) -> Callable[[Any], Any]:
    """Calls ``op``, or bypasses the dispatcher when nothing could observe it: the dispatcher takes the arguments of a
    Python operator into C++ and back twice, 6 of 18 µs of the host for a swiglu on its way to the launch."""
    flatten, of_fields, first = described.flatten, described.of_fields, described.first_tensor
    is_flat = described.tail is None
    fitting: set[tuple[type, ...]] = set()
    apply = private.apply_of(function)  # Functorch's transforms are asked about below.
    is_compiling, is_tracing = torch.compiler.is_compiling, private.is_tracing
    dispatch_modes, function_modes = private.dispatch_modes, private.function_modes
    transforms_active, in_forward_mode = private.transforms_active, private.in_forward_mode
    grad_enabled, any_requires_grad = torch.is_grad_enabled, private.any_requires_grad

    def call_directly(*fields):
        args = fields if is_flat else flatten(fields)
        if (
            is_compiling()
            or dispatch_modes()
            or function_modes()
            or transforms_active()
            or is_tracing()
            or args[first].is_meta
        ):
            return op(*args)
        types = tuple(map(type, args))
        if types not in fitting:
            if not described.accepts(types):
                return op(*args)
            fitting.add(types)
        call = of_fields(fields)
        if (grad_enabled() and any_requires_grad(*args)) or in_forward_mode():
            return apply(*args, call, run)
        return run(call)

    return call_directly


def _no_rules(name: str) -> RuntimeError:
    return RuntimeError(
        f"llmfast::{name} has no rules for torch.func's transforms (grad, jvp, vmap of a gradient) and forward-mode "
        "derivatives: differentiate by torch.autograd"
    )


def _refuse(name: str) -> Callable:
    def backward(ctx, *grads):
        raise RuntimeError(
            f"llmfast::{name} has no derivative (second derivatives are not written): use plain PyTorch operations "
            'for them (llmfast.kernels.backend("reference") does, but for the losses of large linear layers)'
        )

    return backward
