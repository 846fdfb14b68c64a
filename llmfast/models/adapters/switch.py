"""Which adapter of a model is used: one, none, or one for each row of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llmfast.models.adapters.config import LoraConfig


@dataclass(eq=False)
class Rows:
    """An adapter for each row of a batch."""

    names: tuple[str | None, ...]
    _indices: dict[tuple[int, torch.device], dict[str | None, Tensor]] = field(default_factory=dict)

    def groups(self, size: int, device: torch.device) -> dict[str | None, Tensor]:
        """The places along a dimension of ``size`` by adapter: rows, or the tokens of rows laid end to end.

        Raises:
            ValueError: ``size`` is not a multiple of the number of rows.
        """
        each, rest = divmod(size, len(self.names))
        if rest:
            raise ValueError(f"adapters were chosen for {len(self.names)} rows, but a layer got {size}")
        if (size, device) not in self._indices:
            chosen = [name for name in self.names for _ in range(each)]
            self._indices[size, device] = {
                name: torch.tensor([place for place, other in enumerate(chosen) if other == name], device=device)
                for name in dict.fromkeys(chosen)
            }
        return self._indices[size, device]


@dataclass(eq=False)
class Switch:
    """What the layers with adapters of one model have in common."""

    configs: dict[str, LoraConfig] = field(default_factory=dict)
    """The adapters of the model by name."""
    bases: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the tensors that an adapter was trained on, where its files tell."""
    active: str | None = None
    """The adapter in use."""
    rows: Rows | None = None
    """Adapters by row in use, instead of ``active``."""
    merged: str | None = None
    """The adapter whose updates are in the weights."""
    settings_before_merge: list[tuple[Any, str, Any]] = field(default_factory=list)
    """(object, attribute, value) of the configurations that merging changed."""

    def check(self, name: str | None) -> None:
        """Check that an adapter can be used.

        Raises:
            ValueError: there is none of that name, or the weights hold the updates of one.
        """
        if name is not None and name not in self.configs:
            names = ", ".join(map(repr, self.configs)) or "none"
            raise ValueError(f"the model has no adapter {name!r}; it has {names}")
        if self.merged is not None:
            raise ValueError(f"the adapter {self.merged!r} is merged into the weights: unmerge_adapter(model) first")


def switches(model: nn.Module) -> list[Switch]:
    """The switches of the models with adapters inside ``model``, mostly one."""
    found = {id(module.switch): module.switch for module in model.modules() if hasattr(module, "switch")}
    return list(found.values())


def only_switch(model: nn.Module) -> Switch:
    """The switch of a model with adapters.

    Raises:
        ValueError: it has no adapters, or several models inside it have.
    """
    found = switches(model)
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {'no adapters' if not found else 'several models with adapters'}")
    return found[0]


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Use the adapter of that name from now on; None for the model without.

    Raises:
        ValueError: no adapter of that name, or one is merged into the weights.
    """
    switch = only_switch(model)
    switch.check(name)
    switch.active = name


@contextlib.contextmanager
def use_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Use the adapter of that name, or none, for a ``with`` block.

    Raises:
        ValueError: as ``set_adapter``.
    """
    switch = only_switch(model)
    before = switch.active
    set_adapter(model, name)
    try:
        yield
    finally:
        switch.active = before


@contextlib.contextmanager
def adapters_by_row(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """For a ``with`` block, row i of every batch uses the adapter ``names[i]``, or none.

    The frozen product is computed once for all rows. A layer that gets the tokens of all rows laid end to end divides
    them evenly between the rows.

    Raises:
        ValueError: an adapter that the model has not; in the block, a batch of another number of rows.
    """
    switch = only_switch(model)
    for name in names:
        switch.check(name)
    if not names:
        raise ValueError("names is empty: give an adapter, or None, for each row")
    before = switch.rows
    switch.rows = Rows(tuple(names))
    try:
        yield
    finally:
        switch.rows = before
