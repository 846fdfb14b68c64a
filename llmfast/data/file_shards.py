"""Text files straight to token shards: memory-mapped, on all cores, in parts that a run that was killed leaves whole.

The files, one behind another, are cut into parts of PART_BYTES. Each part becomes a folder of shards, written whole or
not at all; ``index.json`` comes last and describes the shards of all parts. What a part holds depends on nothing but
the files and the tokenizer, so that a second run continues where the first one ended, to the same bytes.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from llmfast.data.shards import Shard, ShardWriter, TokenShards, write_index
from llmfast.files import atomic_folder, atomic_write
from llmfast.tokenizer import Tokenizer, patterns

PLAN = "files.json"  # what the shards are made from
# The text of one shard, so that no shard overflows; after an interruption, so much work may be repeated.
PART_BYTES = 2**26
WINDOW_BYTES = 2**25  # text that is encoded at once: memory stays bounded, cores stay busy
MAPPED_BYTES = 2**20  # smaller files are read: few of them could be mapped at the same time

Texts = list[memoryview]


def encode_files(
    files: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Shard]:
    """Writes the tokens of ``files`` to shards under ``folder``, which `TokenShards` opens.

    Each file is a document, and ends with the end-of-text token. Special tokens that a file spells out are ordinary
    text, and bytes that are not UTF-8 are kept as they are. A file that continues in another shard is cut there into
    two documents, for a document has all of its tokens in one shard.

    Args:
        files: paths; their order is that of the documents.
        folder: created if missing. Parts of an earlier run with the same files and tokenizer are kept.
        tokenizer: must have an end-of-text token.
        num_threads: all cores if None.
        progress: called with the bytes of text done and in all, after each part.

    Raises:
        ValueError: no files, no text in them, a tokenizer without end-of-text token, or a folder with shards that were
            made of other files or with another tokenizer.
        OSError: a file that cannot be read, or a full disk.
    """
    folder, paths = Path(folder), [Path(file) for file in files]
    sizes = [path.stat().st_size for path in paths]
    if not sum(sizes):
        raise ValueError("there is no text to encode" + (": all files are empty" if paths else ""))
    try:
        eot_token = tokenizer.eot_token
    except KeyError as error:
        raise ValueError(f"no token to end documents with: {error.args[0]}") from None
    _check_plan(folder, paths, sizes, tokenizer.fingerprint)
    header = {"vocab_size": tokenizer.n_vocab, "eot_token": eot_token, "fingerprint": tokenizer.fingerprint}
    shards: list[Shard] = []
    for number, part in enumerate(parts(sizes)):
        inside = folder / f"{number:05d}"
        if not inside.exists():
            with atomic_folder(inside) as partial:
                writer = ShardWriter(partial, **header)
                _write_part(writer, _windows(paths, part, tokenizer), tokenizer, num_threads)
        written = TokenShards(inside, verify=False).shards
        shards += [replace(shard, file=f"{inside.name}/{shard.file}") for shard in written]
        progress(min((number + 1) * PART_BYTES, sum(sizes)), sum(sizes))
    write_index(folder, shards, **header)
    return shards


def parts(sizes: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """The stretches of files, each (file, start, stop), that lie in each PART_BYTES of all of them in a row.

    >>> parts([10, PART_BYTES]) == [[(0, 0, 10), (1, 0, PART_BYTES - 10)], [(1, PART_BYTES - 10, PART_BYTES)]]
    True
    """
    found: list[list[tuple[int, int, int]]] = [[]]
    room = PART_BYTES
    for file, size in enumerate(sizes):
        start = 0
        while start < size:
            if room == 0:
                found.append([])
                room = PART_BYTES
            stop = min(size, start + room)
            found[-1].append((file, start, stop))
            room -= stop - start
            start = stop
    return found


def _check_plan(folder: Path, paths: list[Path], sizes: list[int], fingerprint: str) -> None:
    """Leaves a note of what the shards in the folder are made from, or compares with the one that is there."""
    files = [[str(path.absolute()), size, path.stat().st_mtime_ns] for path, size in zip(paths, sizes, strict=True)]
    plan = json.dumps({"tokenizer": fingerprint, "part_bytes": PART_BYTES, "files": files}, indent=1)
    note = folder / PLAN
    if note.exists():
        if note.read_text() != plan:
            raise ValueError(
                f"{folder} holds shards of other files, of files that have changed since, or of another tokenizer; "
                "name another folder, or remove this one"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name another folder")
    else:
        atomic_write(note, plan)


def _write_part(
    writer: ShardWriter,
    windows: Iterator[tuple[Texts, bool]],
    tokenizer: Tokenizer,
    num_threads: int | None,
) -> None:
    """Encodes each window while the tokens of the one before are hashed and written."""
    with ThreadPoolExecutor(1) as pool:
        before = None
        for texts, ends in windows:
            size = sum(map(len, texts))
            tokens, _ = tokenizer.encode_documents(texts, append_eot=ends, num_threads=num_threads)
            if before:
                before.result()
            before = pool.submit(writer.add, tokens, len(texts) if ends else 0, size)
        if before:
            before.result()
    writer.finish()


def _windows(paths: list[Path], part: list[tuple[int, int, int]], tokenizer: Tokenizer) -> Iterator[tuple[Texts, bool]]:
    """What is encoded at once: texts that each end a document, or one that does not."""
    ending: Texts = []
    size = 0
    for file, start, stop in part:
        for text, ends in _stretches(_contents(paths[file]), start, stop, tokenizer):
            if ends:
                ending.append(text)
                size += len(text)
            if ending and (size >= WINDOW_BYTES or not ends):
                yield ending, True
                ending, size = [], 0
            if not ends:
                yield [text], False
    if ending:
        yield ending, True


def _stretches(text: memoryview, start: int, stop: int, tokenizer: Tokenizer) -> Iterator[tuple[memoryview, bool]]:
    """The text about [start, stop) in windows, cut where pieces certainly end, and whether each is the last."""

    def cut(at: int) -> int:
        return patterns.certain_boundary(tokenizer._pat_str, text, at) if 0 < at < len(text) else at

    start, stop = cut(start), cut(stop)
    while start < stop:
        end = min(cut(min(start + WINDOW_BYTES, stop)), stop)
        yield text[start:end], end == stop
        start = end


def _contents(path: Path) -> memoryview:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < MAPPED_BYTES:
            return memoryview(file.read())
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
