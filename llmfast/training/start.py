"""Weights to start from: a run, a checkpoint, or a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from llmfast.config import from_dict
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import CONFIG_FILE, load_decoder, model_folder, read_json
from llmfast.models.tensors import model_tensors
from llmfast.tokenizer import Tokenizer

# How a model is trained, and not what it computes: a run that starts from weights may choose these again.
FREE_SETTINGS = {"dropout"}
# They follow from others where they are left out.
DERIVED_SETTINGS = ("kv_heads", "head_width", "ff_width")


@dataclass(frozen=True)
class Start:
    """A model folder to start from."""

    folder: Path
    """Where tensors and tokenizer are: of a run, its newest checkpoint."""
    config: DecoderConfig
    is_huggingface: bool

    def decoder(self, config: DecoderConfig | None = None) -> Decoder:
        """The model, in training mode; with the training settings (``FREE_SETTINGS``) of ``config`` if it is given."""
        if self.is_huggingface:
            from llmfast.integrations.huggingface import load_huggingface

            model = load_huggingface(self.folder)
        else:
            model = load_decoder(self.folder)
        if config is not None and config != self.config:
            model = Decoder.from_tensors(config, model_tensors(model))
        return model.train()


def open_start(path: str | Path) -> Start:
    """What ``path`` holds.

    Raises:
        ValueError: it is missing, or no model that can be started from.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"start: {path} does not exist")
    if (path / CONFIG_FILE).exists() and "model_type" in read_json(path / CONFIG_FILE):
        from llmfast.integrations.huggingface.config import from_config

        try:
            _, config = from_config(json.loads((path / CONFIG_FILE).read_text("utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"start: {path / CONFIG_FILE} cannot be used: {error}") from None
        return Start(path, config, is_huggingface=True)
    folder = model_folder(path)
    tree = read_json(folder / CONFIG_FILE)
    if "decoder" in tree:
        raise ValueError(f"start: {folder} holds a classifier, not a language model")
    return Start(folder, from_dict(DecoderConfig, tree), is_huggingface=False)


def started_config(wanted: DecoderConfig, start: Start) -> DecoderConfig:
    """The configuration of a model that starts from weights: theirs, with the settings of training from ``wanted``.

    Raises:
        ValueError: ``wanted`` sets something that is neither the default nor as the weights have it.
    """
    derived = dataclasses.replace(wanted, **dict.fromkeys(DERIVED_SETTINGS))
    defaults = vars(DecoderConfig()) | {name: getattr(derived, name) for name in DERIVED_SETTINGS}
    kept = {}
    for name, theirs in vars(start.config).items():
        asked = getattr(wanted, name)
        if asked in (defaults[name], theirs):
            continue
        if name not in FREE_SETTINGS:
            raise ValueError(
                f"model.{name} is {asked!r}, but the model in {start.folder} has {theirs!r}: with start, leave the "
                "settings of the model out"
            )
        kept[name] = asked
    return dataclasses.replace(start.config, **kept)


def check_same_tokenizer(start: Start, tokenizer: Tokenizer) -> None:
    """Check that data were prepared with the tokenizer of the model that a run starts from.

    Raises:
        ValueError: they were not, or the model's folder has no tokenizer that llmfast can use.
    """
    try:
        theirs = Tokenizer.load(start.folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"start: {start.folder} has no tokenizer that llmfast can use: {error}") from None
    if theirs.fingerprint != tokenizer.fingerprint:
        raise ValueError(f"start: the model of {start.folder} has another tokenizer than the data were prepared with")
