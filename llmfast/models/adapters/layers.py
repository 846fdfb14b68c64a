"""Layers with adapters: a layer of a model keeps its place, its name and its parameters, and its class gets adapters.

Because ``blocks.0.attention.qkv.weight`` stays where it is, checksums, shardings and tied weights of a base are the
same with and without adapters. What an adapter brings is under ``blocks.0.attention.qkv.adapters.NAME``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.kernels import Adapted as AdaptedWeight
from llmfast.kernels import NF4Linear
from llmfast.models.adapters.lora import LayerAdapter, Weight, dense, product, product_dtype, requires_grad
from llmfast.models.adapters.switch import Switch


class Adapted:
    """The part of a layer's class that brings adapters; the other part is the class that the layer had.

    An adapter of a layer is a ``LayerAdapter``, or a copy of the module that is trained in full.
    """

    adapters: nn.ModuleDict
    switch: Switch
    plain_class: type[nn.Module]

    def forward(self, x: Any, *others: Any, **options: Any) -> Any:
        rows = self.switch.rows
        if rows is None:
            return self.use(self.switch.active, x, *others, **options)
        return self.by_rows(rows.groups(len(x), x.device), x, *others, **options)

    def adapter(self, name: str | None) -> nn.Module | None:
        """What the adapter ``name`` changes about this module; None if nothing."""
        return self.adapters[name] if name is not None and name in self.adapters else None

    def use(self, name: str | None, x: Any, *others: Any, **options: Any) -> Any:
        """The layer with the adapter ``name``, or with none."""
        adapter = self.adapter(name)
        if adapter is None:
            return super().forward(x, *others, **options)
        if isinstance(adapter, LayerAdapter):
            return self.adapted(adapter, x)
        return adapter(x, *others, **options)

    def adapted(self, adapter: LayerAdapter, x: Any) -> Any:
        """The layer with an adapter."""
        raise AssertionError("a layer that cannot take updates got one")

    def by_rows(self, groups: dict[str | None, Tensor], *inputs: Any, **options: Any) -> Any:
        """The layer on rows by adapter, each group by itself."""
        count = len(inputs[0])
        out = None
        for name, places in groups.items():
            chosen = [_rows(each, places, count) for each in inputs]
            part = self.use(name, *chosen, **{key: _rows(each, places, count) for key, each in options.items()})
            out = _put(out, part, places, count)
        return out

    def effective_weight(self, name: str | None) -> Tensor:
        """The weight that the layer has with the adapter ``name``, without dropout; differentiable."""
        adapter = self.adapter(name)
        if adapter is None:
            return self.plain_weight()
        if isinstance(adapter, LayerAdapter):
            return self.updated_weight(adapter)
        return adapter.weight

    def plain_weight(self) -> Tensor:
        """The numbers of the frozen weight, as the module has them."""
        return self.weight

    def updated_weight(self, adapter: LayerAdapter) -> Tensor:
        """The weight with the updates of an adapter in it, as the module has it."""
        return adapter.updated(self.plain_weight())


class _AdaptedProduct(Adapted):
    """A layer that is a matrix product."""

    def frozen(self) -> Weight:
        """(N, K)."""
        return self.weight

    def adapted(self, adapter: LayerAdapter, x: Tensor) -> Tensor:
        return adapter.linear(x, self.frozen(), self.bias)

    def by_rows(self, groups: dict[str | None, Tensor], x: Tensor) -> Tensor:
        own = {name: self.adapter(name) for name in groups}
        if not all(adapter is None or isinstance(adapter, LayerAdapter) for adapter in own.values()):
            return super().by_rows(groups, x)
        out = product(x, self.frozen())
        parts = [
            _with_bias(out[places], self.bias)
            if own[name] is None
            else own[name].biased(own[name].change(x[places], out[places], self.frozen()), self.bias)
            for name, places in groups.items()
        ]
        return torch.cat(parts)[torch.cat([*groups.values()]).argsort()]


class AdaptedLinear(_AdaptedProduct, nn.Linear):
    """``torch.nn.Linear`` with adapters."""


class AdaptedNF4Linear(_AdaptedProduct, NF4Linear):
    """``NF4Linear`` with adapters."""

    def frozen(self) -> Weight:
        return self.quantized

    def plain_weight(self) -> Tensor:
        return dense(self.quantized)


class AdaptedEmbedding(Adapted, nn.Embedding):
    """``torch.nn.Embedding`` with adapters: A is (R, V) and B (E, R), as the product with a one-hot vector has them."""

    def adapted(self, adapter: LayerAdapter, x: Tensor) -> Tensor:
        out = nn.Embedding.forward(self, x)
        (lora,) = adapter.values()
        a, b = lora.factors()
        out = out + lora.scale * F.linear(F.embedding(x, a.T), b).to(out.dtype)
        if lora.magnitude is None:
            return out
        return out * (lora.magnitude / lora.row_norms(self.weight.T)).to(out.dtype)

    def updated_weight(self, adapter: LayerAdapter) -> Tensor:
        return adapter.updated(self.weight.T).T


@functools.cache
def adapted_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with adapters of the layers of a class; of modules that are no layers, for copies in full."""
    own: dict[type, type] = {nn.Linear: AdaptedLinear, NF4Linear: AdaptedNF4Linear, nn.Embedding: AdaptedEmbedding}
    if kind in own:
        return own[kind]
    if is_conv1d(kind):
        transposed = {"frozen": lambda self: self.weight.T, "updated_weight": _transposed_weight}
        return type("AdaptedConv1D", (_AdaptedProduct, kind), transposed)
    return type(f"Adapted{kind.__name__}", (Adapted, kind), {})


