"""What to train on, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class SourceConfig:
    """What to read, and the vocabulary to read it with."""

    sources: tuple[str, ...] = ()
    """Files (text, .jsonl, .parquet; .gz, .zst), folders, globs, hf:NAME[:SPLIT[:COLUMN]], or one of fineweb-edu,
    fineweb, tinystories, openwebtext, tinyshakespeare; Python's own standard library if left out."""
    column: str | None = None
    """Field that holds the text in JSONL, Parquet and datasets; text, or else the first with text, if left out."""
    tokenizer: str | None = None
    """A tokenizer to use: a folder, a file, or a published name such as gpt2; one is trained if left out."""
    vocab_size: int = 4096
    """Size of the vocabulary to train, special tokens included."""
    tokenizer_characters: int = 1_000_000_000
    """The vocabulary is trained on this many characters, the first of the training documents."""
    validation_fraction: float = 0.05
    """Share of the documents held out, chosen by a hash of their content."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction must be between 0 and 1, got {self.validation_fraction}"
            )


@dataclass
class DataConfig(SourceConfig):
    """What to train on, and in what rows."""

    prepared: str | None = None
    """A folder that llmfast data prepare wrote: its tokenizer and shards are used, sources are not read."""
    packing: Literal["stream", "best_fit"] = "stream"
    """stream: rows are cut from the stream of tokens; best_fit: whole documents are packed into rows."""
    document_masks: bool = False
    """Attention stays inside documents and positions count from their starts."""
