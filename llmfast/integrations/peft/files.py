"""The files of an adapter, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmfast.files import atomic_folder
from llmfast.integrations.huggingface.folder import check_new
from llmfast.integrations.peft.config import read_config, write_config
from llmfast.integrations.peft.naming import Naming, naming_of
from llmfast.kernels import NF4Linear
from llmfast.models.adapters.inject import DEFAULT, add_adapter, base_tensors, remove_adapter
from llmfast.models.adapters.layers import adapted_modules
from llmfast.models.adapters.lora import LayerAdapter, Lora
from llmfast.models.adapters.switch import only_switch
from llmfast.models.adapters.targets import Target, candidates
from llmfast.models.folder import read_json, read_tensors
from llmfast.models.tensors import checksum, write_tensors

CONFIG_FILE = "adapter_config.json"
MODEL_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"
PREFIX = "base_model.model."


def save_adapter(model: nn.Module, folder: str | Path, name: str = DEFAULT, *, base: str | None = None) -> None:
    """Write an adapter as a new folder that PEFT reads, with the checksum of the base beside it.

    The layers of this decoder are called as in transformers where a family describes it, fused layers apart; those of
    any other model as the model calls them.

    Args:
        model: with the adapter, which is not merged.
        folder: new folder.
        name: of the adapter.
        base: the base model's name or path, for whoever reads the files.

    Raises:
        ValueError: no adapter of that name, one without tensors, or a folder that holds something already.
        OSError: the disk is full or not writable.
    """
    check_new(folder)
    switch = only_switch(model)
    switch.check(name)
    naming = naming_of(model)
    entries = adapter_entries(model, name, naming)
    empty = [key for key, tensor in entries.items() if not tensor.numel()]
    if not entries or empty:
        raise ValueError(f"the adapter {name!r} has {'empty tensors: ' + empty[0] if empty else 'no tensors'}")
    updates = _updates(model, name, naming)
    tree = write_config(switch.configs[name], updates, _saved(model, name, naming), naming, base)
    record = {
        "sha256": switch.bases.get(name) or checksum(base_tensors(model)),
        "of": type(model).__name__,
        "quantized": any(isinstance(module, NF4Linear) for module in model.modules()),
    }
    with atomic_folder(Path(folder)) as partial:
        contents = {PREFIX + key: tensor.detach().cpu().clone().contiguous() for key, tensor in entries.items()}
        write_tensors(partial / MODEL_FILE, contents, {"format": "pt"})
        (partial / CONFIG_FILE).write_text(json.dumps(tree, indent=2) + "\n")
        (partial / BASE_FILE).write_text(json.dumps(record, indent=2) + "\n")


def load_adapter(
    model: nn.Module, folder: str | Path, name: str = DEFAULT, *, trainable: bool = False, check_base: bool = True
) -> nn.Module:
    """Put the adapter of a folder, ours or PEFT's, into a model, in place; it is then used. Returns ``model``.

    Args:
        model: the base: this decoder, or a model whose layers have the names of the files.
        folder: with adapter_config.json and adapter_model.safetensors.
        name: of the adapter in the model.
        trainable: whether the adapter is to be trained further; everything is frozen if not.
        check_base: refuse a base that is not the one that the adapter was trained on. Folders that PEFT wrote do not
            tell. An adapter on another base can be used, and not merged.

    Raises:
        ValueError: a missing or damaged file, a setting that is not supported, tensors that are missing, left over or
            of another shape, or another base.
    """
    folder = Path(folder)
    tree, tensors = read_json(folder / CONFIG_FILE), read_tensors(folder / MODEL_FILE)
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    naming = naming_of(model, [f".{key}" for key in tensors])
    try:
        config = read_config(tree, naming)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} cannot be used: {error}") from None
    recorded = recorded_base(folder)
    own = checksum(base_tensors(model)) if recorded.get("of") == type(model).__name__ else None
    if check_base and own is not None and own != recorded["sha256"]:
        raise ValueError(
            f"{folder} was trained on another base: its tensors have the SHA-256 {recorded['sha256'][:12]}..., those "
            f"of this model {own[:12]}..."
        )
    add_adapter(model, config, name)
    try:
        tensors = _without_base(tensors, model, name, naming, folder)
        _fill(adapter_entries(model, name, naming), tensors, folder)
    except ValueError:
        remove_adapter(model, name)
        raise
    if own is not None:
        only_switch(model).bases[name] = recorded["sha256"]
    return model if trainable else model.requires_grad_(False)


def adapter_entries(model: nn.Module, name: str, naming: Naming) -> dict[str, Tensor]:
    """The tensors of an adapter as the files name them, as views of those in the model."""
    found: dict[str, Tensor] = {}
    for module_name, module in adapted_modules(model):
        adapter = module.adapter(name)
        if isinstance(adapter, LayerAdapter):
            for target, lora in _targets(model, module_name, adapter):
                for theirs, rows in naming.of(target):
                    found |= _lora_entries(theirs, lora, rows, isinstance(module, nn.Embedding), naming)
            if adapter.bias is not None:
                found |= naming.parts(module_name, "base_layer.bias" if len(adapter) else "bias", adapter.bias)
        elif adapter is not None:
            own = {id(parameter) for parameter in base_tensors(model).values()}
            for leaf, tensor in {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}.items():
                if id(tensor) not in own:
                    owner, _, last = f"{module_name}.{leaf}".rpartition(".")
                    found |= naming.parts(owner, last, tensor)
    return found


def _lora_entries(theirs: str, lora: Lora, rows: slice, is_embedding: bool, naming: Naming) -> dict[str, Tensor]:
    a, b = lora.factors()
    if is_embedding:
        a = a[:, : getattr(naming, "vocab_size", None)]
        found = {"lora_embedding_A": a, "lora_embedding_B": b[rows]}
    else:
        found = {"lora_A.weight": a, "lora_B.weight": b[rows]}
    if lora.magnitude is not None:
        found["lora_magnitude_vector"] = lora.magnitude[rows]
    return {f"{theirs}.{leaf}": tensor for leaf, tensor in found.items()}


def _targets(model: nn.Module, module: str, adapter: LayerAdapter) -> list[tuple[Target, Lora]]:
    return [(each, adapter[each.part]) for each in candidates(model) if each.module == module and each.part in adapter]


def _updates(model: nn.Module, name: str, naming: Naming) -> dict[str, Target]:
    """The targets of an adapter by the names of layers in the files."""
    return {
        theirs: target
        for module_name, module in adapted_modules(model)
        if isinstance(module.adapter(name), LayerAdapter)
        for target, _ in _targets(model, module_name, module.adapter(name))
        for theirs, _ in naming.of(target)
    }


def _saved(model: nn.Module, name: str, naming: Naming) -> list[str]:
    """The modules that an adapter trains in full by their names in the files."""
    own = {id(parameter) for parameter in base_tensors(model).values()}
    found = set()
    for module_name, module in adapted_modules(model):
        adapter = module.adapter(name)
        if adapter is None or isinstance(adapter, LayerAdapter):
            continue
        for leaf, parameter in adapter.named_parameters():
            if id(parameter) not in own and not (leaf == "bias" and _shares_weight(adapter, own)):
                found |= {*naming.parts(*f"{module_name}.{leaf}".rpartition(".")[::2], parameter)}
    return sorted({key.rpartition(".")[0] for key in found})


def _shares_weight(adapter: nn.Module, own: set[int]) -> bool:
    """Whether a copy has a bias of its own and nothing else (``bias`` all)."""
    return any(id(parameter) in own for parameter in adapter.parameters())


_BASE_WEIGHT = "base_layer.weight"


def _without_base(
    tensors: dict[str, Tensor], model: nn.Module, name: str, naming: Naming, folder: Path
) -> dict[str, Tensor]:
    """The tensors of the files without the frozen tables that PEFT writes beside their updates.

    Raises:
        ValueError: a table that is not the one of the model.
    """
    if not any(key.endswith(f".{_BASE_WEIGHT}") for key in tensors):
        return tensors
    own: dict[str, Tensor] = {}
    for module_name, module in adapted_modules(model):
        if isinstance(module.adapter(name), LayerAdapter):
            own |= naming.parts(module_name, _BASE_WEIGHT, module.plain_weight())
    for key in tensors.keys() & own.keys():
        if not torch.equal(own[key].to(tensors[key]), tensors[key]):
            raise ValueError(f"{key} in {folder / MODEL_FILE} differs from the base: the adapter is of another model")
    return {key: tensor for key, tensor in tensors.items() if key not in own}


def _fill(entries: dict[str, Tensor], tensors: dict[str, Tensor], folder: Path) -> None:
    missing, left = sorted(entries.keys() - tensors.keys()), sorted(tensors.keys() - entries.keys())
    if missing:
        raise ValueError(f"{folder / MODEL_FILE} lacks tensors of the adapter: {', '.join(missing[:3])}")
    if left:
        raise ValueError(f"{folder / MODEL_FILE} has tensors without a place: {', '.join(left[:3])}")
    for key, tensor in tensors.items():
        if tensor.shape != entries[key].shape:
            shapes = f"{tuple(tensor.shape)}, but by {CONFIG_FILE} it is {tuple(entries[key].shape)}"
            raise ValueError(f"{key} in {folder / MODEL_FILE} has the shape {shapes}")
    with torch.no_grad():
        for key, tensor in tensors.items():
            entries[key].copy_(tensor)


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds the files of an adapter."""
    return (folder / CONFIG_FILE).exists()


def recorded_base(folder: Path) -> dict[str, Any]:
    """What the files of an adapter tell of its base beside its name: ``sha256`` of its tensors, ``of`` which class of
    model, and whether it is ``quantized``; nothing in files of PEFT."""
    return read_json(folder / BASE_FILE) if (folder / BASE_FILE).exists() else {}


def base_name(folder: Path) -> str | None:
    """What the files of an adapter name as its base model."""
    return read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
