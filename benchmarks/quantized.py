"""Models whose blocks hold their matrices in NF4: ours, transformers' by bitsandbytes, and what both stand for.

Scales are not quantised in turn (``double_quant=False``): matrices that one library stores as one and the other as
three then have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from llmfast.kernels import NF4Linear, dequantize_nf4, quantize_nf4
from torch import Tensor, nn


def quantize_ours(model: nn.Module) -> nn.Module:
    """In place: every linear layer of the blocks."""
    return replaced(model.blocks, lambda linear: NF4Linear.from_linear(linear, double_quant=False)) and model


def quantize_theirs(model: nn.Module) -> nn.Module:
    """In place, on a GPU: every linear layer of a ``LlamaForCausalLM``'s decoder layers."""
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
        return layer.to(weight.device)  # which quantises

    return replaced(model.model.layers, quantized) and model


def replaced(root: nn.Module, change: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """``root`` with each linear layer inside changed."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, change(child))
    return root


def dequantized(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a decoder in ``dtype``, those that ``quantize_ours`` changes as their 4 bits have them."""

    def after(name: str, weight: Tensor) -> Tensor:
        weight = weight.to(dtype)
        if not name.startswith("blocks.") or weight.ndim != 2:
            return weight
        return dequantize_nf4(quantize_nf4(weight, double_quant=False))

    return {name: after(name, weight) for name, weight in weights.items()}
