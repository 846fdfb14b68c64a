"""Checkpoints of a model that is divided between processes: each writes its part, the files hold whole tensors.

``torch.distributed.checkpoint`` writes and reads the same safetensors files that a single process does, so a run
resumes with any number of processes and any strategy, and each reads only the parts that it needs.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from llmfast.training.checkpoints.checkpoint import TENSOR_FILES


def write_sharded(
    folder: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], background: dist.ProcessGroup | None
) -> Future:
    """Write both tensor files into ``folder``, which all processes reach; all must call it.

    With a group of its own, ``background``, the tensors are copied before this returns and written in a thread, which
    talks to those of the other processes. When the future is done in all of them, ``name_files`` completes the work.
    """
    files = dict.fromkeys(model, 1) | dict.fromkeys(optimizer, 2)
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=files, save_distributed=True, enable_consolidation=True
    )
    if background is not None:
        return dcp.async_save(model | optimizer, storage_writer=writer, process_group=background)
    dcp.save(model | optimizer, storage_writer=writer)
    done: Future = Future()
    done.set_result(None)
    return done


def name_files(folder: Path) -> None:
    """Give what ``write_sharded`` wrote the names that a checkpoint has (in one process)."""
    for number, name in enumerate(TENSOR_FILES, 1):
        os.replace(folder / f"model-{number:05d}-of-{len(TENSOR_FILES):05d}.safetensors", folder / name)
    (folder / "model.safetensors.index.json").unlink()
    shutil.rmtree(folder / "sharded")


def read_sharded(folder: Path, model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill ``model``, this process's parts, and return the optimizer's state divided as ``model`` is; all must call it.

    Raises:
        ValueError: names or shapes that are not the model's.
    """
    reader = HuggingFaceStorageReader(str(folder))
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    odd = sorted(name for name, tensor in model.items() if name not in stored or stored[name].size != tensor.shape)
    if odd:
        raise ValueError(f"the checkpoint does not fit the model's configuration: {', '.join(odd[:3])}")
    # PARAMETER/ENTRY names optimizer state; a source's tensors, which have no such names, are read elsewhere.
    optimizer = {name: _place(name, stored[name], model) for name in stored if "/" in name}
    dcp.load(model | optimizer, storage_reader=reader)
    return optimizer


def _place(name: str, stored: Any, model: dict[str, Tensor]) -> Tensor:
    """An empty tensor to read a stored one into: divided as its parameter is if the shapes are equal, else whole."""
    parameter = model.get(name.rpartition("/")[0])
    if isinstance(parameter, DTensor) and stored.size == parameter.shape:
        return torch.empty_like(parameter, dtype=stored.properties.dtype, requires_grad=False)
    return torch.empty(stored.size, dtype=stored.properties.dtype)
