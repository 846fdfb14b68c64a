"""The base of the model of a run, the same in all processes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from llmfast.models.base import Base, describe_base
from llmfast.models.tensors import frozen_tensors
from llmfast.training.distribution.world import World


def base_of(model: nn.Module, path: str | None, world: World) -> Base | None:
    """The base of ``model``, whose frozen tensors come from ``path``; None if all of it is trained.

    Raises:
        ValueError: frozen tensors that come from nowhere: no checkpoint would hold them.
    """
    if not frozen_tensors(model):
        return None
    if path is None:
        raise ValueError("a frozen base must come from somewhere, or no checkpoint has its weights: give start")
    return world.broadcast(describe_base(model, str(Path(path).absolute())) if world.is_main else None)
