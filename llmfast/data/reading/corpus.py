"""Documents to train on: from the interpreter's own standard library, files of any kind, or Hugging Face datasets."""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfast.data.reading import datasets_hub, readers
from llmfast.data.reading.decoding import InvalidUTF8, TextDecoder, sentence
from llmfast.data.shards import Share
from llmfast.remote import is_address, local_files

FEW_DOCUMENTS = 20  # below this, text files are cut into pieces, so that some can be held out for validation
PIECE_CHARACTERS = 16_384
LARGE_ROW = 10**6  # characters: rows of a dataset above this (whole books) are cut into pieces as well
LARGE_BYTES = 2**26  # text files above this are never held in memory whole


@dataclass(frozen=True)
class Document:
    """One text and the name it is known by (a path, a line of a file, or a row of a dataset)."""

    name: str
    text: str

    def is_held_out(self, fraction: float) -> bool:
        """Whether it belongs to the validation side: decided by its content alone.

        The answer is therefore the same on every machine and in any order, and a text that occurs twice cannot be on
        both sides.
        """
        return is_held_out(self.text.encode("utf-8", "surrogatepass"), fraction)


def is_held_out(text: bytes, fraction: float) -> bool:
    """Whether a document of these bytes of UTF-8 is one of the ``fraction`` held out for validation."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") < fraction * 2**64


class Corpus:
    """Documents from ``sources``, in a fixed order; iterate it as often as needed.

    A source is a file, a folder (its files, recursively), a glob pattern, any of these at an address that fsspec knows
    (``s3://bucket/texts/*.jsonl.gz``, whose files are copied to this machine first), ``hf:NAME[:SPLIT[:COLUMN]]`` (a
    Hugging Face dataset, streamed) or a short name of one (``fineweb-edu``, ``fineweb``, ``tinystories``,
    ``openwebtext``, ``tinyshakespeare``); from Python also a ``datasets.Dataset``, a ``datasets.IterableDataset``, or
    any iterable of texts. A file is one document, except ``.jsonl`` and ``.parquet``, in which each row is; any of them
    may be compressed (``.gz``, ``.zst``). No source means the running interpreter's standard library: tens of megabytes
    of Python and documentation strings that every machine with Python has.

    Documents that are not UTF-8 are skipped, repaired or an error; ``skipped`` and ``repaired`` name them (filled as
    iteration goes).

    Args:
        sources: as above.
        column: the field that holds the text, in files and datasets that have fields.
        share: read only this part: every n-th file, piece, line, row group or row.
        invalid_utf8: what becomes of documents that are not UTF-8: ``skip`` leaves them out, ``replace`` puts U+FFFD in
            the place of the wrong bytes, ``stop`` is an error. A large file is skipped by pieces.

    Raises:
        ValueError: a source that names nothing, or (when iterated) no readable text at all, or text that is not UTF-8
            with ``stop``.
    """

    def __init__(
        self,
        sources: Sequence[Any] = (),
        *,
        column: str | None = None,
        share: Share = Share(),  # noqa: B008
        invalid_utf8: InvalidUTF8 = "skip",
    ):
        self.sources = tuple(str(source) if isinstance(source, Path) else source for source in sources)
        self.column, self.share = column, share
        self._on_invalid: InvalidUTF8 = invalid_utf8
        self._decoder = TextDecoder(invalid_utf8)
        self._reading: tuple[int, datasets_hub.Texts] | None = None  # which dataset, and how far
        self._row_is_done = True
        named = [source for source in self.sources if isinstance(source, str)]
        self.files = [file for source in named if not datasets_hub.is_dataset(source) for file in files_of(source)]
        if not self.sources:
            self.files = _standard_library()
        self._datasets = [s for s in self.sources if not isinstance(s, str) or datasets_hub.is_dataset(s)]

    def place(self) -> dict[str, Any] | None:
        """Where the newest iteration stands, for ``from_place``: right after its newest document.

        Known in datasets by name that report their own state, between rows; None elsewhere.
        """
        if self._reading is None or not self._row_is_done:
            return None
        number, texts = self._reading
        place = texts.place()
        return None if place is None else {"dataset": number, **place}

    def from_place(self, place: dict[str, Any]) -> Iterator[Document]:
        """The documents behind a place; what is before it is not read."""
        for number, source in enumerate(self._datasets):
            if number >= place["dataset"]:
                yield from self._from_dataset(number, source, place if number == place["dataset"] else None)

    def __iter__(self) -> Iterator[Document]:
        self._decoder, self._reading = TextDecoder(self._on_invalid), None
        documents = itertools.chain(
            self._from_texts([file for file in self.files if not readers.has_rows(file)]),
            *(self._from_rows(file) for file in self.files if readers.has_rows(file)),
            *(self._from_dataset(number, source) for number, source in enumerate(self._datasets)),
        )
        first = next(documents, None)
        if first is None and self.share.index == 0:  # another part of little data may be empty
            passed_over = f": {self.passed_over()}" if self.skipped else ""
            raise ValueError(f"no readable text in {self.describe()}{passed_over}")
        if first is not None:
            yield first
            yield from documents

    @property
    def skipped(self) -> list[str]:
        """Documents that were left out, because they are not UTF-8."""
        return self._decoder.skipped

    @property
    def repaired(self) -> list[str]:
        """Documents of which wrong bytes were replaced."""
        return self._decoder.replaced

    def passed_over(self) -> str:
        """What was done about documents that are not UTF-8, in words; empty if there were none."""
        return sentence(self.skipped, self.repaired)

    def describe(self) -> str:
        """The sources in words."""
        names = (source if isinstance(source, str) else type(source).__name__ for source in self.sources)
        return ", ".join(names) or "Python's standard library"

    def _from_texts(self, files: list[Path]) -> Iterator[Document]:
        few = not self._datasets and len(self.files) < FEW_DOCUMENTS
        numbers = itertools.count()
        for path in files:
            large = path.stat().st_size > LARGE_BYTES
            if not (few or large):
                if self.share.has(next(numbers)) and (text := self._read(path)):
                    yield Document(str(path), text)
                continue
            pieces = readers.text_pieces(path, PIECE_CHARACTERS, self._decoder) if large else _pieces(self._read(path))
            for start, text in pieces:
                if self.share.has(next(numbers)):
                    yield Document(f"{path}[{start}:{start + len(text)}]", text)

    def _read(self, path: Path) -> str:
        text = self._decoder.decode(readers.read_bytes(path), str(path))
        return text if text and text.strip() else ""

    def _from_rows(self, path: Path) -> Iterator[Document]:
        for place, text in readers.rows(path, self.column, self.share, self._decoder):
            if text.strip():
                yield Document(f"{path}:{place}", text)

    def _from_dataset(self, number: int, source: Any, place: dict[str, Any] | None = None) -> Iterator[Document]:
        texts = datasets_hub.Texts(source, self.column, self.share, place)
        self._reading, self._row_is_done = (number, texts), True
        for text in texts:
            row = texts.count - 1
            if len(text) <= LARGE_ROW:
                if text.strip():
                    yield Document(f"{texts.name}[{row}]", text)
                continue
            self._row_is_done = False
            for start, piece in _pieces(text):
                if piece.strip():
                    yield Document(f"{texts.name}[{row}:{start}]", piece)
            self._row_is_done = True


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    third_party = {"site-packages", "dist-packages", "__pycache__"}
    # Sorted by the path's parts below the root, so that the order does not depend on where Python is installed.
    files = {path.relative_to(root).parts: path for suffix in ("py", "txt") for path in root.rglob(f"*.{suffix}")}
    return [path for parts, path in sorted(files.items()) if not third_party & set(parts)]


def files_of(source: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern names, sorted; those at an address are copied first.

    Raises:
        ValueError: there are none.
    """
    if is_address(source):
        return local_files(source)
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each.relative_to(path)))
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise ValueError(
                f"no file, folder or pattern match at {source!r}; named datasets are {', '.join(datasets_hub.NAMED)}"
            )
    if not found:
        raise ValueError(f"the folder {source!r} holds no files")
    return found


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Pieces of a long text of about PIECE_CHARACTERS; (start, piece) of each."""
    return readers.cut(io.StringIO(text, newline="\n"), PIECE_CHARACTERS)


def batched(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    """Group documents into lists of about ``characters`` in all."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group
