"""Learns a byte-pair vocabulary from text: words are counted in C++ on all cores, then merged exactly.

The result equals that of the naive definition, `llmfast.tokenizer.teaching.learn_merges`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from llmfast import _bpe
from llmfast.tokenizer import arguments, patterns
from llmfast.tokenizer.finding import TextFinder
from llmfast.tokenizer.patterns import joined_surrogates

Document = str | bytes
Documents = Iterable[Document | Sequence[Document]]
Source = Documents | str | os.PathLike[str] | Sequence[os.PathLike[str]]
TieBreak = Literal["bytes", "huggingface", "smallest_ids"]
Progress = Callable[[str, int, int | None], None]

# The order in which GPT-2, and Hugging Face after it, number the bytes: those that print first.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
GPT2_BYTE_ORDER = bytes(_PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE])

_TIE_BREAKS = {
    "bytes": (_bpe.TieBreak.greatest_bytes, bytes(range(256))),
    "huggingface": (_bpe.TieBreak.smallest_ids, GPT2_BYTE_ORDER),
    "smallest_ids": (_bpe.TieBreak.smallest_ids, bytes(range(256))),
}
# The pattern of no splitting: a document is one word. The engine has no use for the expression itself.
WHOLE = patterns.WHOLE

# The splitting patterns by their names.
PATTERNS = {
    "gpt2": patterns.GPT2,
    "cl100k": patterns.CL100K,
    "llama3": patterns.LLAMA3,
    "qwen2": patterns.QWEN2,
    "o200k": patterns.O200K,
    "deepseek": patterns.DEEPSEEK,
    "none": WHOLE,
}

_BATCH_CHARACTERS = 16 << 20  # of documents handed to the threads at a time


def learn_ranks(
    source: Source,
    n_tokens: int,
    *,
    pat_str: str,
    separators: Sequence[str],
    min_frequency: int,
    tie_break: TieBreak,
    allow_smaller: bool,
    num_threads: int | None,
    progress: bool | Progress | None,
) -> dict[bytes, int]:
    """`n_tokens` tokens, the 256 bytes among them, with their merge ranks; see `Tokenizer.train`."""
    if tie_break not in _TIE_BREAKS:
        raise ValueError(f"tie_break must be one of {', '.join(map(repr, _TIE_BREAKS))}, got {tie_break!r}")
    arguments.check_count(min_frequency, "min_frequency", 1)
    files, documents = _files_and_documents(source)
    order, byte_order = _TIE_BREAKS[tie_break]

    with _reporter(progress) as report:
        counter = _counter(pat_str, separators, arguments.thread_count(num_threads))
        for file in files:
            counter.add_file(file, _stage(report, "reading", sum(file.stat().st_size for file in files)))
        counter.add_documents(documents, _stage(report, "reading", None))
        n_merges = n_tokens - 256
        merging = _stage(report, "merging", n_merges)
        merges = counter.corpus.learn_merges(n_merges, min_frequency, order, byte_order, merging)

    if counter.corpus.bytes_read == 0:
        raise ValueError("there is no text to train on: all documents are empty")
    if len(merges) < n_merges and not allow_smaller:
        raise ValueError(
            f"the text is too small for this vocabulary: {n_merges} merges are needed, but only "
            f"{len(merges)} were possible with pairs that occur at least {min_frequency} times; "
            f"ask for {n_merges - len(merges)} tokens fewer, give more text, or pass allow_smaller=True"
        )
    tokens = [bytes([byte]) for byte in byte_order]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return {token: rank for rank, token in enumerate(tokens)}


# ---- Where the text comes from


def _files_and_documents(source: Source) -> tuple[list[Path], Documents]:
    """Splits the source into files to read and documents to use as they are."""
    if isinstance(source, bytes):
        raise ValueError("source is one bytes object; to train on its text, pass it in a list: [text]")
    if isinstance(source, str | os.PathLike):
        return [_existing_file(source)], ()
    if not isinstance(source, Iterable):
        raise TypeError(f"source must be documents or files, got {arguments.kind(source)}")
    items: Iterator[Any] = iter(source)
    first = next(items, None)
    if first is None:
        raise ValueError("there is no text to train on: source is empty")
    if isinstance(first, os.PathLike):
        return [_existing_file(item) for item in chain([first], items)], ()
    if isinstance(first, str) and len(first) < 1024 and "\n" not in first and os.path.isfile(first):
        raise ValueError(f"{first!r} is the name of a file, but a str is text; wrap it: Path({first!r})")
    return [], chain([first], items)


def _existing_file(path: str | os.PathLike[str]) -> Path:
    if not os.path.exists(path):
        shown = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
        raise FileNotFoundError(f"no file {shown!r} to train on; to train on text itself, pass a list: [text]")
    if not os.path.isfile(path):
        raise ValueError(f"{os.fspath(path)!r} is not a file; pass the files to train on")
    return Path(path)


def _single(documents: Documents) -> Iterator[Document]:
    """The documents one by one, including those inside lists."""
    for item in documents:
        for document in item if isinstance(item, list | tuple) else (item,):
            if not isinstance(document, str | bytes):
                raise TypeError(f"documents must be str or bytes, got {arguments.kind(document)}")
            yield document


def _batches(documents: Documents) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in _single(documents):
        batch.append(document)
        size += len(document)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _NativeCounter:
    """Counts words by a pattern that the engine knows: streamed, on several threads."""

    def __init__(self, pattern: str, separators: Sequence[str], num_threads: int):
        self.corpus = _bpe.Corpus(pattern, [separator.encode() for separator in separators], num_threads)

    def add_file(self, file: Path, progress: Callable[[int], None] | None) -> None:
        self.corpus.add_file(os.fspath(file), progress)

    def add_documents(self, documents: Documents, progress: Callable[[int], None] | None) -> None:
        for batch in _batches(documents):
            self.corpus.add_documents(batch)
            if progress:
                progress(self.corpus.bytes_read)


class _RegexCounter:
    """Counts words by any other pattern, with the `regex` library: one thread, files read whole."""

    def __init__(self, pat_str: str, separators: Sequence[str]):
        self.corpus = _bpe.Corpus("none", [], 1)
        self._pat_str = pat_str
        self._separators = TextFinder(separators)

    def _split(self, text: str) -> Iterator[str]:
        """The text between separators."""
        start = 0
        for begin, end in self._separators.spans(text):
            yield text[start:begin]
            start = end
        yield text[start:]

    def add_file(self, file: Path, progress: Callable[[int], None] | None) -> None:
        self.add_documents([file.read_bytes()], progress)

    def add_documents(self, documents: Documents, progress: Callable[[int], None] | None) -> None:
        for batch in _batches(documents):
            words: Counter[str] = Counter()
            for document in batch:
                if isinstance(document, bytes):  # a byte that is not UTF-8 is a surrogate to the pattern
                    text = document.decode(errors="surrogateescape")
                else:
                    text = joined_surrogates(document)
                for part in self._split(text):
                    words.update(patterns.pieces(self._pat_str, part))
            self.corpus.add_words({word.encode(errors="surrogateescape"): n for word, n in words.items()})
            if progress:
                progress(self.corpus.bytes_read)


def _counter(pat_str: str, separators: Sequence[str], num_threads: int) -> _NativeCounter | _RegexCounter:
    if pat_str in patterns.NATIVE:
        return _NativeCounter(patterns.NATIVE[pat_str], separators, num_threads)
    return _RegexCounter(pat_str, separators)


# ---- Progress


def _stage(report: Progress | None, stage: str, total: int | None) -> Callable[[int], None] | None:
    return None if report is None else lambda done: report(stage, done, total)


@contextmanager
def _reporter(progress: bool | Progress | None) -> Iterator[Progress | None]:
    """The function to report to: the caller's, one that draws a bar, or none."""
    if progress is not True:
        yield progress or None
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    name, count = TextColumn("{task.description}"), TextColumn("{task.fields[count]}")
    with Bars(name, BarColumn(), count, TimeRemainingColumn(), transient=True) as bars:
        tasks = {}

        def draw(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, count="")
            bars.update(tasks[stage], completed=done, count=_count(stage, done, total))

        yield draw


def _count(stage: str, done: int, total: int | None) -> str:
    """
    >>> _count("reading", 5_000_000, 80_000_000), _count("reading", 5_000_000, None), _count("merging", 1000, 7743)
    ('5 of 80 MB', '5 MB', '1,000 of 7,743')
    """
    scale, unit = (1_000_000, " MB") if stage == "reading" else (1, "")
    whole = "" if total is None else f" of {total // scale:,}"
    return f"{done // scale:,}{whole}{unit}"
