"""A value head on a decoder: what the policy may expect from each state, for training by PPO."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfast.models.decoder import Decoder
from llmfast.models.tensors import VALUE_HEAD


def add_value_head(decoder: Decoder) -> Decoder:
    """Give a decoder a linear value head that starts at 0, in place; its checkpoints hold it, whoever loads them for
    anything but training leaves it out (``without_value_head``)."""
    head = nn.Linear(decoder.config.width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    decoder.add_module(VALUE_HEAD, head)
    return decoder


def values_of(decoder: Decoder, states: Tensor) -> Tensor:
    """The values (B, S) of last hidden states (B, S, E), float32."""
    return decoder.get_submodule(VALUE_HEAD)(states).squeeze(-1).to(torch.float32)