def is_conv1d(kind: type) -> bool:
    """Whether it is GPT-2's linear layer in transformers, whose weight is (K, N)."""
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _transposed_weight(self: Any, adapter: LayerAdapter) -> Tensor:
    return adapter.updated(self.weight.T).T


def adapt(module: nn.Module, switch: Switch) -> Any:
    """Give a module the class with adapters, if it has it not yet; returns it."""
    if not isinstance(module, Adapted):
        kind = type(module)
        module.__class__ = adapted_class(kind)
        module.plain_class = kind
        module.adapters = nn.ModuleDict()
        module.switch = switch
    return module


def restore_class(module: Any) -> None:
    """Take the adapters of a module away, and give it the class that it had."""
    module.__class__ = module.plain_class
    for name in ("adapters", "switch", "plain_class"):
        delattr(module, name)


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules that have adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            yield name, module


def as_adapted(layer: nn.Module, x: Tensor) -> AdaptedWeight | None:
    """A linear layer as ``lora_mlp`` takes it, in the dtype of products with x; None where it is not frozen, or is more
    than a product with an update in this pass."""
    if isinstance(layer, Adapted):
        adapter = layer.adapter(layer.switch.active)
        is_plain = adapter is None or (isinstance(adapter, LayerAdapter) and len(adapter) and adapter.is_plain())
        if layer.switch.rows is not None or not is_plain or not isinstance(layer, _AdaptedProduct):
            return None
        weight = layer.frozen()
    elif type(layer) in (nn.Linear, NF4Linear):
        adapter, weight = None, layer.quantized if isinstance(layer, NF4Linear) else layer.weight
    else:
        return None
    if requires_grad(weight):
        return None
    weight, bias = weight.to(product_dtype(x)), layer.bias
    if adapter is None:
        return AdaptedWeight(weight, bias=bias)
    a, b, scale = adapter.factors(weight.shape[0])
    return AdaptedWeight(weight, a, b, bias if adapter.bias is None else adapter.bias, scale)


def head_weight(head: nn.Module) -> Tensor | None:
    """The weight of a linear layer without bias as it is in this pass, for a loss that multiplies by it itself.

    None where the layer is not one product in this pass: with dropout in an adapter, or with adapters by row.
    """
    if not isinstance(head, Adapted):
        return head.weight
    name = head.switch.active
    adapter = head.adapter(name)
    if head.switch.rows is not None or (isinstance(adapter, LayerAdapter) and any(u.drops for u in adapter.values())):
        return None
    return head.effective_weight(name)


def _with_bias(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias.to(out.dtype)


def _rows(value: Any, places: Tensor, count: int) -> Any:
    return value[places] if isinstance(value, Tensor) and value.ndim and len(value) == count else value


def _put(out: Any, part: Any, places: Tensor, count: int) -> Any:
    """``part`` at ``places`` of what is collected in ``out``, for a tensor or a tuple of tensors."""
    if isinstance(part, tuple):
        outs = (None,) * len(part) if out is None else out
        return tuple(_put(each, piece, places, count) for each, piece in zip(outs, part, strict=True))
    whole = part.new_zeros((count, *part.shape[1:])) if out is None else out
    return whole.index_copy(0, places, part)
