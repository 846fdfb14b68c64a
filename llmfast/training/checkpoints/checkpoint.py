"""Checkpoints: folders of safetensors and JSON, written whole or not at all, checked when read.

``RUN/checkpoints/step-000500/`` is a model folder (``llmfast.models.folder``), which is all that using the model needs.
Resuming also needs ``optimizer.safetensors``, ``source.safetensors`` if the source of the data has tensors in its
state, and ``state.json``. That holds the SHA-256 of the tensor files, the optimizer's scalars (the step counters; they
are stored in JSON to avoid header overhead), the base of a model of which only a part is trained, and the revision of
the code.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfast.files import atomic_folder, file_sha256
from llmfast.models.folder import (
    MODEL_FILE,
    checkpoints,
    read_state_file,
    read_tensors,
    verify_file,
    write_state_file,
)
from llmfast.models.tensors import write_tensors
from llmfast.training.checkpoints.revision import revision

OPTIMIZER_FILE = "optimizer.safetensors"
TENSOR_FILES = (MODEL_FILE, OPTIMIZER_FILE)
SOURCE_FILE = "source.safetensors"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: everything that resuming needs."""

    folder: Path
    state: dict[str, Any]
    """``Trainer.state()``, with the validation loss, and the code's revision."""
    model: Tensors
    optimizer: Tensors

    @property
    def step(self) -> int:
        return self.state["step"]


def save_checkpoint(
    run: Path,
    state: dict[str, Any],
    *,
    model: Tensors,
    optimizer: Tensors,
    save_assets: Callable[[Path], None],
) -> Path:
    """Write the checkpoint of ``state["step"]``; returns its folder.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run, state["step"])
    optimizer, scalars = split_scalars(optimizer)
    with atomic_folder(folder) as partial:
        for name, tensors in zip(TENSOR_FILES, (model, optimizer), strict=True):
            write_tensors(partial / name, tensors)
        write_state(partial, state | {"scalars": scalars}, save_assets)
    return folder


def split_scalars(tensors: Tensors) -> tuple[Tensors, dict[str, tuple[str, float]]]:
    """Tensors that have dimensions, and the others as (dtype, value), which JSON holds exactly."""
    scalars = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 0}
    rest = {name: tensor for name, tensor in tensors.items() if name not in scalars}
    return rest, {name: (str(each.dtype).removeprefix("torch."), each.item()) for name, each in scalars.items()}


def join_scalars(tensors: Tensors, scalars: dict[str, tuple[str, float]]) -> Tensors:
    """The inverse of ``split_scalars``."""
    return tensors | {
        name: torch.tensor(value, dtype=getattr(torch, dtype)) for name, (dtype, value) in scalars.items()
    }


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is or will be."""
    return run / "checkpoints" / f"step-{step:06d}"


def write_state(folder: Path, state: dict[str, Any], save_assets: Callable[[Path], None]) -> None:
    """Write what a checkpoint holds besides model and optimizer tensors, which must be there."""
    source = state["source"]
    in_file = {name: value for name, value in source.items() if isinstance(value, Tensor)}
    names = list(TENSOR_FILES)
    if in_file:
        assert not any("/" in name for name in in_file), "PARAMETER/ENTRY names optimizer state"
        write_tensors(folder / SOURCE_FILE, {name: tensor.cpu() for name, tensor in in_file.items()})
        names.append(SOURCE_FILE)
    record = state | {
        "source": {name: value for name, value in source.items() if name not in in_file},
        "revision": revision(),
        "sha256": {name: file_sha256(folder / name) for name in names},
    }
    write_state_file(folder, record)
    save_assets(folder)


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None where none was evaluated."""
    losses = [(_validation_loss(path), path) for path in checkpoints(run)]
    known = [(loss, path) for loss, path in losses if loss is not None and not math.isnan(loss)]
    return min(known, default=(None, None), key=lambda pair: pair[0])[1]


def _validation_loss(folder: Path) -> float | None:
    """The validation loss of a checkpoint; None if it was not evaluated, or is damaged."""
    try:
        return read_state_file(folder).get("validation_loss")
    except ValueError:
        return None


def drop_old_checkpoints(run: Path, *, keep_last: int, keep_best: bool) -> None:
    """Remove all checkpoints but the newest ``keep_last`` and, with ``keep_best``, the best."""
    best = best_checkpoint(run) if keep_best else None
    for old in checkpoints(run)[:-keep_last]:
        if old != best:
            shutil.rmtree(old)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint whole, to resume from.

    Raises:
        ValueError: a file is missing, damaged, or not the one that was saved.
    """
    state = read_state(folder, verify=True)
    model, optimizer = (read_tensors(folder / name) for name in TENSOR_FILES)
    return Checkpoint(folder, state, model, join_scalars(optimizer, state["scalars"]))


def read_state(folder: Path, *, verify: bool = False) -> dict[str, Any]:
    """What a checkpoint holds besides model and optimizer; ``verify`` also checks its tensor files.

    Raises:
        ValueError: a file is missing, damaged, or not the one that was saved.
    """
    state = read_state_file(folder)
    for name in state["sha256"] if verify else ():
        verify_file(folder / name, state["sha256"][name])
    if verify and (missing := set(TENSOR_FILES) - set(state["sha256"])):
        raise ValueError(f"{folder} holds a model, but nothing to resume: it has no {', '.join(missing)}")
    if "source" not in state and "position" in state:
        # Checkpoints of earlier versions have the place in the data at the top.
        state["source"] = {"position": state["position"]}
    if SOURCE_FILE in state["sha256"]:
        state["source"] |= read_tensors(folder / SOURCE_FILE)
    return state
