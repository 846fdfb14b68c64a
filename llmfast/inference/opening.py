"""Models of folders, made ready for generation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from llmfast.inference.config import EngineConfig
from llmfast.inference.native import BLOCK_MULTIPLE, NativeRunner, unsupported
from llmfast.inference.prompts import GENERATION, as_tokens, end_tokens
from llmfast.inference.runner import Runner
from llmfast.inference.torch_runner import TorchRunner
from llmfast.integrations.gguf import is_gguf, load_gguf
from llmfast.integrations.opening import open_model
from llmfast.models.decoder import Decoder
from llmfast.models.folder import CONFIG_FILE, read_json
from llmfast.models.quantize import quantize_decoder
from llmfast.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


WEIGHTS = ("float32", "bfloat16", "int8", "int4", "nf4")


@dataclass(frozen=True)
class Opened:
    """What computes the logits of a model, with its tokenizer and the tokens that end what it writes."""

    runner: Runner
    tokenizer: Tokenizer
    ends: frozenset[int]


def open_for_inference(
    path: str | Path,
    *,
    config: EngineConfig,
    base: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
) -> Opened:
    """The model of a folder; see ``Engine.open``."""
    _check(device, dtype, weights)
    device = device or ("cuda" if torch.cuda.is_available() and weights in (None, "nf4") else "cpu")
    model, tokenizer = _open(path, base)
    if weights == "nf4":
        quantize_decoder(model)
    model = _move(model, device, dtype)
    return Opened(runner_of(model, config, dtype=dtype, weights=weights), tokenizer, ends_of(path, tokenizer))


def open_on_device(
    path: str | Path, *, base: str | Path | None = None, device: str | None = None, dtype: str | None = None
) -> tuple[Decoder, Tokenizer]:
    """The model of a folder in PyTorch, for evaluation, with its tokenizer; arguments and errors are those of
    ``Engine.open``. If ``dtype`` is left out, it is bfloat16 on a GPU and that of the weights on a CPU."""
    _check(device, dtype, None)
    model, tokenizer = _open(path, base)
    return _move(model, device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype).eval(), tokenizer


def runner_of(model: Decoder, config: EngineConfig, *, dtype: str | None = None, weights: str | None = None) -> Runner:
    """What runs a model where it is: on a CPU the decoder in C++, unless ``dtype``, the model or ``config`` need
    PyTorch (see ``Engine.open``)."""
    on_gpu = next(model.parameters()).is_cuda
    if not on_gpu and _is_for_cpu_decoder(model, config, dtype, weights):
        return NativeRunner(model, weights or "float32")
    return TorchRunner(model, cuda_graphs=config.cuda_graphs and not config.batch_invariant)


def _open(path: str | Path, base: str | Path | None) -> tuple[Decoder, Tokenizer]:
    return load_gguf(path) if is_gguf(path) else open_model(path, base=base)


def _move(model: Decoder, device: str, dtype: str | None) -> Decoder:
    on_gpu = torch.device(device).type == "cuda"
    return model.to(device, DTYPES[dtype] if dtype else (torch.bfloat16 if on_gpu else None))


def _is_for_cpu_decoder(model: Decoder, config: EngineConfig, dtype: str | None, weights: str | None) -> bool:
    """Whether the decoder in C++ runs the model: if ``weights`` asks for it, or else where it computes what PyTorch
    would, with this configuration."""
    if weights is not None:
        return weights != "nf4"
    fits = config.block_size % BLOCK_MULTIPLE == 0 and config.cache_dtype in ("auto", "float32")
    is_plain = dtype is None and all(each.dtype == torch.float32 for each in model.parameters())
    return fits and is_plain and not config.batch_invariant and not unsupported(model)


def _check(device: str | None, dtype: str | None, weights: str | None) -> None:
    try:
        on_gpu = device is not None and torch.device(device).type == "cuda"
    except RuntimeError:
        raise ValueError(f"device must be cpu or cuda, got {device!r}") from None
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU here: choose cpu")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if weights not in (None, "nf4") and (on_gpu or dtype is not None):
        what = f"device {device}" if on_gpu else f"dtype {dtype}"
        raise ValueError(f"weights {weights} is for the decoder on a CPU, which does not go with {what}: leave it out")


def ends_of(path: str | Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a reply of the model in a folder: those of ``generation_config.json``, else of a Hugging Face
    folder's ``config.json``, else the tokenizer's."""
    named, path = None, Path(path)
    if GENERATION not in tokenizer.files and (path / CONFIG_FILE).exists():
        named = as_tokens(read_json(path / CONFIG_FILE).get("eos_token_id"))
    return named or end_tokens(tokenizer)
