"""Models whose blocks store their matrices in NF4: ours, those of transformers with bitsandbytes, and their dequantized
weights.

Scales are not quantized (``double_quant=False``), so that a matrix that one library stores whole and the other in three
parts has the same bits in both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from llmfast.kernels import NF4Linear, dequantize_nf4, quantize_nf4
from torch import Tensor, nn


def quantize_ours(model: nn.Module) -> nn.Module:
    """Quantizes every linear layer of the blocks in place."""
    return replaced(model.blocks, lambda linear: NF4Linear.from_linear(linear, double_quant=False)) and model


def quantize_theirs(model: nn.Module) -> nn.Module:
    """Quantizes every linear layer of the decoder layers of a ``LlamaForCausalLM`` in place, on a GPU."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    def quantized(linear: nn.Linear) -> nn.Module:
        weight = linear.weight
        layer = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=weight.dtype,
            compress_statistics=False,
            quant_type="nf4",
            device="meta",
        )
        options = {"requires_grad": False, "compress_statistics": False, "quant_type": "nf4"}
        layer.weight = Params4bit(weight.data.cpu(), **options)
        return layer.to(weight.device)  # this quantizes

    return replaced(model.model.layers, quantized) and model


def replaced(root: nn.Module, change: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Applies ``change`` to each linear layer inside ``root``."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, change(child))
    return root


def dequantized(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a decoder in ``dtype``; those that ``quantize_ours`` packs are quantized and dequantized."""

    def after(name: str, weight: Tensor) -> Tensor:
        weight = weight.to(dtype)
        if not name.startswith("blocks.") or weight.ndim != 2:
            return weight
        return dequantize_nf4(quantize_nf4(weight, double_quant=False))

    return {name: after(name, weight) for name, weight in weights.items()}
