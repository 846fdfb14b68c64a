"""Text and records in files: plain, JSON, JSON Lines and Parquet, each also compressed with gzip or Zstandard."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from llmfast.data.reading.decoding import TextDecoder
from llmfast.data.shards import Share

JSON = (".json",)
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst")
PARQUET_ROWS = 1024  # read at a time


def has_rows(path: Path) -> bool:
    """Whether each row of the file is a document, and not the file as a whole."""
    return file_kind(path) in JSON_LINES + PARQUET


def check_libraries(path: Path) -> None:
    """Check that the libraries that read a file of this name are installed.

    Raises:
        ModuleNotFoundError: one is not; names it.
    """
    if file_kind(path) in PARQUET:
        import pyarrow.parquet  # noqa: F401
    if path.suffix.lower() == ".zst":
        import zstandard  # noqa: F401


def read_bytes(path: Path) -> bytes:
    """A file, whole.

    Raises:
        ValueError: it is compressed and damaged.
    """
    with _open(path) as file:
        try:
            return file.read()
        except DAMAGE as error:
            raise _damaged(path, error) from None


def read_content(path: Path) -> str:
    """A text file, whole, without the byte-order mark that some editors put first.

    Raises:
        ValueError: it is not UTF-8, or compressed and damaged.
    """
    try:
        return read_bytes(path).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def text_pieces(path: Path, characters: int, decoder: TextDecoder) -> Iterator[tuple[int, str]]:
    """A text file of any size as (start, piece), in characters, each piece ending where ``cut`` ends it.

    Raises:
        ValueError: it is compressed and damaged, or not UTF-8 and ``decoder`` stops at that.
    """
    place = 0
    # Bytes that are not UTF-8 become surrogates, from which the decoder gets them back.
    with _open(path) as file, io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="\n") as text:
        try:
            for start, piece in cut(text, characters):
                data = piece.encode("utf-8", "surrogateescape")
                decoded = decoder.decode(data, f"{path}[{start}:{start + len(piece)}]", start=place)
                place += len(data)
                if decoded is not None:
                    yield start, decoded
        except DAMAGE as error:
            raise _damaged(path, error) from None


LONGEST_LINE = 3  # pieces: how far the end of a line is looked for


def cut(text: TextIO, characters: int) -> Iterator[tuple[int, str]]:
    """Pieces of a text, with the place in it where each starts.

    A piece ends at the first end of a line after ``characters``. If there is none for a while, as in a text that is one
    long line, it ends behind the last space before that, or in the middle of a word where there is no space either.
    """
    start, ahead, longest = 0, "", (1 + LONGEST_LINE) * characters
    while ahead := ahead + text.read(longest - len(ahead)):
        end = ahead.find("\n", characters) + 1
        if not end:
            end = len(ahead) if len(ahead) < longest else (ahead.rfind(" ", characters) + 1 or characters)
        yield start, ahead[:end]
        start, ahead = start + end, ahead[end:]


def rows(path: Path, column: str | None, share: Share, decoder: TextDecoder) -> Iterator[tuple[int, str]]:
    """(row number, text) of this share of a JSON Lines or Parquet file.

    A column may be a field of a nested one, as ``document.text``.

    Raises:
        ValueError: a damaged file, or one without such a column of text; says which it has. A row that is not UTF-8 and
            ``decoder`` stops at that.
    """
    return (_parquet_rows if file_kind(path) in PARQUET else _json_rows)(path, column, share, decoder)


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


def _json_rows(path: Path, column: str | None, share: Share, decoder: TextDecoder) -> Iterator[tuple[int, str]]:
    place = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, 1):
                start, place = place, place + len(line)
                if not share.has(number - 1) or not line.strip():
                    continue
                where = f"{path}:{number}"
                if (text := decoder.decode(line, where, start=start)) is None:
                    continue
                row = _json_row(text, where)
                if isinstance(row, dict):
                    # Chosen once for all rows: a null in one is no reason to take another column.
                    if column is None or column not in row:
                        row = _flat(row)
                    column = text_column(row, column, where)
                    row = row[column]
                if row is not None:
                    yield number, row
        except DAMAGE as error:
            raise _damaged(path, error) from None


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by name, those of nested objects as ``outer.inner``.

    >>> _flat({"id": 1, "document": {"text": "a"}})
    {'id': 1, 'document.text': 'a'}
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _json_row(line: bytes | str, where: str) -> str | dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, str | dict):
        raise ValueError(f"{where} is neither an object nor a string")
    return row


def _parquet_rows(path: Path, column: str | None, share: Share, decoder: TextDecoder) -> Iterator[tuple[int, str]]:
    """Whole row groups are shared out, which are what a Parquet file can be read by."""
    with _parquet_file(path) as file:
        chosen = text_column(dict.fromkeys(_text_columns(file.schema_arrow), ""), column, path)
        first = 0
        for group in range(file.num_row_groups):
            if share.has(group):
                yield from _row_group(file, group, chosen, first, path, decoder)
            first += file.metadata.row_group(group).num_rows


def _text_columns(fields: Any, prefix: str = "") -> list[str]:
    """The columns of text, of any of Arrow's types for it, those of nested columns as ``outer.inner``."""
    import pyarrow as pa

    names = []
    for field in fields:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_struct(kind):
            names += _text_columns([kind.field(i) for i in range(kind.num_fields)], f"{prefix}{field.name}.")
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_string_view(kind):
            names.append(prefix + field.name)
    return names


def _is_string_view(kind: Any) -> bool:
    return str(kind) == "string_view"  # which PyArrow has since version 16


def _parquet_file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None


def _row_group(
    file: Any, group: int, column: str, first: int, path: Path, decoder: TextDecoder
) -> Iterator[tuple[int, str]]:
    import pyarrow as pa

    nested = column.split(".") if column not in file.schema_arrow.names else [column]
    for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[column]):
        texts = batch.column(0)
        for name in nested[1:]:
            texts = texts.flatten()[texts.type.get_field_index(name)]  # null where the outer column is
        # As bytes, because Arrow does not check that text is UTF-8.
        texts = (texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts).cast(pa.large_binary())
        for data in texts.to_pylist():
            if data is not None and (text := decoder.decode(data, f"{path}[{first}]")) is not None:
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
