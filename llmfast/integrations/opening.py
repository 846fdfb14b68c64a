"""A model from any folder that holds one: a run, a checkpoint or a Hugging Face folder, whole or as part of a base."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from llmfast.config import from_dict
from llmfast.integrations.huggingface import load_huggingface
from llmfast.integrations.huggingface.config import from_config
from llmfast.integrations.peft.files import base_name, is_adapter_folder, load_adapter, recorded_base
from llmfast.kernels import NF4Linear
from llmfast.models.adapters.inject import add_adapter
from llmfast.models.adapters.merge import merge_and_remove
from llmfast.models.adapters.switch import switches
from llmfast.models.base import Base, check_base, describe_base
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import CONFIG_FILE, load_decoder, model_folder, read_json, read_model, read_state_file
from llmfast.models.quantize import quantize_decoder
from llmfast.models.tensors import load_trained_tensors
from llmfast.models.vocabulary import grow_vocabulary
from llmfast.tokenizer import Tokenizer

# How a model is trained, and not what it computes: a run that starts from weights may choose these again.
FREE_SETTINGS = ("dropout",)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Start:
    """A folder with a model to start from."""

    folder: Path
    """Where tensors and tokenizer are: of a run, its newest checkpoint."""
    config: DecoderConfig
    is_huggingface: bool
    is_classifier: bool = False
    """Whether it is a classifier, whose decoder is started from, without its head."""

    def decoder(self, config: DecoderConfig | None = None, *, keep_4_bits: bool = False) -> Decoder:
        """The model, in training mode, with an adapter that was trained merged into it.

        Args:
            config: whose ``FREE_SETTINGS`` the model gets; those of the folder if left out.
            keep_4_bits: leave layers of a Hugging Face folder that bitsandbytes quantized in 4 bits; decoded if not.
        """
        if self.is_huggingface:
            model = load_huggingface(self.folder, keep_4_bits=keep_4_bits)
        elif self.is_classifier:
            model = _decoder_of_classifier(self.folder, self.config)
        else:
            model = open_decoder(self.folder)
        if switches(model):
            merge_and_remove(model)
            if model.config != self.config:
                raise ValueError(
                    f"start: the adapter of {self.folder} unties the output head from the embedding table: start from "
                    "what llmfast model merge writes"
                )
        if config is not None:
            wanted = dataclasses.replace(model.config, **{name: getattr(config, name) for name in FREE_SETTINGS})
            if wanted != model.config:
                packed = {name: each for name, each in model.named_modules() if isinstance(each, NF4Linear)}
                model = _with_config(model, wanted, packed)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model.train()


def _with_config(model: Decoder, config: DecoderConfig, packed: dict[str, NF4Linear]) -> Decoder:
    """The same weights in a decoder of another configuration; ``packed`` are the layers in 4 bits."""
    with torch.device("meta"):
        other = Decoder(config)
    for name, layer in packed.items():
        other.set_submodule(name, layer)
    other.load_state_dict(model.state_dict(), assign=True)
    if config.tie_embeddings:
        other.head.weight = other.embedding.weight
    other.renew_buffers()
    return other


def open_start(path: str | Path) -> Start:
    """What ``path`` holds.

    Raises:
        ValueError: it is missing, or no model that can be started from.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"start: {path} does not exist")
    if (path / CONFIG_FILE).exists() and "model_type" in read_json(path / CONFIG_FILE):
        try:
            _, config = from_config(json.loads((path / CONFIG_FILE).read_text("utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"start: {path / CONFIG_FILE} cannot be used: {error}") from None
        return Start(path, config, is_huggingface=True)
    folder = model_folder(path)
    tree = read_json(folder / CONFIG_FILE)
    if is_classifier := "decoder" in tree:
        tree = tree["decoder"]
        if read_state_file(folder).get("base"):
            raise ValueError(f"start: {folder} holds only the trained part of a classifier: start from a whole one")
    return Start(folder, from_dict(DecoderConfig, tree), is_huggingface=False, is_classifier=is_classifier)


def _decoder_of_classifier(folder: Path, config: DecoderConfig) -> Decoder:
    _, _, tensors = read_model(folder)
    prefix = "decoder."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return Decoder.from_tensors(config, own)


def open_model(path: str | Path, *, base: str | Path | None = None) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a run (its newest checkpoint), a checkpoint, a Hugging Face folder, or a folder with
    an adapter in PEFT's files, for evaluation.

    An adapter, and whatever else is only a part of a model, is put on its base, whose checksum must be that of the
    training, where the files tell. The adapter can be switched and merged.

    Args:
        path: the folder.
        base: where the base lies now, if it was moved since the training.

    Raises:
        ValueError: nothing to load there, a damaged file, or a base that is missing or another one.
    """
    path = Path(path)
    if is_adapter_folder(path):
        return _open_adapter(path, base)
    if (path / CONFIG_FILE).exists() and "model_type" in read_json(path / CONFIG_FILE):
        _check_no_base(path, base)
        return load_huggingface(path).eval(), Tokenizer.load(path)
    folder = model_folder(path)
    return open_decoder(folder, base=base), Tokenizer.load(folder)


def open_decoder(folder: Path, *, base: str | Path | None = None) -> Decoder:
    """The decoder of a model folder, whole or on its base, for evaluation.

    Raises:
        ValueError: as ``open_model``.
    """
    folder = Path(folder)
    state = read_state_file(folder)
    if not state.get("base"):
        _check_no_base(folder, base)
        return load_decoder(folder)
    tree = read_json(folder / CONFIG_FILE)
    if "decoder" in tree:
        raise ValueError(f"{folder} holds a classifier, not a language model: use llmfast predict")
    return on_base(folder, from_dict(DecoderConfig, tree), lambda decoder: decoder, base=base)


def on_base(
    folder: Path, config: DecoderConfig, build: Callable[[Decoder], Model], *, base: str | Path | None = None
) -> Model:
    """The model of a checkpoint that holds only what was trained, put on its base, for evaluation.

    Args:
        folder: the checkpoint.
        config: settings of the decoder.
        build: makes the model of its decoder, as the task did that trained it.
        base: where the base lies now, if it was moved since the training.

    Raises:
        ValueError: a damaged file, or a base that is missing or another one.
    """
    _, state, tensors = read_model(folder)
    recorded = Base(**state["base"])
    at = Path(recorded.path if base is None else base)
    if not at.exists():
        raise ValueError(f"{folder} was trained on the base {recorded}, which is missing: give base, where it is now")
    start = open_start(at)
    decoder = start.decoder(config, keep_4_bits=recorded.quantized)
    _grow_as(decoder, start.folder, folder)
    if recorded.quantized:
        quantize_decoder(decoder)
    if recorded.adapter is not None:
        add_adapter(decoder, recorded.adapter)
    model = build(decoder)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in tensors)
    check_base(describe_base(model, str(at)), state["base"], folder)
    load_trained_tensors(model, tensors)
    return model.eval().requires_grad_(False)


def _open_adapter(folder: Path, base: str | Path | None) -> tuple[Decoder, Tokenizer]:
    at = base or base_name(folder)
    if at is None or not Path(at).exists():
        where = "does not say where its base is" if at is None else f"has the base {at}, which is missing here"
        raise ValueError(f"the adapter in {folder} {where}: give base, a run, a checkpoint or a Hugging Face folder")
    start = open_start(at)
    quantized = recorded_base(folder).get("quantized", False)
    decoder = start.decoder(keep_4_bits=quantized)
    has_tokenizer = (folder / "tokenizer.json").exists()
    if has_tokenizer:
        _grow_as(decoder, start.folder, folder)
    if quantized:
        quantize_decoder(decoder)
    load_adapter(decoder, folder)
    return decoder.eval(), Tokenizer.load(folder if has_tokenizer else start.folder)


def _grow_as(decoder: Decoder, start: Path, folder: Path) -> None:
    """Give a decoder the special tokens that were added for a chat template when it was trained."""
    known, wanted = (Tokenizer.load(each).n_vocab for each in (start, folder))
    if wanted > known:
        grow_vocabulary(decoder, known, wanted)


def _check_no_base(folder: Path, base: Any) -> None:
    if base is not None:
        raise ValueError(f"{folder} holds a whole model: it has no base to be found at {base}")
