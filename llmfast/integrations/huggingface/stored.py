"""The tensors of a Hugging Face folder: safetensors files, or those of torch.save, whole or in shards."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_NAMES = ("model.safetensors", "pytorch_model.bin")  # the first that is there, alone or as an index of shards


@contextlib.contextmanager
def stored_tensors(folder: Path) -> Iterator[tuple[set[str], Callable[[str], Tensor]]]:
    """The names of the tensors in a folder, and a function that reads one.

    Raises:
        ValueError: no weights are there, or a file is missing or damaged.
    """
    files = _files(folder)
    with contextlib.ExitStack() as stack:
        homes: dict[str, Callable[[str], Tensor]] = {}
        for file in files:
            if not file.is_file():
                raise ValueError(f"{file} is missing")
            names, read = _open(file, stack)
            homes |= dict.fromkeys(names, read)
        yield set(homes), lambda name: homes[name](name)


def _files(folder: Path) -> list[Path]:
    for name in _NAMES:
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / each for each in _shards(index)]
        if (folder / name).exists():
            return [folder / name]
    raise ValueError(f"{folder / _NAMES[0]} is missing, and so are {_NAMES[1]} and their indices")


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{index} is damaged: {error!r}") from None
    if odd := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names a file that is not in its folder: {odd[0]}")
    return names


def _open(file: Path, stack: contextlib.ExitStack) -> tuple[list[str], Callable[[str], Tensor]]:
    if file.suffix == ".safetensors":
        try:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            return list(opened.keys()), opened.get_tensor
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}") from None
    try:
        tensors: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(f"{file} is damaged, or holds more than tensors: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise ValueError(f"{file} holds no tensors by name")
    return list(tensors), tensors.__getitem__
