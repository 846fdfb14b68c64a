"""Which encoding a model uses; the table is tiktoken's."""

from __future__ import annotations

from tiktoken.model import MODEL_PREFIX_TO_ENCODING, MODEL_TO_ENCODING, encoding_name_for_model

from llmfast.tokenizer.encoding import Encoding
from llmfast.tokenizer.registry import get_encoding

__all__ = ["MODEL_PREFIX_TO_ENCODING", "MODEL_TO_ENCODING", "encoding_for_model", "encoding_name_for_model"]


def encoding_for_model(model_name: str) -> Encoding:
    """The encoding of a model; ``KeyError`` for a name that is not known."""
    return get_encoding(encoding_name_for_model(model_name))
