"""Where text comes from: the interpreter's own standard library, files, folders, globs, or Hugging Face datasets."""

from __future__ import annotations

import glob
import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FEW_DOCUMENTS = 20  # below this, files are cut into pieces, so that some can be held out for validation
PIECE_CHARACTERS = 16_384


@dataclass(frozen=True)
class Document:
    """One text and the name it is known by (a path, or dataset and row)."""

    name: str
    text: str

    def is_held_out(self, fraction: float) -> bool:
        """Whether it belongs to the validation side: decided by its content alone.

        So the answer is the same on every machine and in any order, and a text that occurs twice can not be on both
        sides.
        """
        digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < fraction * 2**64


class Corpus:
    """Documents from ``sources``, in a fixed order; iterate it as often as needed.

    A source is a file, a folder (its text files, recursively), a glob pattern, or ``hf:NAME[:SPLIT[:COLUMN]]`` (a
    Hugging Face dataset, streamed). No source means the running interpreter's standard library: tens of megabytes of
    Python and documentation strings that every machine with Python has.

    Files that are not UTF-8 are skipped and counted in ``skipped`` (filled as iteration goes).

    Raises:
        ValueError: a source that names nothing, or (when iterated) no readable text at all.
    """

    def __init__(self, sources: Sequence[str] = ()):
        self.sources = tuple(map(str, sources))
        self.skipped: list[str] = []
        self._files = [file for source in self.sources if not _is_dataset(source) for file in _files(source)]
        if not self.sources:
            self._files = _standard_library()
        self._datasets = [source for source in self.sources if _is_dataset(source)]

    def __iter__(self) -> Iterator[Document]:
        self.skipped = []
        few = not self._datasets and len(self._files) < FEW_DOCUMENTS
        found = False
        for document in self._whole_documents():
            found = True
            yield from _pieces(document) if few else (document,)
        if not found:
            skipped = f" ({len(self.skipped)} files are not UTF-8 text)" if self.skipped else ""
            raise ValueError(
                f"no readable text in {', '.join(self.sources) or 'the standard library'}{skipped}"
            )

    def describe(self) -> str:
        """The sources in words."""
        return ", ".join(self.sources) or "Python's standard library"

    def _whole_documents(self) -> Iterator[Document]:
        for path in self._files:
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                self.skipped.append(str(path))
                continue
            if text.strip():
                yield Document(str(path), text)
        for source in self._datasets:
            yield from _dataset_documents(source)


def _is_dataset(source: str) -> bool:
    return source.startswith("hf:")


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    third_party = {"site-packages", "dist-packages", "__pycache__"}
    # Sorted by the path's parts below the root, so that the order does not depend on where Python is installed.
    files = {
        path.relative_to(root).parts: path for suffix in ("py", "txt") for path in root.rglob(f"*.{suffix}")
    }
    return [path for parts, path in sorted(files.items()) if not third_party & set(parts)]


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(
            each for each in path.rglob("*") if each.is_file() and not _hidden(each.relative_to(path))
        )
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise ValueError(f"no file, folder or pattern match at {source!r}")
    if not found:
        raise ValueError(f"the folder {source!r} holds no files")
    return found


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _pieces(document: Document) -> Iterator[Document]:
    """Cut a long text at line ends into pieces of about PIECE_CHARACTERS."""
    text, start = document.text, 0
    while start < len(text):
        end = text.find("\n", start + PIECE_CHARACTERS)
        end = len(text) if end < 0 else end + 1
        yield Document(f"{document.name}[{start}:{end}]", text[start:end])
        start = end


def _dataset_documents(source: str) -> Iterator[Document]:
    """Rows of ``hf:NAME[:SPLIT[:COLUMN]]``, streamed; the column defaults to the first that holds text."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{source} needs the datasets library: pip install 'llmfast[hf]'") from None
    name, split, column = (*source.removeprefix("hf:").split(":"), "", "")[:3]
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # the library raises its own, requests' and huggingface_hub's errors
        raise ValueError(f"dataset {source} cannot be loaded: {str(error).splitlines()[0]}") from error
    first = next(iter(rows), None)
    if first is None:
        return
    texts = [key for key, value in first.items() if isinstance(value, str)]
    column = column or ("text" if "text" in texts else next(iter(texts), ""))
    if column not in texts:
        raise ValueError(
            f"{source} has no text column {column!r}; its text columns are {', '.join(texts) or 'none'}"
        )
    for index, row in enumerate(rows):
        if row[column] and row[column].strip():
            yield Document(f"{source}[{index}]", row[column])


def batched(documents: Iterator[Document], characters: int) -> Iterator[list[Document]]:
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
