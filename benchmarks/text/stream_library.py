"""Encodes parts of a stream of text, in a process of its own, as it is asked to.

    python -m benchmarks.text.stream_library LIBRARY VOCABULARY RANKS FORM PART_BYTES FILE

It says whether it takes part, in a line of JSON, then reads the number of a part from each line of its input, and
answers with the seconds that encoding took and a digest of the ids.
"""

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .texts import DOCUMENT
from .tokenizers import Absent, Library, Vocabulary, library

FORMS: dict[str, Callable[[Library, list[str]], Any]] = {
    "numpy": lambda made, documents: made.numpy(documents, 1),
    "lists": lambda made, documents: made.lists(documents),
}


def parts(text: str, size: int) -> Iterator[list[str]]:
    """The documents of the text, in parts of at least `size` bytes; a shorter rest is left out."""
    part, bytes_ = [], 0
    for start in range(0, len(text), DOCUMENT):
        part.append(text[start : start + DOCUMENT])
        bytes_ += len(part[-1].encode())
        if bytes_ >= size:
            yield part
            part, bytes_ = [], 0


def digest(found: Any) -> str:
    if isinstance(found, list):
        found = np.fromiter(itertools.chain.from_iterable(found), dtype=np.uint32)
    return hashlib.sha256(np.ascontiguousarray(found, dtype=np.uint32)).hexdigest()


def answer(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def main(name: str, vocabulary: Vocabulary, form: str, size: int, path: Path) -> None:
    made = library(name, vocabulary, form)
    if isinstance(made, Absent):
        answer(status=made.status, reason=made.reason)
        return
    texts = list(parts(path.read_bytes().decode(), size))
    answer(parts=len(texts))
    for line in sys.stdin:
        documents = texts[int(line)]
        start = time.perf_counter()
        found = FORMS[form](made, documents)
        seconds = time.perf_counter() - start
        answer(seconds=seconds, digest=digest(found))


if __name__ == "__main__":
    library_name, vocabulary_name, ranks, form_name, part_bytes, file = sys.argv[1:]
    main(library_name, Vocabulary(vocabulary_name, Path(ranks)), form_name, int(part_bytes), Path(file))
