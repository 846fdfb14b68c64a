"""The activations of feed-forwards: the one place to add another.

An entry says which kernel it is and what transformers calls it. Configurations, feed-forwards and Hugging Face folders
follow from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

ActivationName = Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class Activation:
    """One activation."""

    gated: bool
    """Whether it maps packed ``[gate | up]`` (..., 2F) to (..., F), and not (..., F) to (..., F)."""
    kernel: str
    """The function of ``llmfast.kernels``."""
    options: dict[str, Any]
    """Its keyword arguments."""
    transformers: tuple[str, ...]
    """Its names in a config.json; the first is the one that is written."""

    def function(self) -> Callable[[Tensor], Tensor]:
        """What a feed-forward calls."""
        from llmfast import kernels

        function = getattr(kernels, self.kernel)
        return partial(function, **self.options) if self.options else function


_NONE, _TANH = {"approximate": "none"}, {"approximate": "tanh"}
ACTIVATIONS: dict[str, Activation] = {
    "swiglu": Activation(True, "swiglu", {}, ("silu",)),
    "geglu": Activation(True, "geglu", _NONE, ("gelu",)),
    "geglu_tanh": Activation(True, "geglu", _TANH, ("gelu_pytorch_tanh",)),
    "gelu": Activation(False, "gelu", _NONE, ("gelu",)),
    "gelu_tanh": Activation(False, "gelu", _TANH, ("gelu_new", "gelu_pytorch_tanh")),
}
assert tuple(ACTIVATIONS) == get_args(ActivationName)


def transformers_names(*, gated: bool) -> dict[str, str]:
    """The activations of that kind by their names in a config.json."""
    return {
        theirs: ours
        for ours, activation in ACTIVATIONS.items()
        if activation.gated == gated
        for theirs in activation.transformers
    }
