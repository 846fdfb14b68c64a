"""Tokenizers on the C++ engine; ``import llmfast.tokenizer as tiktoken`` is a drop-in replacement."""

from llmfast.tokenizer.encoding import Encoding
from llmfast.tokenizer.model import encoding_for_model, encoding_name_for_model
from llmfast.tokenizer.registry import get_encoding, list_encoding_names
from llmfast.tokenizer.tokenizer import Tokenizer
from llmfast.tokenizer.transformers_backend import speed_up

__all__ = [
    "Encoding",
    "Tokenizer",
    "encoding_for_model",
    "encoding_name_for_model",
    "get_encoding",
    "list_encoding_names",
    "speed_up",
]
