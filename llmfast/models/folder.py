"""Model folders: a configuration, tensors and a tokenizer, read for use.

A model folder holds ``model.safetensors``, ``config.json`` (the model's shape), ``tokenizer.json``, and ``state.json``
with the SHA-256 of the tensor file. Each checkpoint of a run is one, with what resuming needs beside it
(``llmfast.training.checkpoints``): ``RUN/checkpoints/step-000500/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmfast.config import from_dict, to_dict
from llmfast.files import atomic_folder, file_sha256, json_sha256
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.tensors import model_tensors, without_value_head, write_tensors
from llmfast.tokenizer import Tokenizer

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
STATE_FILE = "state.json"
CHECKSUM = "checksum"


def load_model(path: Path) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a model folder, or of the newest checkpoint of a run folder.

    Raises:
        ValueError: nothing to load there, or a damaged file.
    """
    folder = model_folder(path)
    return load_decoder(folder), Tokenizer.load(folder)


def load_decoder(folder: Path) -> Decoder:
    """The model of a model folder, for evaluation.

    Raises:
        ValueError: a missing or damaged file, a model of another kind, or only the trained part of a model.
    """
    folder = Path(folder)
    config, state, tensors = read_model(folder)
    if "decoder" in config:
        raise ValueError(f"{folder} holds a classifier, not a language model: use llmfast predict")
    if state.get("base"):
        raise ValueError(f"{folder} holds only the trained part of a model, whose base is {state['base']['path']}")
    return Decoder.from_tensors(from_dict(DecoderConfig, config), tensors).eval()


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Configuration, state and tensors of a model folder, the tensors checked against their SHA-256.

    The tensors of a value head, which only training uses, are left out.

    Raises:
        ValueError: a missing or damaged file.
    """
    state = read_state_file(folder)
    verify_file(folder / MODEL_FILE, state["sha256"][MODEL_FILE])
    return read_json(folder / CONFIG_FILE), state, without_value_head(read_tensors(folder / MODEL_FILE))


def save_model(
    folder: Path, model: Decoder, *, write_tokenizer: Callable[[Path], None], family: str | None = None
) -> None:
    """Write a model folder, which holds a model to use and no training to resume.

    Args:
        folder: a new folder.
        model: what is written.
        write_tokenizer: is called with the folder.
        family: the ``model_type`` that transformers has for the model, if it was imported: several may fit.

    Raises:
        OSError: the disk is full or not writable; what was at ``folder`` is untouched.
    """
    with atomic_folder(folder) as partial:
        file = partial / MODEL_FILE
        write_tensors(file, model_tensors(model))
        origin = {} if family is None else {"family": family}
        write_state_file(partial, {"step": 0, "sha256": {file.name: file_sha256(file)}} | origin)
        write_config(partial, model.config)
        write_tokenizer(partial)


def write_config(folder: Path, config: Any) -> None:
    """Write the configuration of a model, a dataclass, as config.json."""
    (folder / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=2) + "\n")


# --- where models are -----------------------------------------------------------------------------------------------


def model_folder(path: Path) -> Path:
    """``path``, if it is a model folder, or the newest checkpoint of the run folder that it is.

    Raises:
        ValueError: it is neither.
    """
    path = Path(path)
    if (path / MODEL_FILE).exists():
        return path
    found = checkpoints(path)
    if not found:
        raise ValueError(f"{path} is neither a checkpoint nor a run folder with one (no checkpoints/step-*)")
    return found[-1]


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    folders = [path for path in (Path(run) / "checkpoints").glob("step-*") if path.is_dir()]
    found = [path for path in folders if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint of a run was saved, by the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def is_classifier(path: Path) -> bool:
    """Whether a run or model folder holds a classifier; False where there is no model that could be read."""
    try:
        tree = read_json(model_folder(path) / CONFIG_FILE)
    except ValueError:
        return False
    return "decoder" in tree and "model_type" not in tree  # Hugging Face's composite models have both


# --- files that are checked when they are read ----------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {path} is missing") from None
    except ValueError as error:
        raise ValueError(f"checkpoint file {path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint file {path} is damaged: it holds no names with values")
    return content


def write_state_file(folder: Path, state: dict[str, Any]) -> None:
    """Write state.json with a checksum of itself."""
    state = json.loads(json.dumps(state))  # as it will be read: with lists for tuples
    (folder / STATE_FILE).write_text(json.dumps(state | {CHECKSUM: json_sha256(state)}, indent=2) + "\n")


def read_state_file(folder: Path) -> dict[str, Any]:
    """The content of state.json.

    Raises:
        ValueError: it is missing or damaged.
    """
    state = read_json(folder / STATE_FILE)
    # Those of earlier versions have none.
    if (checksum := state.pop(CHECKSUM, None)) is not None and checksum != json_sha256(state):
        raise ValueError(f"checkpoint file {folder / STATE_FILE} is damaged: its checksum is not that of its content")
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {path} is missing") from None
    except SafetensorError as error:
        raise ValueError(f"checkpoint file {path} is damaged: {error}") from None


def verify_file(path: Path, sha256: str) -> None:
    """Check that a file is the one that was saved.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        actual = file_sha256(path)
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {path} is missing") from None
    if actual != sha256:
        raise ValueError(
            f"checkpoint file {path} is damaged: its SHA-256 is not the one in state.json; "
            f"remove the folder {path.parent} to resume from the checkpoint before it"
        )
