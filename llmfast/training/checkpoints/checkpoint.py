"""Checkpoints: folders of safetensors and JSON, written whole or not at all, checked when read.

``RUN/checkpoints/step-000500/`` holds ``model.safetensors``, ``config.json`` (the model's shape) and
``tokenizer.json``, which is all that generation needs, and ``optimizer.safetensors`` and ``state.json``, which
resuming needs as well. ``state.json`` carries the SHA-256 of the two tensor files, the optimizer's scalars (its step
counters, a tensor file would spend more on their names), and the revision of the code.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmfast.config import from_dict, to_dict
from llmfast.files import atomic_folder
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer
from llmfast.training.checkpoints.revision import revision

TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: everything that resuming needs."""

    folder: Path
    state: dict[str, Any]
    """``Trainer.state()``, with the validation loss, and the code's revision."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @property
    def step(self) -> int:
        return self.state["step"]


def save_checkpoint(
    run: Path,
    state: dict[str, Any],
    *,
    config: DecoderConfig,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    tokenizer: Tokenizer,
) -> Path:
    """Write the checkpoint of ``state["step"]``; returns its folder.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run, state["step"])
    optimizer, scalars = split_scalars(optimizer)
    with atomic_folder(folder) as partial:
        for name, tensors in zip(TENSOR_FILES, (model, optimizer), strict=True):
            save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, partial / name)
        write_state(partial, state | {"scalars": scalars}, config, tokenizer)
    return folder


def split_scalars(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, float]]]:
    """Tensors that have dimensions, and the others as (dtype, value), which JSON holds exactly."""
    scalars = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 0}
    rest = {name: tensor for name, tensor in tensors.items() if name not in scalars}
    return rest, {
        name: (str(each.dtype).removeprefix("torch."), each.item()) for name, each in scalars.items()
    }


def join_scalars(tensors: dict[str, Tensor], scalars: dict[str, tuple[str, float]]) -> dict[str, Tensor]:
    """What ``split_scalars`` was given."""
    return tensors | {
        name: torch.tensor(value, dtype=getattr(torch, dtype)) for name, (dtype, value) in scalars.items()
    }


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is or will be."""
    return run / "checkpoints" / f"step-{step:06d}"


def write_state(folder: Path, state: dict[str, Any], config: DecoderConfig, tokenizer: Tokenizer) -> None:
    """Write what a checkpoint holds besides its tensor files, which must be there."""
    record = state | {
        "revision": revision(),
        "sha256": {name: _sha256(folder / name) for name in TENSOR_FILES},
    }
    (folder / "state.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
    tokenizer.save(folder)


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None where none was evaluated."""
    losses = [(_validation_loss(path), path) for path in checkpoints(run)]
    known = [(loss, path) for loss, path in losses if loss is not None and not math.isnan(loss)]
    return min(known, default=(None, None), key=lambda pair: pair[0])[1]


def _validation_loss(folder: Path) -> float | None:
    """That of a checkpoint; None if it was not evaluated, or is damaged."""
    try:
        return read_state(folder).get("validation_loss")
    except ValueError:
        return None


def drop_old_checkpoints(run: Path, *, keep_last: int, keep_best: bool) -> None:
    """Remove all checkpoints but the newest ``keep_last`` and, if wished, the best."""
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
    model, optimizer = (_read_tensors(folder / name) for name in TENSOR_FILES)
    return Checkpoint(folder, state, model, join_scalars(optimizer, state["scalars"]))


def read_state(folder: Path, *, verify: bool = False) -> dict[str, Any]:
    """What a checkpoint holds besides tensors; ``verify`` also checks that the tensor files are those saved.

    Raises:
        ValueError: a file is missing, damaged, or not the one that was saved.
    """
    state = _read_json(folder / "state.json")
    for name in TENSOR_FILES if verify else ():
        _verify(folder / name, state["sha256"][name])
    return state


def load_model(path: Path) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a checkpoint folder, or of the newest checkpoint of a run folder.

    Raises:
        ValueError: nothing to load there, or a damaged file.
    """
    folder = model_folder(path)
    return load_decoder(folder), Tokenizer.load(folder)


def model_folder(path: Path) -> Path:
    """``path``, if it is a checkpoint folder, or the newest checkpoint of the run folder that it is.

    Raises:
        ValueError: it is neither.
    """
    path = Path(path)
    if (path / "model.safetensors").exists():
        return path
    found = checkpoints(path)
    if not found:
        raise ValueError(f"{path} is neither a checkpoint nor a run folder with one (no checkpoints/step-*)")
    return found[-1]


def load_decoder(folder: Path) -> Decoder:
    """The model of a checkpoint folder, for evaluation.

    Raises:
        ValueError: a missing or damaged file.
    """
    _verify(folder / "model.safetensors", read_state(folder)["sha256"]["model.safetensors"])
    config = from_dict(DecoderConfig, _read_json(folder / "config.json"))
    return Decoder.from_tensors(config, _read_tensors(folder / "model.safetensors")).eval()


def save_model(folder: Path, model: Decoder, *, write_tokenizer: Callable[[Path], None]) -> None:
    """Write a checkpoint folder that holds a model to use, and no training to resume.

    Raises:
        OSError: the disk is full or not writable; what was at ``folder`` is untouched.
    """
    with atomic_folder(folder) as partial:
        file = partial / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model_tensors(model).items()}, file)
        state = {"step": 0, "sha256": {file.name: _sha256(file)}}
        (partial / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        (partial / "config.json").write_text(json.dumps(to_dict(model.config), indent=2) + "\n")
        write_tokenizer(partial)


def model_tensors(model: Decoder) -> dict[str, Tensor]:
    """The parameters by name; a tied output head is left out, since it is the embedding table."""
    tied = {"head.weight"} if model.config.tie_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def load_model_tensors(model: Decoder, tensors: dict[str, Tensor]) -> None:
    """Copy ``tensors`` into the model's parameters.

    Raises:
        ValueError: names or shapes that are not the model's.
    """
    own = model_tensors(model)
    odd = sorted(set(own) ^ set(tensors)) or [name for name in own if own[name].shape != tensors[name].shape]
    if odd:
        raise ValueError(f"the checkpoint does not fit the model's configuration: {', '.join(odd[:3])}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {path} is missing") from None
    except ValueError as error:
        raise ValueError(f"checkpoint file {path} is damaged: {error}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {path} is missing") from None
    except SafetensorError as error:
        raise ValueError(f"checkpoint file {path} is damaged: {error}") from None


def _verify(path: Path, sha256: str) -> None:
    try:
        actual = _sha256(path)
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {path} is missing") from None
    if actual != sha256:
        raise ValueError(
            f"checkpoint file {path} is damaged: its SHA-256 is not the one in state.json; "
            f"remove the folder {path.parent} to go on from the checkpoint before it"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
