"""The frozen base of a model of which only a part is trained: named in checkpoints, never copied into them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from llmfast.config import from_dict, to_dict
from llmfast.kernels import NF4Linear
from llmfast.models.adapters.config import LoraConfig
from llmfast.models.adapters.inject import DEFAULT
from llmfast.models.adapters.switch import switches
from llmfast.models.tensors import checksum, frozen_tensors


@dataclass(frozen=True)
class Base:
    """Where frozen tensors come from, what they are, and what was done to the model before it was trained."""

    path: str
    sha256: str
    """Of the tensors (``llmfast.models.tensors.checksum``), not of a file: the same in every format."""
    quantized: bool = False
    """Whether linear layers are in 4 bits (``llmfast.models.quantize.quantize_decoder``)."""
    lora: dict[str, Any] | None = None
    """The settings of the adapter that is trained (``LoraConfig``); None without one."""

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)

    @property
    def adapter(self) -> LoraConfig | None:
        """The adapter that is trained."""
        return None if self.lora is None else from_dict(LoraConfig, self.lora)

    def __str__(self) -> str:
        return f"{self.path} (SHA-256 {self.sha256[:12]}...)"


def describe_base(model: nn.Module, path: str) -> Base:
    """The base of ``model``, whose frozen tensors come from ``path``."""
    adapters = [switch.configs[DEFAULT] for switch in switches(model) if DEFAULT in switch.configs]
    return Base(
        path,
        checksum(frozen_tensors(model)),
        any(isinstance(module, NF4Linear) for module in model.modules()),
        to_dict(adapters[0]) if adapters else None,
    )


def check_base(own: Base | None, recorded: dict[str, Any] | None, checkpoint: object) -> None:
    """Check that a checkpoint was trained on the base that the model has, with the adapter that it has.

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
    if own.lora != theirs.lora:
        mine, other = own.lora or {}, theirs.lora or {}
        different = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
        raise ValueError(
            f"{checkpoint} was trained with another adapter: its "
            + ", ".join(f"lora.{name} is {other.get(name)!r}, not {mine.get(name)!r}" for name in different)
        )
    if own.sha256 != theirs.sha256:
        raise ValueError(f"{checkpoint} was trained on the base {theirs}, but here the base is {own}")
