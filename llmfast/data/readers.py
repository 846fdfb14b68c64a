"""Text and records in files: plain, JSON, JSON Lines and Parquet, each also compressed with gzip or Zstandard."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmfast.data.shards import Share

JSON = (".json",)
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst")
PARQUET_ROWS = 1024  # read at a time


def has_rows(path: Path) -> bool:
    """Whether each row of the file is a document, and not the file as a whole."""
    return file_kind(path) in JSON_LINES + PARQUET


def read_text(path: Path) -> str:
    """A text file, whole.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        ValueError: it is compressed and damaged.
    """
    with _open(path) as file:
        try:
            return file.read().decode("utf-8")
        except DAMAGE as error:
            raise _damaged(path, error) from None


def read_content(path: Path) -> str:
    """A text file, whole, without the byte-order mark that some editors put first.

    Raises:
        ValueError: it is not UTF-8, or compressed and damaged.
    """
    try:
        return read_text(path).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def text_pieces(path: Path, characters: int) -> Iterator[tuple[int, str]]:
    """A text file of any size as (start, piece), in characters, each ending at a line's end after ``characters``.

    Raises:
        ValueError: it is not UTF-8, or compressed and damaged.
    """
    start = 0
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        try:
            while piece := text.read(characters):
                piece += text.readline()
                yield start, piece
                start += len(piece)
        except (UnicodeDecodeError, *DAMAGE) as error:
            raise _damaged(path, error) from None


def rows(path: Path, column: str | None, share: Share) -> Iterator[tuple[int, str]]:
    """(row number, text) of this share of a JSON Lines or Parquet file.

    Raises:
        ValueError: a damaged file, or one without such a column of text; says which it has.
    """
    return (_parquet_rows if file_kind(path) in PARQUET else _json_rows)(path, column, share)


def text_column(row: Mapping[str, Any], column: str | None, where: object) -> str:
    """The field of ``row`` that holds text: the one wished for, or ``text``, or the first of type str.

    The one wished for and ``text`` may be null in this row.

    Raises:
        ValueError: there is none, or not the one wished for.
    """
    texts = [key for key, value in row.items() if isinstance(value, str)]
    known = {key for key, value in row.items() if value is None or isinstance(value, str)}
    chosen = column or ("text" if "text" in known else next(iter(texts), None))
    if chosen not in known:
        wished = f"text column {column!r}" if column else "text column"
        raise ValueError(f"{where} has no {wished}; its text columns are {', '.join(texts) or 'none'}")
    return chosen


def _json_rows(path: Path, column: str | None, share: Share) -> Iterator[tuple[int, str]]:
    with _open(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if not share.has(number - 1) or not line.strip():
                    continue
                row = _json_row(line, where := f"{path}:{number}")
                if isinstance(row, dict):
                    # Chosen once for all rows: a null in one is no reason to take another column.
                    column = text_column(row, column, where)
                    row = row[column]
                if row is not None:
                    yield number, row
        except DAMAGE as error:
            raise _damaged(path, error) from None


def _json_row(line: bytes, where: str) -> str | dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, str | dict):
        raise ValueError(f"{where} is neither an object nor a string")
    return row


def _parquet_rows(path: Path, column: str | None, share: Share) -> Iterator[tuple[int, str]]:
    """Whole row groups are shared out, which are what a Parquet file can be read by."""
    import pyarrow as pa

    with _parquet_file(path) as file:
        strings = {
            field.name: ""
            for field in file.schema_arrow
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        }
        chosen = text_column(strings, column, path)
        first = 0
        for group in range(file.num_row_groups):
            if share.has(group):
                yield from _row_group(file, group, chosen, first)
            first += file.metadata.row_group(group).num_rows


def _parquet_file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None


def _row_group(file: Any, group: int, column: str, first: int) -> Iterator[tuple[int, str]]:
    for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[column]):
        for text in batch.column(0).to_pylist():
            if text is not None:
                yield first, text
            first += 1


# --- records -------------------------------------------------------------------------------------------------


def json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of a JSON file: a list of objects, or an object in each line.

    Lines may end with CRLF, and the file may begin with a byte-order mark.

    Raises:
        ValueError: a damaged file, or a record that is not an object; names the file and the record.
    """
    if file_kind(path) in JSON and _is_list(path):
        yield from _listed_records(path)
        return
    with _open(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    where = f"{path}:{number}"
                    yield where, _record(_json_row(line, where), where)
        except DAMAGE as error:
            raise _damaged(path, error) from None


def _is_list(path: Path) -> bool:
    with _open(path) as file:
        try:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        except DAMAGE as error:
            raise _damaged(path, error) from None


def _listed_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        records = json.loads(read_content(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    for number, record in enumerate(records, 1):
        where = f"{path}, record {number}"
        yield where, _record(record, where)


def _record(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not an object with named fields")
    return record


def parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of each row of a Parquet file, counted from 0.

    Raises:
        ValueError: a damaged file.
    """
    with _parquet_file(path) as file:
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                yield f"{path}[{number}]", without_nulls(row)
                number += 1


def without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of Arrow's without the nulls inside its columns: Arrow gives each table in a list the fields of all.

    >>> without_nulls({"input": None, "messages": [{"role": "user", "name": None}]})
    {'input': None, 'messages': [{'role': 'user'}]}
    """
    return {name: _without_nulls(value) for name, value in record.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


# --- compression ---------------------------------------------------------------------------------------------

DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


def file_kind(path: Path) -> str:
    """The suffix of a file that says what is in it, without that of its compression: ``.csv`` of ``a.CSV.gz``."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def _open(path: Path) -> BinaryIO:
    """The file as it was before it was compressed."""
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_ZstandardFile(path))
    return open(path, "rb")


class _ZstandardFile(io.RawIOBase):
    """Reads all frames of a .zst file; a cut-off one is an EOFError, as in gzip, not the end."""

    def __init__(self, path: Path):
        import zstandard

        self._zstandard, self._file = zstandard, open(path, "rb")  # noqa: SIM115 (closed by close)
        self._decoder = zstandard.ZstdDecompressor().decompressobj()
        self._ready, self._started = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._decoder.eof:
                data = self._decoder.unused_data or self._file.read(2**20)
                if not data:
                    return 0
                self._decoder, self._started = self._zstandard.ZstdDecompressor().decompressobj(), False
            elif not (data := self._file.read(2**20)):
                raise EOFError("compressed file ended before the end of the stream")
            self._ready = self._decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._decoder.decompress(data)
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from None

    def close(self) -> None:
        self._file.close()
        super().close()


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged: {error}")
