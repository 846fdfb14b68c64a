"""Models of folders, made ready for generation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from llmfast.inference.prompts import end_tokens
from llmfast.integrations.opening import open_model
from llmfast.models.decoder import Decoder
from llmfast.models.folder import CONFIG_FILE, read_json
from llmfast.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Opened:
    """A model on its device, with its tokenizer and the tokens that end what it writes."""

    model: Decoder
    tokenizer: Tokenizer
    ends: frozenset[int]


def open_for_inference(
    path: str | Path, *, base: str | Path | None = None, device: str | None = None, dtype: str | None = None
) -> Opened:
    """The model of a folder; see ``Engine.open``."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU here: choose cpu")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    model, tokenizer = open_model(path, base=base)
    wanted = DTYPES[dtype] if dtype else (torch.bfloat16 if torch.device(device).type == "cuda" else None)
    return Opened(model.to(device, wanted), tokenizer, _ends(Path(path), tokenizer))


def _ends(path: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Those of ``generation_config.json``, else of a Hugging Face folder's ``config.json``, else the tokenizer's."""
    if "generation_config.json" not in tokenizer.files and (path / CONFIG_FILE).exists():
        named = read_json(path / CONFIG_FILE).get("eos_token_id")
        if named is not None:
            return frozenset(named if isinstance(named, list) else [named])
    return end_tokens(tokenizer)
