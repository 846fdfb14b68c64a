"""Preparation on a Ray cluster: the same tokenizer, split and shard format, run by Ray Data."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmfast.data.prepare import SPLITS, Prepared, open_prepared
from llmfast.data.reading.corpus import is_held_out
from llmfast.data.shards import Shard, ShardWriter, write_index
from llmfast.files import atomic_folder
from llmfast.tokenizer import Tokenizer

if TYPE_CHECKING:
    import ray.data


class EncodeBatch:
    """Turns a batch of texts into one token shard a split; a function for ``ray.data.Dataset.map_batches``.

    Shards are named by what they hold, so that a task that Ray runs twice writes the same file twice.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path, column: str, validation_fraction: float):
        self.tokenizer, self.folder = tokenizer, Path(folder)
        self.column, self.validation_fraction = column, validation_fraction

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """The index records of the shards written, a row each."""
        sides: dict[str, list[bytes]] = {split: [] for split in SPLITS}
        for text in batch[self.column]:
            if text and text.strip():
                data = text.encode("utf-8", "surrogatepass")
                sides[SPLITS[is_held_out(data, self.validation_fraction)]].append(data)
        records = [{"split": split} | asdict(self._write(split, texts)) for split, texts in sides.items() if texts]
        names = ("split", *Shard.__dataclass_fields__)
        return {name: [record[name] for record in records] for name in names}

    def _write(self, split: str, texts: list[bytes]) -> Shard:
        name = hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]
        with atomic_folder(self.folder / split / name) as partial:
            writer = ShardWriter(
                partial,
                vocab_size=self.tokenizer.n_vocab,
                eot_token=self.tokenizer.eot_token,
                fingerprint=self.tokenizer.fingerprint,
            )
            tokens, _ = self.tokenizer.encode_documents(texts, num_threads=1)
            writer.add(tokens, len(texts), sum(map(len, texts)))
            writer.finish()
        (shard,) = writer.shards
        return replace(shard, file=f"{name}/{shard.file}")


def prepare_on_ray(
    dataset: ray.data.Dataset,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    column: str = "text",
    validation_fraction: float = 0.05,
    batch_size: int = 10_000,
) -> Prepared:
    """Encode a Ray dataset into ``folder``, on storage that all nodes share, and open it.

    Args:
        dataset: rows with a column of text, from ``ray.data.read_parquet`` or any other source.
        tokenizer: goes to the workers as it is.
        column: the field that holds the text.
        validation_fraction: share of the documents held out, by the same hash of their content as ``prepare`` uses.
        batch_size: documents a shard.

    Raises:
        ValueError: no documents, or none on one side of the split.
    """
    folder = Path(folder).absolute()
    tokenizer.save(folder)
    # Ray's type of a batch is that of every format; with "numpy" it is a dictionary of arrays.
    encode: Any = EncodeBatch(tokenizer, folder, column, validation_fraction)
    records = dataset.map_batches(encode, batch_size=batch_size, batch_format="numpy").take_all()
    for split in SPLITS:
        # Sorted by content: the same shards in the same order, whichever node was first.
        mine = sorted((r for r in records if r["split"] == split), key=lambda record: record["file"])
        shards = [Shard(**{key: value for key, value in record.items() if key != "split"}) for record in mine]
        if not shards:
            raise ValueError(f"no documents for the {split} split in the dataset")
        write_index(
            folder / split,
            shards,
            vocab_size=tokenizer.n_vocab,
            eot_token=tokenizer.eot_token,
            fingerprint=tokenizer.fingerprint,
        )
    return open_prepared(folder)
