"""The feed-forward of a block: plain with gelu (GPT-2), or gated (Llama)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from llmfast.kernels import geglu, gelu, swiglu
from llmfast.models.config import DecoderConfig


class FeedForward(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        bias = config.biases == "all"
        self.up = nn.Linear(config.width, config.ff_width, bias=bias)
        self.down = nn.Linear(config.ff_width, config.width, bias=bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x), approximate=self.approximate))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020), gate and up in one product."""

    def __init__(self, config: DecoderConfig, ff_width: int):
        super().__init__()
        bias = config.biases == "all"
        self.gate_up = nn.Linear(config.width, 2 * ff_width, bias=bias)
        self.down = nn.Linear(ff_width, config.width, bias=bias)
        self.activation = gated_activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate_up(x)))


def gated_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The kernel that maps packed ``[gate | up]`` (..., 2F) to (..., F)."""
    if name == "swiglu":
        return swiglu
    return partial(geglu, approximate="tanh" if name == "geglu_tanh" else "none")
