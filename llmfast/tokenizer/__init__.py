"""Tokenizers on the C++ engine.

    import llmfast.tokenizer as tiktoken           # a drop-in replacement: get_encoding("o200k_base").encode(text)
    Tokenizer.train([Path("book.txt")], 8192)      # a vocabulary of your own
    Tokenizer.load("folder")                       # Hugging Face's and tiktoken's files; save() writes them
    speed_up(AutoTokenizer.from_pretrained(name))  # the engine inside a tokenizer of transformers

`llmfast.tokenizer.teaching` has byte-pair encoding and characters in plain Python, to read.
"""

from tiktoken import __version__ as __version__  # programs that mean tiktoken ask which one it is
from tiktoken import load as load

from llmfast.tokenizer import encoding as core  # tiktoken's name for the module: tiktoken.core.Encoding
from llmfast.tokenizer.encoding import Encoding
from llmfast.tokenizer.model import encoding_for_model, encoding_name_for_model
from llmfast.tokenizer.opening import open_tokenizer
from llmfast.tokenizer.registry import get_encoding, list_encoding_names
from llmfast.tokenizer.tokenizer import Tokenizer
from llmfast.tokenizer.transformers_backend import speed_up

__all__ = [
    "Encoding",
    "Tokenizer",
    "core",
    "encoding_for_model",
    "encoding_name_for_model",
    "get_encoding",
    "list_encoding_names",
    "load",
    "open_tokenizer",
    "speed_up",
]
