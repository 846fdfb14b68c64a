"""The updates of an adapter added to the weights of a model, and taken back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmfast.kernels import NF4Linear, dequantize_nf4, quantize_nf4
from llmfast.models.adapters.inject import DEFAULT, base_tensors
from llmfast.models.adapters.layers import AdaptedLinear, adapted_modules, restore_class
from llmfast.models.adapters.lora import LayerAdapter
from llmfast.models.adapters.switch import only_switch
from llmfast.models.decoder import Decoder
from llmfast.models.tensors import checksum


@dataclass(frozen=True)
class MergeReport:
    """What was merged."""

    layers: int
    """Modules that changed."""
    dequantized: int
    """How many of them were in 4 bits, and hold their numbers now."""
    requantized_error: float
    """What it would cost to store these in 4 bits again: the norm of the error over that of the adapter's updates.
    At 1 the error is as large as what was learned."""

    def __str__(self) -> str:
        said = f"merged into {self.layers} layers"
        if self.dequantized:
            said += (
                f", {self.dequantized} of which were in 4 bits and are not any more: storing them in 4 bits again "
                f"would change them by {self.requantized_error:.2f} times what the adapter changed"
            )
        return said


@torch.no_grad()
def merge_adapter(model: nn.Module, name: str = DEFAULT) -> MergeReport:
    """Add the updates of an adapter to the weights, in place; ``unmerge_adapter`` takes them back exactly.

    Until then the weights of before are kept. Layers in 4 bits are decoded and hold their numbers afterwards. A layer
    whose weight is tied to another's gets one of its own, and the model's configuration says so.

    Raises:
        ValueError: no adapter of that name, one is merged already, or the adapter was trained on another base.
    """
    switch = only_switch(model)
    switch.check(name)
    if name in switch.bases and checksum(base_tensors(model)) != switch.bases[name]:
        raise ValueError(f"the adapter {name!r} was trained on another base: its updates mean nothing in these weights")
    layers = [module for _, module in adapted_modules(model) if name in module.adapters]
    squares = torch.zeros(2, dtype=torch.float64)
    dequantized = 0
    for module in layers:
        adapter = module.adapters[name]
        module.before_merge = Before(type(module), module.plain_class, dict(module.named_parameters(recurse=False)))
        if not isinstance(adapter, LayerAdapter):
            _set_parameters(module, dict(adapter.named_parameters(recurse=False)))
            continue
        if not len(adapter):
            pass  # only its bias is trained
        elif isinstance(module, NF4Linear):
            dequantized += 1
            squares += _merge_packed(module, adapter)
        else:
            weight = module.updated_weight(adapter).to(module.weight.dtype)
            _set_parameters(module, {"weight": nn.Parameter(weight.contiguous(), module.weight.requires_grad)})
        if adapter.bias is not None:
            _set_parameters(module, {"bias": adapter.bias})
    switch.merged, switch.active = name, None
    switch.settings_before_merge = _untie(model)
    error, change = squares.sqrt().tolist()
    return MergeReport(len(layers), dequantized, error / change if change else 0.0)


def unmerge_adapter(model: nn.Module) -> None:
    """Put back the weights that were there before ``merge_adapter``; the adapter is used again.

    Raises:
        ValueError: none is merged.
    """
    switch = only_switch(model)
    if switch.merged is None:
        raise ValueError("no adapter is merged into the weights")
    for _, module in adapted_modules(model):
        if "before_merge" in vars(module):
            module.__class__, module.plain_class, parameters = module.before_merge
            _set_parameters(module, parameters)
            del module.before_merge
    for owner, setting, value in switch.settings_before_merge:
        setattr(owner, setting, value)
    switch.settings_before_merge = []
    switch.active, switch.merged = switch.merged, None


def merge_and_remove(model: nn.Module, name: str = DEFAULT) -> MergeReport:
    """Add the updates of an adapter to the weights and take all adapters out: a plain model is left.

    Raises:
        ValueError: as ``merge_adapter``.
    """
    report = merge_adapter(model, name)
    for _, module in list(adapted_modules(model)):
        module.__dict__.pop("before_merge", None)
        restore_class(module)
    return report


class Before(NamedTuple):
    """What a layer was before an adapter was merged into it."""

    kind: type[nn.Module]
    plain_kind: type[nn.Module]
    parameters: dict[str, nn.Parameter]


def _merge_packed(module: Any, adapter: LayerAdapter) -> Tensor:
    """Merge into a layer in 4 bits; returns the squares of the error of storing it so again, and of the update."""
    before = module.plain_weight()
    merged = module.updated_weight(adapter)
    layout = module.layout
    again = dequantize_nf4(quantize_nf4(merged, layout.block_size, layout.double_quant), torch.float32)
    squares = torch.stack([(again - merged).double().square().sum(), (merged - before).double().square().sum()])
    module.__class__, module.plain_class = AdaptedLinear, nn.Linear
    _set_parameters(module, {"weight": nn.Parameter(merged.to(module.dtype), requires_grad=False)})
    return squares.cpu()


def _set_parameters(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Parameters themselves, not copies, so that what was tied is tied again."""
    for name, parameter in parameters.items():
        setattr(module, name, parameter)


def _untie(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """Let the configurations of models say which weights are tied now; returns the settings of before."""
    before: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(module, Decoder) and config.tie_embeddings and module.head.weight is not module.embedding.weight:
            before.append((module, "config", config))
            module.config = dataclasses.replace(config, tie_embeddings=False)
        elif getattr(config, "tie_word_embeddings", False) and callable(getattr(module, "get_output_embeddings", None)):
            ends = [module.get_input_embeddings(), module.get_output_embeddings()]
            if None not in ends and ends[0].weight is not ends[1].weight:
                before.append((config, "tie_word_embeddings", True))
                config.tie_word_embeddings = False
    return before
