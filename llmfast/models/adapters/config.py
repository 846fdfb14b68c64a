"""What adapters a model gets, as data: checked on creation. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: which layers get one, and of what kind (Hu et al. 2021, arXiv:2106.09685).

    A pattern is a name of a module, the end of one after a dot, or a regular expression that matches either.
    """

    rank: int = 8
    """R: rank of the update of a weight."""
    alpha: float = 16.0
    """The update is multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """Multiply the update by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)."""
    dropout: float = 0.0
    """Probability of dropping an element of what enters an adapter while training."""
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    """Layers that get an adapter, as patterns; all-linear: every linear layer but the output head. q, k, v, gate and up
    name parts of this decoder's fused layers qkv and gate_up, each with an adapter of its own."""
    exclude_modules: tuple[str, ...] = ()
    """Layers that get none although target_modules names them, as patterns."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of layers by pattern, where they differ from rank; the first pattern that matches counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Values of alpha by pattern, where they differ from alpha."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Which biases are trained: none, those of the layers with an adapter, or all of the model."""
    dora: bool = False
    """Train the length of each row of a weight beside its direction (DoRA, Liu et al. 2024, arXiv:2402.09353)."""
    init: Literal["zero", "pissa"] = "zero"
    """zero: B starts at 0. pissa: A and B start as the largest singular vectors of the weight, and the update is what
    they differ by from that start (Meng et al. 2024, arXiv:2404.02948)."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained in full beside the adapters, as patterns."""
    keep_tied: bool = True
    """Modules that share a weight with one of modules_to_save are trained with it and still share it."""

    def __post_init__(self) -> None:
        for name, rank in {"rank": self.rank, **_named("rank_pattern", self.rank_pattern)}.items():
            if rank < 1:
                raise ValueError(f"lora.{name} must be at least 1, got {rank}")
        for name, alpha in {"alpha": self.alpha, **_named("alpha_pattern", self.alpha_pattern)}.items():
            if not 0 < alpha < math.inf:
                raise ValueError(f"lora.{name} must be positive, got {alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be at least 0 and below 1, got {self.dropout}")
        if not self.target_modules and not self.modules_to_save:
            raise ValueError("lora.target_modules is empty: name the layers that get an adapter, or give all-linear")
        for setting in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save"):
            for pattern in getattr(self, setting):
                check_pattern(f"lora.{setting}", pattern)

    def rank_of(self, name: str) -> int:
        """The rank of the adapter of a layer."""
        return _by_pattern(self.rank_pattern, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """The alpha of the adapter of a layer."""
        return _by_pattern(self.alpha_pattern, name, self.alpha)

    def scale_of(self, name: str) -> float:
        """What the update of a layer is multiplied by."""
        rank, alpha = self.rank_of(name), self.alpha_of(name)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` is the name, its end after a dot, or a regular expression that matches one of these.

    >>> [matches("q_proj", name) for name in ("layers.0.q_proj", "q_proj", "layers.0.my_q_proj")]
    [True, True, False]
    >>> matches(r"layers.[0-3].*_proj", "model.layers.2.q_proj")
    True
    """
    return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of ``patterns`` matches the name."""
    return any(matches(pattern, name) for pattern in patterns)


def check_pattern(setting: str, pattern: str) -> None:
    """Check that a pattern can be read.

    Raises:
        ValueError: it is empty, or no regular expression.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{setting} has {pattern!r}, which is not a regular expression: {error}") from None
    if not pattern:
        raise ValueError(f"{setting} has an empty pattern")


def _by_pattern(found: dict, name: str, default: float) -> float:
    return next((value for pattern, value in found.items() if matches(pattern, name)), default)


def _named(setting: str, values: dict) -> dict:
    return {f"{setting}[{pattern!r}]": value for pattern, value in values.items()}
