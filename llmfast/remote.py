"""Folders and files at addresses such as ``s3://bucket/folder``, read and written through fsspec."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llmfast.files import atomic_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Of a run: what is in these never changes once it is there, and what was not finished is not copied.
FINAL = ("checkpoints", "data")
UNFINISHED = (".lock", ".partial")
# Written last in each folder, so that a checkpoint that has it is whole.
LAST = "state.json"


def is_address(text: str) -> bool:
    """Whether a text names something by an address rather than by a path.

    >>> is_address("s3://bucket/run"), is_address("runs/first"), is_address("hf:roneneldan/TinyStories")
    (True, False, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]+://", text) is not None


def check_address(address: str) -> None:
    """Check that there is a library for this kind of address; nothing is read there.

    Raises:
        ValueError: there is none, or it cannot be used; names the address.
    """
    with _named_errors(address):
        _opened(address)


def download(address: str, folder: Path) -> None:
    """Copies the folder at an address to ``folder``, whole or not at all.

    Raises:
        ValueError: there is no folder, or it cannot be read; names the address.
    """
    with _named_errors(address):
        system, root = _opened(address)
        found = sorted(system.find(root))
        if not found or found == [root]:
            raise ValueError("there is no folder with files")
        with atomic_folder(folder) as partial:
            for path in found:
                target = partial / _relative(path, root)
                target.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(path, str(target))


def upload(folder: Path, address: str) -> None:
    """Makes the folder at an address a copy of ``folder``.

    Checkpoints and data that are there already are not sent again, and checkpoints that ``folder`` no longer has are
    removed. A checkpoint's ``state.json`` is sent last: what has one is whole.

    Raises:
        ValueError: it cannot be written; names the address.
    """
    with _named_errors(address):
        system, root = _opened(address)
        sizes = {_relative(path, root): entry["size"] for path, entry in system.find(root, detail=True).items()}
        files = _finished_files(folder)
        for name in sorted(files, key=lambda name: (name.name == LAST, name)):
            with suppress(FileNotFoundError):  # of a checkpoint that was dropped meanwhile
                if name.parts[0] in FINAL and sizes.get(name) == files[name].stat().st_size:
                    continue
                system.makedirs(f"{root}/{name.parent}", exist_ok=True)
                system.put_file(str(files[name]), f"{root}/{name}")
        for dropped in _checkpoints(sizes) - _checkpoints(files):
            system.rm(f"{root}/{dropped}", recursive=True)


def _finished_files(folder: Path) -> dict[PurePosixPath, Path]:
    """The files in a folder by their names relative to it, without locks and without what is being written."""
    files = {PurePosixPath(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if not any(part.endswith(UNFINISHED) for part in name.parts)}


def _checkpoints(names: Iterable[PurePosixPath]) -> set[PurePosixPath]:
    return {PurePosixPath(*name.parts[:2]) for name in names if name.parts[0] == "checkpoints"}


def _relative(path: str, root: str) -> PurePosixPath:
    return PurePosixPath(path).relative_to(root)


def local_files(address: str) -> list[Path]:
    """Copies of the files at an address: of one file, of all in a folder, or of those that match a pattern; sorted.

    They lie in the cache folder (``$XDG_CACHE_HOME/llmfast``, or else ``~/.cache/llmfast``), and are copied again only
    if a file there is another one since.

    Raises:
        ValueError: nothing is there, or it cannot be read; names the address.
    """
    with _named_errors(address):
        system, root = _opened(address)
        found = system.glob(root) if any(mark in root for mark in "*?[") else system.find(root)
        paths = sorted(path for path in found if not system.isdir(path))
        if not paths:
            raise ValueError("there is no such file or folder, and nothing matches it as a pattern")
        return [_cached(system, path) for path in paths]


def _cached(system: AbstractFileSystem, path: str) -> Path:
    edition = hashlib.sha256(f"{system.protocol} {path} {system.ukey(path)}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmfast" / "remote"
    file = cache / edition / PurePosixPath(path).name
    if not file.exists():
        with atomic_folder(cache / edition) as partial:
            system.get_file(path, str(partial / file.name))
    return file


def _opened(address: str) -> tuple[AbstractFileSystem, str]:
    import fsspec

    system, path = fsspec.core.url_to_fs(address)
    return system, path.rstrip("/")


@contextmanager
def _named_errors(address: str) -> Iterator[None]:
    """Errors of any storage, each of which has its own, as one that names the address."""
    try:
        yield
    except Exception as error:  # the libraries behind fsspec raise what they like
        reason = str(error).strip() or type(error).__name__
        raise ValueError(f"{address}: {reason}") from error
