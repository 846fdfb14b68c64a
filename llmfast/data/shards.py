"""Token shards: a folder of memory-mapped token files and the JSON index that describes and checks them.

``index.json`` holds the format version, the tokenizer's fingerprint, the dtype, and for each shard its file name,
tokens, documents, bytes of text and SHA-256. A shard file is the tokens alone, little-endian. Each shard begins with
an end-of-text token and each document ends with one, so that every token of every document has a token before it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

INDEX = "index.json"
FORMAT = 1
SHARD_TOKENS = 2**27  # 256 MB of uint16: small enough to checksum in a moment, large enough to be few


@dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    file: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str


class ShardWriter:
    """Appends documents to shards in ``folder``, which must exist; ``finish`` writes the index, last."""

    def __init__(self, folder: Path, *, vocab_size: int, eot_token: int, fingerprint: str):
        self.folder, self.eot_token, self.fingerprint = Path(folder), eot_token, fingerprint
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.shards: list[Shard] = []
        self._open()

    def add(self, tokens: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append ``documents`` documents, each ending with the end-of-text token."""
        self._write(tokens)
        self._documents += documents
        self._text_bytes += text_bytes
        if self._tokens >= SHARD_TOKENS:
            self._close()
            self._open()

    def finish(self) -> None:
        """Close the last shard and write the index."""
        self._close()
        index = {
            "format": FORMAT,
            "tokenizer": self.fingerprint,
            "dtype": self.dtype.str,
            "shards": [asdict(shard) for shard in self.shards],
        }
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _open(self) -> None:
        self._name = f"{len(self.shards):05d}.bin"
        self._file = open(self.folder / self._name, "wb")  # noqa: SIM115 (closed by _close)
        self._hash = hashlib.sha256()
        self._tokens = self._documents = self._text_bytes = 0
        self._write(np.array([self.eot_token]))

    def _write(self, tokens: np.ndarray) -> None:
        data = np.ascontiguousarray(tokens, dtype=self.dtype).data
        self._file.write(data)
        self._hash.update(data)
        self._tokens += len(tokens)

    def _close(self) -> None:
        self._file.close()
        sha256 = self._hash.hexdigest()
        self.shards.append(Shard(self._name, self._tokens, self._documents, self._text_bytes, sha256))


class TokenShards:
    """The shards of a folder as one sequence of tokens, memory-mapped.

    Raises:
        ValueError: no shards there, a damaged index, or a shard whose size or checksum is not what the index says.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text())
            self.shards = [Shard(**shard) for shard in index["shards"]]
            self.dtype, self.fingerprint = np.dtype(index["dtype"]), index["tokenizer"]
        except FileNotFoundError:
            raise ValueError(f"{self.folder} holds no token shards (no {INDEX})") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / INDEX} is damaged: {error}") from None
        self._maps = [self._map(shard) for shard in self.shards]
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
        parts = []
        while count:
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            offset = start - int(self._starts[shard])
            part = self._maps[shard][offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _map(self, shard: Shard) -> np.ndarray:
        path = self.folder / shard.file
        expected = shard.tokens * self.dtype.itemsize
        try:
            actual = path.stat().st_size
        except FileNotFoundError:
            raise ValueError(f"token shard {path} is missing") from None
        if actual != expected:
            raise ValueError(
                f"token shard {path} is truncated or altered: {actual} bytes, expected {expected}"
            )
        tokens = np.memmap(path, dtype=self.dtype, mode="r")
        if hashlib.sha256(tokens.data).hexdigest() != shard.sha256:
            raise ValueError(f"token shard {path} is altered: its SHA-256 is not the one in {INDEX}")
        return tokens
