"""The feed-forward of a block: plain with gelu (GPT-2), or gated (Llama)."""

from __future__ import annotations

from torch import Tensor, nn

from llmfast.kernels.lora import swiglu_linear
from llmfast.models.adapters.layers import as_adapted
from llmfast.models.config import DecoderConfig


class FeedForward(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        bias = config.biases == "all"
        self.up = nn.Linear(config.width, config.ff_width, bias=bias)
        self.down = nn.Linear(config.ff_width, config.width, bias=bias)
        self.activation = config.activation_function()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020), gate and up in one product."""

    def __init__(self, config: DecoderConfig, ff_width: int):
        super().__init__()
        bias = config.biases == "all"
        self.gate_up = nn.Linear(config.width, 2 * ff_width, bias=bias)
        self.is_swiglu = config.activation == "swiglu"
        self.fused = {"gate_up": {"gate": ff_width, "up": ff_width}}
        self.down = nn.Linear(ff_width, config.width, bias=bias)
        self.activation = config.activation_function()

    def forward(self, x: Tensor) -> Tensor:
        packed = self.gate_up(x)
        down = as_adapted(self.down, packed) if self.is_swiglu else None
        if down is None or down.lora_a is None:
            return self.down(self.activation(packed))
        # Below an adapter, what enters it is computed again in the backward pass in place of being kept.
        return swiglu_linear(*packed.chunk(2, -1), down)
