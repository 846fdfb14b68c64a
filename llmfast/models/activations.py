"""The activations of feed-forwards: the one place to add another.

An entry says which kernel computes it, what transformers calls it, and which modules are the same. Configurations,
feed-forwards, Hugging Face folders and ``llmfast.patch`` follow from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor, nn

ActivationName = Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "clamped_swiglu"]


def clamped_swiglu(packed: Tensor, *, limit: float, alpha: float) -> Tensor:
    """min(gate, limit) · sigmoid(alpha · min(gate, limit)) · (1 + up between -limit and limit), of GPT-OSS.

    Args:
        packed: ``[gate | up]`` (..., 2F).
        limit: the bound of gate, from above, and of up, on both sides.
        alpha: the factor inside the sigmoid.

    Returns:
        (..., F).
    """
    gate, up = packed.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * (alpha * gate).sigmoid())


@dataclass(frozen=True)
class Activation:
    """One activation."""

    gated: bool
    """Whether it maps packed ``[gate | up]`` (..., 2F) to (..., F), and not (..., F) to (..., F)."""
    kernel: str | Callable[..., Tensor]
    """The name of the function in ``llmfast.kernels``, or a function in plain PyTorch."""
    options: dict[str, Any]
    """Its keyword arguments."""
    transformers: tuple[str, ...]
    """Its names in a config.json; the first is the one that is written. Empty where the family implies it."""
    modules: tuple[str, ...]
    """Classes of torch.nn and transformers.activations that compute it, without their gate."""

    def function(self, **settings: float) -> Callable[..., Tensor]:
        """What a feed-forward calls, with the packed tensor, or with gate and up; ``settings`` are those of a model."""
        from llmfast import kernels

        function = getattr(kernels, self.kernel) if isinstance(self.kernel, str) else self.kernel
        options = self.options | settings
        return partial(function, **options) if options else function


_EXACT, _TANH = {"approximate": "none"}, {"approximate": "tanh"}
_SILU_MODULES = ("SiLU", "SiLUActivation")
_EXACT_MODULES = ("GELU", "GELUActivation")
_TANH_MODULES = ("GELUTanh", "NewGELUActivation", "PytorchGELUTanh")
ACTIVATIONS: dict[str, Activation] = {
    "swiglu": Activation(True, "swiglu", {}, ("silu",), _SILU_MODULES),
    "geglu": Activation(True, "geglu", _EXACT, ("gelu",), _EXACT_MODULES),
    "geglu_tanh": Activation(True, "geglu", _TANH, ("gelu_pytorch_tanh",), _TANH_MODULES),
    "gelu": Activation(False, "gelu", _EXACT, ("gelu",), _EXACT_MODULES),
    "gelu_tanh": Activation(False, "gelu", _TANH, ("gelu_new", "gelu_pytorch_tanh"), _TANH_MODULES),
    "clamped_swiglu": Activation(True, clamped_swiglu, {}, (), ()),
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


def of_module(module: nn.Module, *, gated: bool) -> Activation | None:
    """The activation of that kind that a module of torch.nn or transformers computes, or None."""
    name = type(module).__name__
    if name == "GELU" and getattr(module, "approximate", "none") == "tanh":
        name = "GELUTanh"
    return next((each for each in ACTIVATIONS.values() if each.gated == gated and name in each.modules), None)
