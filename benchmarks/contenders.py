"""Contenders: a name, how to build the function, and what must be installed for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

COMPILED = "torch.compile"


@dataclass(frozen=True)
class Contender:
    """``build()`` imports what is needed and returns a function that takes the inputs of a case by name."""

    name: str
    build: Callable[[], Callable]
    module: str | None = None  # that must be installed
    gpu_only: bool = False
    unfit: str = ""  # why it cannot do this

    def absence(self, device: str) -> tuple[str, str] | None:
        """(status, reason) if it cannot take part, else None."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return "missing", f"{self.module} is not installed"
        if self.unfit:
            return "skipped", self.unfit
        if self.gpu_only and device != "cuda":
            return "skipped", "runs on a GPU only"
        return None


def given(name: str, function: Callable, **options) -> Contender:
    """A contender that needs no import."""
    return Contender(name, lambda: function, **options)


def compiled(function: Callable, name: str = COMPILED) -> Contender:
    """The plain function under ``torch.compile``, for this one shape."""

    return Contender(name, lambda: torch.compile(function, dynamic=False), gpu_only=True)


def prepare_compiler() -> None:
    """Clears what was compiled for other shapes, and keeps buffers so that a backward pass can run repeatedly."""
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False


def absent_without_torch(name: str, attribute: str, build: Callable[[], Callable]) -> Contender:
    """Returns the entry that reports a function as missing if this release of PyTorch lacks it."""

    def find() -> Callable:
        if not hasattr(torch.nn.functional, attribute):
            raise ModuleNotFoundError(f"torch {torch.__version__} has no torch.nn.functional.{attribute}")
        return build()

    return Contender(name, find)
