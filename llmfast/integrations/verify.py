"""Compares a patched model with what it computed before, on a small batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmfast.models.evaluating import evaluating

LENGTH = 12
PADDING = 4


@torch.no_grad()
def probe(model: nn.Module) -> dict[str, Tensor]:
    """What a language model computes for a fixed batch: float32 outputs (tokens, V) of the tokens that are no padding.

    Two rows; the same with another last token, which must change nothing before it; and the second row padded on the
    left and on the right.
    """
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (2, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones_like(tokens)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocabulary
    left, right = mask.clone(), mask.clone()
    left[1, :PADDING], right[1, -PADDING:] = 0, 0
    batches = {
        "a batch": (tokens, mask, mask),
        "a batch with another last token": (changed, mask, mask),
        "a batch padded on the left": (tokens, left, left),
        "a batch padded on the right": (tokens, right, right),
    }
    with evaluating(model):
        return {
            name: _first(model(input_ids=batch, attention_mask=seen, use_cache=False))[real.bool()].float()
            for name, (batch, seen, real) in batches.items()
        }


def differences(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """The relative difference ‖after − before‖ / ‖before‖ of each batch."""
    return {
        name: ((after[name] - value).norm() / value.norm().clamp(min=torch.finfo(torch.float32).tiny)).item()
        for name, value in before.items()
    }


def allowed(model: nn.Module, between_implementations: dict[str, float]) -> dict[str, float]:
    """How far a patched model may be from the same before: a few roundings of its dtype, and a few times what two
    implementations of attention of transformers differ by."""
    dtype = model.get_input_embeddings().weight.dtype
    eps = torch.finfo(dtype if dtype.is_floating_point else torch.bfloat16).eps
    return {name: 8 * eps + 4 * value for name, value in between_implementations.items()}


def can_run(model: nn.Module) -> bool:
    """Whether all weights are there: not while a class is built on the meta device, before its weights are loaded."""
    return not any(parameter.is_meta or parameter.numel() == 0 for parameter in model.parameters())


def _first(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    return output[0] if logits is None else logits
