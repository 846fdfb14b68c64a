"""Which layers of a model a configuration means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from llmfast.kernels import NF4Linear
from llmfast.models.adapters.config import ALL_LINEAR, LoraConfig, matches, matches_any
from llmfast.models.adapters.layers import Adapted, adapted_modules, is_conv1d
from llmfast.models.adapters.lora import WHOLE

HEADS = ("head", "lm_head", "embed_out", "score", "classifier")
"""Names of output heads, which all-linear leaves out."""


class Target(NamedTuple):
    """Some rows of a layer that get an adapter."""

    module: str
    """The name of the layer."""
    part: str
    """The name of the rows: ``whole``, or that of a part of a fused layer."""
    name: str
    """What patterns match: the layer's name, or for a part, its parent's name and the part's."""
    start: int
    rows: int


def find_targets(model: nn.Module, config: LoraConfig, saved: Iterable[str] = ()) -> list[Target]:
    """The layers, and the parts of fused layers, that ``config.target_modules`` names.

    Args:
        model: the model.
        config: the patterns.
        saved: names of modules that are trained in full, in which no layer gets an adapter.

    Raises:
        ValueError: a pattern that fits nothing, a layer of a kind without adapters, a fused layer that is named
            together with its parts, or experts that are not excluded.
    """
    _check_experts(model, config)
    found = [each for each in candidates(model) if not is_inside(each.module, saved)]
    kept = [each for each in found if not matches_any(config.exclude_modules, each.name)]
    named = [pattern for pattern in config.target_modules if pattern != ALL_LINEAR]
    chosen = [each for each in kept if matches_any(named, each.name)]
    for pattern in named:
        if not any(matches(pattern, each.name) for each in found):
            raise ValueError(f"lora.target_modules has {pattern!r}, {_no_layer(model, pattern, found)}")
    if ALL_LINEAR in config.target_modules:
        head = output_head(model)
        taken = {each.module for each in chosen}
        for each in kept:
            module = model.get_submodule(each.module)
            is_head = module is head or each.module.rpartition(".")[2] in HEADS
            if each.part == WHOLE and each.module not in taken and not is_head and not isinstance(module, nn.Embedding):
                chosen.append(each)
    for each in chosen:
        _check_kind(each.module, model.get_submodule(each.module))
        if each.part == WHOLE and any(other.module == each.module and other.part != WHOLE for other in chosen):
            raise ValueError(f"lora.target_modules names {each.module} and a part of it: name one of them")
    return chosen


def find_modules(model: nn.Module, setting: str, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules that patterns name, by name.

    Raises:
        ValueError: a pattern that fits nothing.
    """
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        named = {name: module for name, module in modules_of(model) if matches(pattern, name)}
        if not named:
            names = [name.rpartition(".")[2] for name, _ in modules_of(model)]
            nearest = difflib.get_close_matches(pattern, names, n=1)
            raise ValueError(
                f"{setting} has {pattern!r}, but no module is called so"
                + (f"; did you mean {nearest[0]}?" if nearest else "")
            )
        found |= named
    return found


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by name, without those that belong to adapters, and without the model itself."""
    inner = {id(each) for _, module in adapted_modules(model) for each in module.adapters.modules()}
    for name, module in model.named_modules():
        if name and id(module) not in inner:
            yield name, module


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that transformers calls the output embeddings; None where a model does not say."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


def is_adaptable(module: nn.Module) -> bool:
    """Whether a layer can get an adapter."""
    kind = module.plain_class if isinstance(module, Adapted) else type(module)
    return kind in (nn.Linear, NF4Linear, nn.Embedding) or is_conv1d(kind)


def candidates(model: nn.Module) -> Iterator[Target]:
    """Everything that patterns can name: layers, and the parts of fused layers."""
    fused: dict[int, tuple[str, dict[str, int]]] = {}
    for name, module in [("", model), *modules_of(model)]:
        for child, parts in getattr(module, "fused", {}).items():
            fused[id(getattr(module, child))] = name, parts
    for name, module in modules_of(model):
        if not (isinstance(module, nn.Linear | nn.Embedding) or is_adaptable(module)):
            continue
        yield Target(name, WHOLE, name, 0, _outputs(module))
        parent, parts = fused.get(id(module), ("", {}))
        start = 0
        for part, rows in parts.items():
            yield Target(name, part, f"{parent}.{part}".lstrip("."), start, rows)
            start += rows


def _outputs(module: Any) -> int:
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return module.nf if hasattr(module, "nf") else module.out_features


def stacked_matrices(model: nn.Module) -> dict[str, str]:
    """The names of matrices that lie one behind another in a parameter, those of experts, with their modules' names."""
    return {
        f"{name}.{leaf}".lstrip("."): name
        for name, module in modules_of(model)
        if not isinstance(module, _ConvNd)
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def _check_experts(model: nn.Module, config: LoraConfig) -> None:
    """Check that no pattern means the matrices of experts, which cannot have adapters."""
    for name, module in stacked_matrices(model).items():
        if matches_any(config.exclude_modules, name) or matches_any(config.exclude_modules, module):
            continue
        for pattern in config.target_modules:
            parts = (f"{name.rpartition('.')[0]}.{part}" for part in ("gate", "up") if name.endswith("gate_up"))
            if pattern == ALL_LINEAR or any(matches(pattern, each) for each in (name, module, *parts)):
                raise ValueError(
                    f"lora.target_modules has {pattern!r}, which means the matrices of experts in {name} too, for "
                    "which there are no adapters: set lora.exclude_modules to experts to leave them as they are"
                )


def _check_kind(name: str, module: nn.Module) -> None:
    if not is_adaptable(module):
        raise ValueError(
            f"{name} is a {type(module).__name__}, for which there are no adapters: leave it out by "
            "lora.exclude_modules, or name other layers in lora.target_modules"
        )
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise ValueError(f"{name} renormalizes its rows (max_norm), for which there are no adapters")
    check_own_forward(name, module)


def check_own_forward(name: str, module: nn.Module) -> None:
    """Check that a module computes what its class says.

    Raises:
        ValueError: it has a ``forward`` of its own, which would pass over its adapters.
    """
    if "forward" in vars(module):
        raise ValueError(f"{name} has a forward of its own (llmfast.patch, or hooks of accelerate): take it back first")


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a module is one of ``modules``, or inside one."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _no_layer(model: nn.Module, pattern: str, found: list[Target]) -> str:
    if any(matches(pattern, name) for name, _ in modules_of(model)):
        return "which is not a linear layer or an embedding"
    nearest = difflib.get_close_matches(pattern, {each.name.rpartition(".")[2] for each in found}, n=1)
    return "but no layer is called so" + (f"; did you mean {nearest[0]}?" if nearest else "")
