"""How the next token is chosen, as data: checked on creation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How to choose: greedy when ``temperature`` is 0, else at random after the cuts.

    Raises:
        ValueError: a negative temperature, top_k below 1, or top_p outside (0, 1].
    """

    temperature: float = 0.8
    """Divides the logits: below 1 sharpens, 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability (Holtzman et al. 2020, nucleus sampling)."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
