"""Token shards: a folder of memory-mapped token files and the checksummed JSON index that describes them.

``index.json`` holds the format version, the tokenizer's fingerprint, vocabulary size and end-of-text token, the dtype,
totals, for each shard its files, tokens, documents, bytes of text and SHA-256s, and a SHA-256 of all this. Beside each
``NNNNN.bin``, the tokens alone (little-endian), lies ``NNNNN.ends``: where each document ends (int64, one past its
end-of-text token). Each shard begins with an end-of-text token and each document ends with one, so that every token
of every document has a token before it.

Shards of conversations have a loss mask as well, ``NNNNN.mask`` with its SHA-256 in the index: one byte for each token,
1 where it is trained. Their documents may hold end-of-text tokens and end with any token.

A folder that several processes prepared has an index for each part instead, ``index-00002-of-00008.json``; it is read
as one when all are there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmfast.files import atomic_write, json_sha256

FORMAT = 2
INDEX = "index.json"
SHARD_TOKENS = 2**27  # 256 MB of uint16: small enough to checksum in a moment, large enough to be few
ENDS = np.dtype("<i8")


@dataclass(frozen=True)
class Shard:
    """One file of tokens and its document boundaries."""

    file: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    ends_sha256: str
    mask_sha256: str = ""
    """Empty where there is no loss mask."""

    @property
    def ends_file(self) -> str:
        return self.file.removesuffix(".bin") + ".ends"

    @property
    def mask_file(self) -> str:
        return self.file.removesuffix(".bin") + ".mask"

    def record(self) -> dict[str, Any]:
        """What the index says of it."""
        return {name: value for name, value in asdict(self).items() if name != "mask_sha256" or value}


@dataclass(frozen=True)
class Share:
    """Part ``index`` (from 0) of ``count`` equal parts of the work."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"part {self.index} of {self.count} does not exist; parts are numbered from 0")

    @classmethod
    def parse(cls, text: str) -> Share:
        """``"2/8"`` is the third of eight parts."""
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text)):
            raise ValueError(f"{text!r} is not a part like 0/8 (the first of eight)")
        return cls(int(match[1]), int(match[2]))

    def has(self, index: int) -> bool:
        """Whether item ``index`` of the work is in this part."""
        return index % self.count == self.index

    @property
    def suffix(self) -> str:
        """What this part's files carry in their names."""
        return f"-{self.index:05d}-of-{self.count:05d}" if self.count > 1 else ""


class ShardWriter:
    """Appends documents to shards in ``folder``, which must exist; ``finish`` writes the index, last.

    ``done`` are the shards that an earlier writer completed there; this one adds to them. A ``masked`` writer also
    writes which tokens are trained, and takes documents one by one. ``settings`` are for the index.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vocab_size: int,
        eot_token: int,
        fingerprint: str,
        share: Share = Share(),
        done: list[Shard] | None = None,
        masked: bool = False,
        settings: dict[str, Any] | None = None,
    ):
        self.folder, self.share, self.masked = Path(folder), share, masked
        self.vocab_size, self.eot_token, self.fingerprint = vocab_size, eot_token, fingerprint
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.settings = settings
        self.shards: list[Shard] = list(done or [])
        self._open()

    def add(self, tokens: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append ``documents`` documents, each ending with the end-of-text token and holding no other.

        With 0 documents, the tokens are the first part of one that later calls complete.
        """
        ends = np.flatnonzero(tokens == self.eot_token) + 1
        assert len(ends) == documents, f"{len(ends)} end-of-text tokens for {documents} documents"
        assert not self.masked, "a masked writer takes documents one by one"
        self._append(tokens, ends, text_bytes)

    def add_document(self, tokens: np.ndarray, text_bytes: int, *, mask: np.ndarray) -> None:
        """Append one document as it is, with ``mask`` (bool) for its tokens: whether each is trained."""
        assert self.masked, "this writer writes no mask"
        assert mask.shape == tokens.shape, f"a mask of {mask.shape} for {tokens.shape} tokens"
        self._write_mask(mask)
        self._append(tokens, np.array([len(tokens)]), text_bytes)

    def _append(self, tokens: np.ndarray, ends: np.ndarray, text_bytes: int) -> None:
        self._ends.append(ends + self.tokens)
        self._write(tokens)
        self._text_bytes += text_bytes
        if self.tokens >= SHARD_TOKENS:
            self.next_shard()

    def next_shard(self) -> None:
        """Complete the open shard, if it holds any document, and begin another."""
        if self._ends:
            self._close()
            self._open()

    def finish(self) -> None:
        """Complete the last shard and write the index."""
        if self._ends or not self.shards:
            self._close()
        else:
            self._file.close()
            (self.folder / self._name).unlink()
            if self.masked:
                self._mask_file.close()
                Path(self._mask_file.name).unlink()
        write_index(
            self.folder,
            self.shards,
            vocab_size=self.vocab_size,
            eot_token=self.eot_token,
            fingerprint=self.fingerprint,
            share=self.share,
            settings=self.settings,
        )

    def _open(self) -> None:
        self._name = f"{len(self.shards):05d}{self.share.suffix}.bin"
        self._file = open(self.folder / self._name, "wb")  # noqa: SIM115 (closed by _close)
        self._hash = hashlib.sha256()
        self._ends: list[np.ndarray] = []
        self.tokens = self._text_bytes = 0
        if self.masked:
            self._mask_file = open(self.folder / f"{self._name.removesuffix('.bin')}.mask", "wb")  # noqa: SIM115
            self._mask_hash = hashlib.sha256()
            self._write_mask(np.zeros(1, bool))
        self._write(np.array([self.eot_token]))

    def _write(self, tokens: np.ndarray) -> None:
        data = np.ascontiguousarray(tokens, dtype=self.dtype).data
        self._file.write(data)
        self._hash.update(data)
        self.tokens += len(tokens)

    def _write_mask(self, mask: np.ndarray) -> None:
        data = np.ascontiguousarray(mask, dtype=np.uint8).data
        self._mask_file.write(data)
        self._mask_hash.update(data)

    def _close(self) -> None:
        self._file.close()
        if self.masked:
            self._mask_file.close()
        ends = np.concatenate([np.empty(0, ENDS), *self._ends]).astype(ENDS)
        shard = Shard(
            file=self._name,
            tokens=self.tokens,
            documents=len(ends),
            text_bytes=self._text_bytes,
            sha256=self._hash.hexdigest(),
            ends_sha256=hashlib.sha256(ends.data).hexdigest(),
            mask_sha256=self._mask_hash.hexdigest() if self.masked else "",
        )
        (self.folder / shard.ends_file).write_bytes(ends.data)
        self.shards.append(shard)


