"""How a decoder's weights are drawn before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmfast.models.experts import MixtureOfExperts

if TYPE_CHECKING:
    from llmfast.models.decoder import Decoder


@torch.no_grad()
def initialize(model: Decoder, generator: torch.Generator | None = None) -> None:
    """Fill the weights, in order, from ``generator``; every draw is truncated at 3 sigma.

    Matrices follow ``config.matrix_init``; those that write to the residual stream are divided by sqrt(2·layers) so
    that its variance does not grow with depth (GPT-2, section 2.3). The embedding table, and a table of positions,
    follow ``config.embedding_init``. Norms start as the identity, biases and the sinks of attention at 0.
    """
    config = model.config

    def draw(weight: Tensor, std: float) -> None:
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)

    def matrix(weight: Tensor, scale: float = 1.0) -> None:
        draw(weight, scale * _matrix_std(config.matrix_init, *weight.shape[-2:]))

    def feed_forward(module: nn.Module) -> None:
        if isinstance(module, MixtureOfExperts):
            matrix(module.router.weight)
            matrix(module.experts.gate_up)
            matrix(module.experts.down, residual)
            for inner in filter(None, (module.shared, module.shared_gate)):
                matrix(inner.weight) if isinstance(inner, nn.Linear) else feed_forward(inner)
        else:
            matrix((module.gate_up if config.gated else module.up).weight)
            matrix(module.down.weight, residual)

    residual = (2 * config.layers) ** -0.5
    table_std = _table_std(config.embedding_init, config.vocab_size, config.width)
    draw(model.embedding.weight, table_std)
    if model.positions is not None:
        draw(model.positions.weight, table_std)
    if not config.tie_embeddings:
        matrix(model.head.weight)
    for block in model.blocks:
        matrix(block.attention.qkv.weight)
        matrix(block.attention.out.weight, residual)
        feed_forward(block.feed_forward)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", ".sinks")):
            parameter.zero_()


def _table_std(choice: str, vocab_size: int, width: int) -> float:
    return {"linear": (2 / (vocab_size + width)) ** 0.5, "normal": 0.02, "fan_in": width**-0.5, "unit": 1.0}[choice]


def _matrix_std(choice: str, fan_out: int, fan_in: int) -> float:
    return {"fan_in": fan_in**-0.5, "linear": (2 / (fan_in + fan_out)) ** 0.5, "normal": 0.02}[choice]
