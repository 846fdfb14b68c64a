"""What to train on, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DataConfig:
    """What to train on."""

    sources: tuple[str, ...] = ()
    """Files, folders, globs or hf:NAME[:SPLIT[:COLUMN]]; Python's own standard library if left out."""
    tokenizer: str | None = None
    """A tokenizer to use (a folder or file that Tokenizer.load reads); one is trained if left out."""
    vocab_size: int = 4096
    """Size of the vocabulary to train, special tokens included."""
    validation_fraction: float = 0.05
    """Share of the documents held out, chosen by a hash of their content."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction must be between 0 and 1, got {self.validation_fraction}"
            )