def write_index(
    folder: Path,
    shards: list[Shard],
    *,
    vocab_size: int,
    eot_token: int,
    fingerprint: str,
    share: Share = Share(),
    settings: dict[str, Any] | None = None,
) -> None:
    """Write the index of ``shards``, which makes the folder one that ``TokenShards`` opens.

    ``settings`` are what else decided the shards: all parts of a folder must have the same.
    """
    index = {
        "format": FORMAT,
        "tokenizer": fingerprint,
        "vocab_size": vocab_size,
        "eot_token": eot_token,
        "dtype": np.dtype("<u2" if vocab_size <= 2**16 else "<u4").str,
        "tokens": sum(shard.tokens for shard in shards),
        "documents": sum(shard.documents for shard in shards),
        "text_bytes": sum(shard.text_bytes for shard in shards),
        "shards": [shard.record() for shard in shards],
        "settings": settings,
    }
    atomic_write(folder / _index_name(share), json.dumps(index | {"sha256": json_sha256(index)}, indent=2) + "\n")


class TokenShards:
    """The shards of a folder as one sequence of tokens, memory-mapped.

    ``verify=False`` leaves out the checksums of the token files (their sizes are always checked): reading hundreds of
    gigabytes once a start is enough for one process of many.

    Raises:
        ValueError: no shards there, a damaged index, or a shard whose size or checksum is not what the index says.
    """

    def __init__(self, folder: Path, *, verify: bool = True):
        self.folder, self._verify = Path(folder), verify
        indices = [read_index(path) for path in _index_files(self.folder)]
        first = indices[0]
        self.dtype, self.fingerprint = np.dtype(first["dtype"]), first["tokenizer"]
        self.vocab_size, self.eot_token = first["vocab_size"], first["eot_token"]
        for index in indices:
            if index["tokenizer"] != self.fingerprint:
                raise ValueError(f"the parts in {self.folder} were made with different tokenizers")
            if differing := _differing(first, index):
                raise ValueError(f"the parts in {self.folder} differ in their {differing}; prepare them again")
        self.checksum = json_sha256([_content_sha256(index) for index in indices])
        self.shards = [Shard(**shard) for index in indices for shard in index["shards"]]
        self._maps = [self._map(shard.file, self.dtype, shard.tokens, shard.sha256) for shard in self.shards]
        self.has_mask = all(shard.mask_sha256 for shard in self.shards)
        self._masks: list[np.ndarray] = []
        if self.has_mask:
            byte = np.dtype(np.uint8)
            self._masks = [self._map(s.mask_file, byte, s.tokens, s.mask_sha256) for s in self.shards]
        self._starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text behind the tokens."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), across shard borders where need be."""
        return self._read(self._maps, start, count)

    def read_mask(self, start: int, count: int) -> np.ndarray:
        """Whether each of the tokens [start, start + count) is trained, bool."""
        return self._read(self._masks, start, count).astype(bool)

    def _read(self, maps: list[np.ndarray], start: int, count: int) -> np.ndarray:
        parts = [maps[0][:0]]
        while count:
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            offset = start - int(self._starts[shard])
            part = maps[shard][offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[-1] if len(parts) <= 2 else np.concatenate(parts)

    def read_windows(self, starts: np.ndarray, count: int) -> np.ndarray:
        """Tokens [start, start + count) of each start, (len(starts), count)."""
        out = np.empty((len(starts), count), self.dtype)
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        crossing = starts + count > self._starts[shards + 1]
        for shard in np.unique(shards[~crossing]):
            rows = np.flatnonzero((shards == shard) & ~crossing)
            windows = np.lib.stride_tricks.sliding_window_view(self._maps[shard], count)
            out[rows] = windows[starts[rows] - self._starts[shard]]
        for row in np.flatnonzero(crossing):  # windows across a border: at most one a shard in an epoch
            out[row] = self.read(int(starts[row]), count)
        return out

    def read_at(self, indices: np.ndarray) -> np.ndarray:
        """The tokens at ``indices``; an index past the end is the last one."""
        return self._read_at(self._maps, indices)

    def read_mask_at(self, indices: np.ndarray) -> np.ndarray:
        """Whether each of the tokens at ``indices`` is trained, bool."""
        return self._read_at(self._masks, indices).astype(bool)

    def _read_at(self, maps: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
        if len(maps) == 1:
            return maps[0].take(indices, mode="clip")  # without a check of each index, twice as fast
        indices = np.minimum(indices, len(self) - 1)
        out = np.empty(len(indices), maps[0].dtype)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            out[places] = maps[shard][indices[places] - self._starts[shard]]
        return out

    @functools.cached_property
    def document_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """(starts, lengths), int64: document i is the tokens [start, start + length), its end-of-text included.

        Raises:
            ValueError: a boundary file is missing or altered.
        """
        starts, lengths = [], []
        for shard, begin in zip(self.shards, self._starts, strict=False):
            ends = self._read_ends(shard)
            starts.append(begin + np.concatenate([np.ones(min(1, len(ends)), ENDS), ends[:-1]]))
            lengths.append(np.diff(ends, prepend=1))
        return np.concatenate(starts), np.concatenate(lengths)

    def _read_ends(self, shard: Shard) -> np.ndarray:
        path = self.folder / shard.ends_file
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"document boundaries {path} are missing") from None
        if hashlib.sha256(data).hexdigest() != shard.ends_sha256:
            raise ValueError(f"document boundaries {path} are altered: their SHA-256 is not the one in the index")
        return np.frombuffer(data, ENDS)

    def _map(self, file: str, dtype: np.dtype, count: int, sha256: str) -> np.ndarray:
        path = self.folder / file
        expected = count * dtype.itemsize
        try:
            actual = path.stat().st_size
        except FileNotFoundError:
            raise ValueError(f"token shard {path} is missing") from None
        if actual != expected:
            raise ValueError(f"token shard {path} is truncated or altered: {actual} bytes, expected {expected}")
        content = np.memmap(path, dtype=dtype, mode="r")
        if self._verify and hashlib.sha256(content.data).hexdigest() != sha256:
            raise ValueError(f"token shard {path} is altered: its SHA-256 is not the one in the index")
        return content


def _content_sha256(index: dict[str, Any]) -> str:
    """A checksum of the tokens and what is known of them, however they came to be."""
    return json_sha256({name: value for name, value in index.items() if name not in ("sha256", "settings")})


def _differing(first: dict[str, Any], other: dict[str, Any]) -> str | None:
    """A setting that two parts do not share."""
    ours, theirs = first.get("settings") or {}, other.get("settings") or {}
    return next((name for name in ours if ours[name] != theirs.get(name)), None)


def _index_name(share: Share) -> str:
    return INDEX.replace(".", f"{share.suffix}.")


def _index_files(folder: Path) -> list[Path]:
    """The index, or those of all parts, in order."""
    if (folder / INDEX).exists():
        return [folder / INDEX]
    found = sorted(folder.glob("index-*-of-*.json"))
    if not found:
        raise ValueError(f"{folder} holds no token shards (no {INDEX})")
    count = int(found[0].stem.rpartition("-")[2])
    wanted = [folder / _index_name(Share(part, count)) for part in range(count)]
    if missing := [path.name for path in wanted if path not in found]:
        raise ValueError(f"{folder} is not complete: {', '.join(missing)} not there yet")
    if len(found) > count:
        raise ValueError(f"{folder} holds parts of different divisions; remove the old ones")
    return wanted


def read_index(path: Path) -> dict[str, Any]:
    """The content of an index.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    try:
        index = json.loads(path.read_text())
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']}; this version reads {FORMAT}")
        if index["sha256"] != json_sha256({key: value for key, value in index.items() if key != "sha256"}):
            raise ValueError("its SHA-256 is not that of its content")
        for shard in index["shards"]:
            place = Path(shard["file"])
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"its shard {shard['file']!r} is not in its folder")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return index
