"""Atomic writes: whoever reads a path sees the old content or the new, never a part of it."""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h> and <linux/fs.h>


def json_sha256(content: Any) -> str:
    """SHA-256 of plain values, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of the content of a file, read a piece at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def write_checked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes plain values and, under ``sha256``, their checksum, whole or not at all."""
    assert "sha256" not in content
    atomic_write(path, json.dumps({**content, "sha256": json_sha256(content)}, ensure_ascii=False) + "\n")


def read_checked_json(path: Path) -> dict[str, Any]:
    """What ``write_checked_json`` wrote, without the checksum.

    Raises:
        ValueError: the file is missing or damaged; names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256") != json_sha256(content):
            raise ValueError("its SHA-256 is not that of its content")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return content


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes one file (text as UTF-8) whole or not at all; the folder is made if it is missing.

    Raises:
        OSError: as the operating system reports it (disk full, no permission); ``path`` is untouched then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, temporary, path)
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty temporary folder that takes the place of ``path`` when the block ends without an error.

    A folder that was at ``path`` is replaced as a whole: on Linux by one exchange of the two names, elsewhere
    by two renames (a process killed between them leaves both folders beside it, as ``.NAME.*.partial``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for part in [*temporary.rglob("*"), temporary]:
            _sync(part)
        _take_place(temporary, path)
    except BaseException as error:
        _name(error, temporary, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # the failed attempt, or the folder that was replaced
    _sync(path.parent)


def _take_place(new: Path, path: Path) -> None:
    """Renames ``new`` to ``path``; a folder that was there is at ``new`` afterwards."""
    try:
        os.replace(new, path)
    except OSError:
        if not path.is_dir() or path.is_symlink():
            raise
        if not _exchange(new, path):
            old = _temporary_sibling(path)
            os.replace(path, old)
            os.replace(new, path)
            os.replace(old, new)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step where the system call and the file system can; False where they cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def _temporary_sibling(path: Path) -> Path:
    """A new name beside ``path``, on the same file system; what killed writers left there is removed."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        writer = left.name.removesuffix(".partial").rpartition(".")[2].partition("-")[0]
        if writer.isdecimal() and not _is_running(int(writer)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, under another user
        return True
    return True


def _sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk; some file systems refuse it for folders."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _name(error: BaseException, temporary: Path, path: Path) -> None:
    """Makes an error name the file the caller asked for, where it names the temporary one or none."""
    if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
        error.filename = str(path)
