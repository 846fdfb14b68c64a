"""Prints the seconds that a library, imported, needs for its first ids.

    python -m benchmarks.text.load_library LIBRARY VOCABULARY RANKS [FILE]

A program of its own, which imports nothing else that takes part.
"""

import sys
import time
from pathlib import Path

from .tokenizers import LIBRARIES, Vocabulary


def seconds(name: str, vocabulary: Vocabulary, file: str = "") -> float:
    import tiktoken_ext.openai_public  # noqa: F401

    __import__(name)
    if name == "tokenizers":
        from tokenizers import Tokenizer

        return timed(lambda: Tokenizer.from_file(file).encode("Hello"))
    if name == "llmfast" and vocabulary.published:
        from llmfast.tokenizer import get_encoding

        return timed(lambda: get_encoding(vocabulary.name).encode_ordinary("Hello"))
    return timed(lambda: LIBRARIES[name](vocabulary).encode("Hello"))


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    library, name, ranks, *file = sys.argv[1:]
    print(seconds(library, Vocabulary(name, Path(ranks)), *file))
