"""The residual stream: what enters and leaves the layers of a model, read and replaced by hooks.

Hooks find the same stream in a ``Decoder`` and in a decoder-only model of transformers, plain or patched. Whatever
follows the layers (final norm, head, soft caps, scales) is computed by the model itself, never by a copy of it here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmfast.models.evaluating import evaluating
from llmfast.visualization.structure import (
    chosen,
    embedding_of,
    heads_outputs_of,
    layers_of,
    logits_of,
    shape_of,
)


class Stream(NamedTuple):
    """The residual stream of a batch."""

    states: Tensor
    """(layers + 1, B, S, E): what enters the first layer, and what leaves each."""
    logits: Tensor
    """(B, S, V): what the model makes of the last of them."""
    read_out: Callable[[Tensor], Tensor]
    """Logits (B, S, V) of any states (B, S, E), as if they had left the last layer. Gradients flow through it."""


def residual_stream(model: nn.Module, batch: Tensor) -> Stream:
    """The residual stream of token ids (B, S). Dropout is off meanwhile.

    Raises:
        ValueError: the model is neither a ``Decoder`` nor a decoder-only model of transformers, or its layers are not
            called once each with the residual stream.
    """
    layers = layers_of(model)
    states: list[Tensor] = []
    results: list[Any] = []

    def record(layer: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if not states:
            states.append(_entering(args, kwargs))
        states.append(_state(result))
        results.append(result)

    with evaluating(model), _hooks(layer.register_forward_hook(record, with_kwargs=True) for layer in layers):
        logits = logits_of(model, batch)
    if len(results) != len(layers) or any(state.shape != states[0].shape for state in states):
        raise ValueError(f"{type(model).__name__}: its layers do not share one residual stream")

    def read_out(state: Tensor) -> Tensor:
        with evaluating(model), _replaced(layers, [_with_state(result, state) for result in results]):
            return logits_of(model, batch)

    return Stream(torch.stack(states), logits, read_out)


@contextlib.contextmanager
def ablated(
    model: nn.Module, *, heads: Sequence[tuple[int, int]] = (), layers: Sequence[int] = ()
) -> Iterator[nn.Module]:
    """A model in which heads give zeros and layers add nothing to the residual stream, for a while.

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers.
        heads: (layer, head) pairs whose results are replaced by zeros.
        layers: layers that pass on what entered them.

    Raises:
        ValueError: a layer or head that does not exist, or a model where it is not known where they are.
    """
    shape = shape_of(model)
    if layers:
        chosen("layers", layers, shape.layers)
    if heads:
        chosen("layers", [layer for layer, _ in heads], shape.layers)
        chosen("heads", [head for _, head in heads], shape.heads)

    def silence(those: list[int]) -> Callable[[nn.Module, tuple], tuple]:
        def hook(module: nn.Module, args: tuple) -> tuple:
            results = args[0].unflatten(-1, (shape.heads, -1)).clone()
            results[..., those, :] = 0
            return (results.flatten(-2), *args[1:])

        return hook

    def skip(layer: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> Any:
        return _with_state(result, _entering(args, kwargs))

    own, outputs = layers_of(model), heads_outputs_of(model) if heads else []
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    hooks = [outputs[layer].register_forward_pre_hook(silence(those)) for layer, those in by_layer.items()]
    hooks += [own[layer].register_forward_hook(skip, with_kwargs=True) for layer in layers]
    with _hooks(hooks):
        yield model


@contextlib.contextmanager
def with_embeddings(model: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """A model that takes ``embeddings`` (B, S, E) for those of its tokens, for a while."""
    with _hooks([embedding_of(model).register_forward_hook(lambda module, args, result: embeddings)]):
        yield


@contextlib.contextmanager
def _hooks(handles: Any) -> Iterator[None]:
    """Hooks that are removed at the end."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _replaced(modules: list[nn.Module], results: list[Any]) -> Iterator[None]:
    """Modules that compute nothing and give these results, for a while."""
    before = [module.__dict__.get("forward") for module in modules]
    for module, result in zip(modules, results, strict=True):
        module.forward = lambda *args, result=result, **kwargs: result
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


def _entering(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _state(result: Any) -> Tensor:
    """The residual stream among what a layer returns: alone, or first of several."""
    return result[0] if isinstance(result, tuple) else result


def _with_state(result: Any, state: Tensor) -> Any:
    return (state, *result[1:]) if isinstance(result, tuple) else state
