"""llmfast: Triton kernels, a C++ BPE engine, and a readable package for training language models.

Importing this touches no GPU and loads no heavy library: each name is imported from its module on first use.
"""

import importlib

from llmfast._version import __version__

_HOMES = {
    "Encoding": "llmfast.tokenizer",
    "Tokenizer": "llmfast.tokenizer",
    "encoding_for_model": "llmfast.tokenizer",
    "get_encoding": "llmfast.tokenizer",
    "list_encoding_names": "llmfast.tokenizer",
    "Decoder": "llmfast.models.decoder",
    "DecoderConfig": "llmfast.models.config",
    "load_huggingface": "llmfast.integrations.huggingface",
    "save_huggingface": "llmfast.integrations.huggingface",
    "patch": "llmfast.integrations.patch",
    "unpatch": "llmfast.integrations.patch",
    "train": "llmfast.commands.train",
    "generate": "llmfast.commands.generate",
    "Engine": "llmfast.inference.engine",
    "EngineConfig": "llmfast.inference.config",
    "Sampling": "llmfast.inference.config",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmfast' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
