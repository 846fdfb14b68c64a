"""A model's tensors by name: all of them, those that training changes, and those that are frozen."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full or not writable.
    """
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        # The library has its own words for what the operating system reports, and its number.
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied parameter appears once, under its first name."""
    first_names = {name for name, _ in model.named_parameters()}
    all_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    repeated = all_names - first_names
    return {name: tensor for name, tensor in model.state_dict().items() if name not in repeated}


def frozen_names(model: nn.Module) -> set[str]:
    """Parameters that need no gradient, and buffers of modules whose own parameters are all of that kind."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for prefix, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            frozen |= {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)}
    return frozen


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training may change: what a checkpoint holds."""
    frozen = frozen_names(model)
    return {name: tensor for name, tensor in model_tensors(model).items() if name not in frozen}


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training leaves alone: the base of what is trained."""
    frozen = frozen_names(model)
    return {name: tensor for name, tensor in model_tensors(model).items() if name in frozen}


def load_trained_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy ``tensors`` over those of the model that training may change.

    Raises:
        ValueError: names or shapes that are not the model's.
    """
    own = trained_tensors(model)
    odd = sorted(set(own) ^ set(tensors)) or [name for name in own if own[name].shape != tensors[name].shape]
    if odd:
        raise ValueError(f"the checkpoint does not fit the model's configuration: {', '.join(odd[:3])}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


VALUE_HEAD = "value_head"
"""The module of a decoder that says what a policy may expect, which only training by PPO uses."""


def without_value_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model without those of its value head."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{VALUE_HEAD}.")}


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and contents: the same whatever files and devices the tensors are in.

    >>> a = checksum({"w": torch.zeros(2)})
    >>> a == checksum({"w": torch.zeros(2)}), a == checksum({"w": torch.zeros(2, 1)})
    (True, False)
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
