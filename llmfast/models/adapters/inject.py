"""Adapters put into a model and taken out of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llmfast.kernels import NF4Linear
from llmfast.models.adapters.config import LoraConfig
from llmfast.models.adapters.layers import Adapted, adapt, adapted_modules, restore_class
from llmfast.models.adapters.lora import WHOLE, LayerAdapter, Lora, dense
from llmfast.models.adapters.switch import Switch, only_switch, switches
from llmfast.models.adapters.targets import (
    Target,
    check_own_forward,
    find_modules,
    find_targets,
    is_adaptable,
    is_inside,
    modules_of,
)

DEFAULT = "default"


def add_adapter(
    model: nn.Module, config: LoraConfig, name: str = DEFAULT, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Put an adapter into a model, in place: it is then used, and it alone is trained.

    The modules keep their names and parameters; all parameters but those of this adapter are frozen. An adapter that
    the model has already is used again as it is, if ``config`` is the same.

    Args:
        model: this decoder, or any module with ``nn.Linear``, ``NF4Linear``, ``nn.Embedding`` or transformers' Conv1D
            inside. Quantize it before.
        config: which layers get an adapter, and of what kind.
        name: of the adapter, by which it is used (``set_adapter``), saved and removed.
        generator: draws the A of each layer; the global one if left out.

    Returns:
        ``model``.

    Raises:
        ValueError: a pattern that fits nothing, a layer that cannot have an adapter, an adapter of that name with
            another configuration, or one that is merged into the weights.
    """
    check_name(name)
    found = switches(model)
    if len(found) > 1:
        raise ValueError(f"{type(model).__name__} holds several models with adapters: add one to each of them")
    switch = found[0] if found else Switch()
    if switch.merged is not None:
        switch.check(None)
    if name not in switch.configs:
        _inject(model, config, name, switch, generator)
    elif switch.configs[name] != config:
        raise ValueError(f"the model has an adapter {name!r} of another configuration: choose another name")
    switch.active = name
    train_adapter(model, name)
    return model


def remove_adapter(model: nn.Module, name: str = DEFAULT) -> nn.Module:
    """Take an adapter out of a model, in place; without its last one the model is as it was, but for what is frozen.

    Raises:
        ValueError: no adapter of that name, or one is merged into the weights.
    """
    switch = only_switch(model)
    switch.check(name)
    for _, module in list(adapted_modules(model)):
        if name in module.adapters:
            del module.adapters[name]
        if not len(module.adapters):
            restore_class(module)
    del switch.configs[name]
    switch.bases.pop(name, None)
    if switch.active == name:
        switch.active = None
    return model


def train_adapter(model: nn.Module, name: str = DEFAULT) -> None:
    """Let the adapter of that name be trained, and freeze everything else in ``model``.

    Raises:
        ValueError: no adapter of that name.
    """
    only_switch(model).check(name)
    model.requires_grad_(False)
    own = {id(parameter) for parameter in adapter_tensors(model, name).values() if isinstance(parameter, nn.Parameter)}
    base = {id(parameter) for parameter in base_parameters(model)}
    for parameter in model.parameters():
        if id(parameter) in own - base and parameter.is_floating_point():
            parameter.requires_grad_(True)


def adapter_tensors(model: nn.Module, name: str = DEFAULT) -> dict[str, Tensor]:
    """The parameters and buffers of an adapter by their names in the model, without those that it shares with it."""
    shared = {id(parameter) for parameter in base_parameters(model)}
    found: dict[str, Tensor] = {}
    for prefix, module in adapted_modules(model):
        if name in module.adapters:
            adapter = module.adapters[name]
            tensors = {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}
            found |= {
                f"{prefix}.adapters.{name}.{leaf}".lstrip("."): tensor
                for leaf, tensor in tensors.items()
                if id(tensor) not in shared
            }
    return found


def check_name(name: str) -> None:
    """Check that an adapter can have that name.

    Raises:
        ValueError: it is empty or has a dot in it, which separates the names of modules.
    """
    if not name or "." in name:
        raise ValueError(f"the name of an adapter must not be empty and must have no dot, got {name!r}")


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once, without those that adapters brought."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in [("", model), *modules_of(model)]:
        persistent = {leaf: each for leaf, each in module.named_buffers(recurse=False) if leaf in _saved_names(module)}
        for leaf, tensor in {**dict(module.named_parameters(recurse=False)), **persistent}.items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{name}.{leaf}".lstrip(".")] = tensor
    return found


def _saved_names(module: nn.Module) -> set[str]:
    return set(module._buffers) - module._non_persistent_buffers_set


