"""Tokenizers of models on the Hugging Face hub: their files, by way of huggingface_hub and its cache."""

from __future__ import annotations

import os
from pathlib import Path

from llmfast.tokenizer import arguments

# What a tokenizer may be read from, and what says how it is used; no weights.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*",
    "generation_config.json",
)


def folder_of(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder with a tokenizer's files: `name` where that is a folder or file, else one of the hub's cache.

    Raises:
        OSError: a model that is not in the cache and cannot be fetched, or that the hub does not have.
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: what is neither a path nor the name of a model.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"name must be the name of a model or a path, got {arguments.kind(name)}")
    if os.path.exists(name):
        return Path(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{str(name)!r} is no path here; to take it from the Hugging Face hub needs huggingface_hub: "
            "pip install 'llmfast[hf]'"
        ) from None
    try:
        folder = snapshot_download(
            os.fspath(name),
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
            allow_patterns=list(FILES),
        )
    except HFValidationError:
        raise ValueError(
            f"{str(name)!r} is neither a path here nor the name of a model, such as 'openai-community/gpt2'"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if isinstance(error, RevisionNotFoundError) else ""
        raise FileNotFoundError(
            f"the Hugging Face hub has no model {str(name)!r}{at} that you may read; check the name, or pass token="
        ) from error
    except Exception as error:  # what it raises of the network is its own, and that of the library below it
        why = "local_files_only is set" if local_files_only else f"the hub was not reached ({type(error).__name__})"
        raise OSError(
            f"the tokenizer {str(name)!r} is not in the cache of the Hugging Face hub, and {why}; fetch it once with a "
            f"network (hf download {name}), or let HF_HOME or cache_dir= name a cache that has it"
        ) from error
    return Path(folder)
