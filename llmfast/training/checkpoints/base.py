"""The frozen base of a model of which only a part is trained: named in checkpoints, never copied into them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from llmfast.models.tensors import checksum, frozen_tensors
from llmfast.training.distribution.world import World


@dataclass(frozen=True)
class Base:
    """Where frozen tensors come from, and what they are."""

    path: str
    sha256: str
    """Of the tensors (``llmfast.models.tensors.checksum``), not of a file: the same in every format."""

    def record(self) -> dict[str, str]:
        """What a checkpoint keeps."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.path} (SHA-256 {self.sha256[:12]}...)"


def base_of(model: nn.Module, path: str | None, world: World) -> Base | None:
    """The base of ``model``, whose frozen tensors come from ``path``; None if all of it is trained.

    Raises:
        ValueError: frozen tensors that come from nowhere: no checkpoint would hold them.
    """
    frozen = frozen_tensors(model)
    if not frozen:
        return None
    if path is None:
        raise ValueError("a frozen base must come from somewhere, or no checkpoint has its weights: give start")
    sha256 = checksum(frozen) if world.is_main else ""
    return Base(str(Path(path).absolute()), world.broadcast(sha256))


def check_base(own: Base | None, recorded: dict[str, Any] | None, checkpoint: Path) -> None:
    """Check that a checkpoint was trained on the base that the model has.

    Raises:
        ValueError: it was not; names both.
    """
    theirs = Base(**recorded) if recorded else None
    if theirs is None and own is None:
        return
    if own is None:
        raise ValueError(f"{checkpoint} holds only what was trained on the base {theirs}, but this model has no base")
    if theirs is None:
        raise ValueError(f"{checkpoint} holds a whole model, but only a part on the base {own} is trained here")
    if own.sha256 != theirs.sha256:
        raise ValueError(f"{checkpoint} was trained on the base {theirs}, but here the base is {own}")