def base_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a model but for those that adapters brought."""
    for module in [model, *(module for _, module in modules_of(model))]:
        yield from module.parameters(recurse=False)


def _inject(model: nn.Module, config: LoraConfig, name: str, switch: Switch, generator: torch.Generator | None) -> None:
    # Everything is checked and made before anything in the model changes.
    saved = find_modules(model, "lora.modules_to_save", config.modules_to_save)
    if config.keep_tied:
        saved |= _tied_to(model, saved)
    for module_name, module in saved.items():
        _check_trainable(module_name, module)
    by_module: dict[str, list[Target]] = {}
    for target in find_targets(model, config, set(saved)):
        by_module.setdefault(target.module, []).append(target)
    adapters: dict[str, nn.Module] = _copies(saved)
    for module_name, parts in by_module.items():
        module = model.get_submodule(module_name)
        _check_bias(module_name, module, parts, config)
        adapters[module_name] = _layer_adapter(model.get_submodule(module_name), parts, config, generator)
    if config.bias == "all":
        for module_name, module in modules_of(model):
            has_bias = isinstance(getattr(module, "bias", None), nn.Parameter)
            if has_bias and module_name not in adapters and not is_inside(module_name, saved):
                own = LayerAdapter({}, module.bias) if is_adaptable(module) else _with_own_bias(module_name, module)
                adapters[module_name] = own
    if not adapters:
        raise ValueError("the configuration gives no layer of the model an adapter")
    for module_name, adapter in adapters.items():
        module = adapt(model.get_submodule(module_name), switch)
        adapter.train(module.training)
        module.adapters[name] = adapter
    switch.configs[name] = config


def _check_bias(name: str, module: Any, parts: list[Target], config: LoraConfig) -> None:
    """The bias of a fused layer is trained whole."""
    has_bias = config.bias != "none" and isinstance(getattr(module, "bias", None), nn.Parameter)
    if has_bias and parts[0].part != WHOLE and sum(part.rows for part in parts) < module.out_features:
        raise ValueError(f"lora.bias is {config.bias}, but a part of {name} has no bias of its own: name all its parts")


def _layer_adapter(
    module: Any, parts: list[Target], config: LoraConfig, generator: torch.Generator | None
) -> LayerAdapter:
    is_embedding = isinstance(module, nn.Embedding)
    weight = _plain_weight(module)
    narrow = isinstance(module, NF4Linear) or module.weight.dtype in (torch.bfloat16, torch.float16)
    updates = {}
    for target in parts:
        updates[target.part] = lora = Lora(
            target.rows,
            weight.shape[1],
            config.rank_of(target.name),
            start=target.start,
            scale=config.scale_of(target.name),
            dropout=0.0 if is_embedding else config.dropout,
            dora=config.dora,
            pissa=config.init == "pissa",
            device=module.weight.device,
            dtype=torch.float32 if narrow else module.weight.dtype,
        )
        lora.begin(weight[lora.start : lora.stop], generator)
    bias = getattr(module, "bias", None) if config.bias != "none" else None
    return LayerAdapter(updates, bias)


def _plain_weight(module: Any) -> Tensor:
    """(N, K), without gradient."""
    if isinstance(module, NF4Linear):
        w = module.quantized
        return torch.empty(w.shape, device="meta") if w.bytes.is_meta else dense(w)
    transposed = isinstance(module, nn.Embedding) or hasattr(module, "nf")
    return module.weight.detach().T if transposed else module.weight.detach()


def _tied_to(model: nn.Module, chosen: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The other modules that hold a parameter of ``chosen`` directly."""
    own = {id(parameter) for module in chosen.values() for parameter in module.parameters()}
    return {
        name: module
        for name, module in modules_of(model)
        if name not in chosen and any(id(parameter) in own for parameter in module.parameters(recurse=False))
    }


def _check_trainable(name: str, module: nn.Module) -> None:
    if any(isinstance(inner, Adapted) and inner is not module for inner in module.modules()):
        raise ValueError(f"{name} holds layers that have adapters: it cannot be trained in full beside them")
    if any(isinstance(inner, NF4Linear) for inner in module.modules()):
        raise ValueError(f"{name} is in 4 bits and cannot be trained in full: leave it out of lora.modules_to_save")
    check_own_forward(name, module)


def _copies(modules: dict[str, nn.Module], shared: Iterable[Tensor] = ()) -> dict[str, nn.Module]:
    """Copies of modules without their adapters; modules that share a parameter have copies that share one.

    Tensors in ``shared`` are not copied.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for module in modules.values():
        if isinstance(module, Adapted):
            memo |= {id(module.adapters): nn.ModuleDict(), id(module.switch): module.switch}
    found = {name: copy.deepcopy(module, memo) for name, module in modules.items()}
    for each in found.values():
        if isinstance(each, Adapted):
            restore_class(each)
    return found


def _with_own_bias(name: str, module: nn.Module) -> nn.Module:
    """A copy of a module whose tensors are those of ``module``, but for its bias."""
    check_own_forward(name, module)
    others = [tensor for tensor in [*module.parameters(), *module.buffers()] if tensor is not module.bias]
    return _copies({name: module}, others)[name]
