"""Activation checkpointing: a block forgets what it can compute again when the backward pass comes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llmfast.models.config import Checkpointing


def run_block(choice: Checkpointing, block: Callable, *inputs: Any) -> Any:
    """``block(*inputs)``, keeping for the backward pass what ``choice`` says. Results and gradients are the same."""
    if choice == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    options = {"context_fn": _keep_products} if choice == "selective" else {}
    return checkpoint(block, *inputs, use_reentrant=False, **options)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name() in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


_keep_products = partial(create_selective_checkpoint_contexts, _policy)

# The products of linear layers and attention: nearly all of a block's arithmetic. (Not aten::bmm: that is how the CPU
# path forms the scores of short sequences, S by S numbers.)
_KEPT = frozenset(
    (
        "aten::mm",
        "aten::addmm",
        "aten::_grouped_mm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "llmfast::attention",
        "llmfast::frozen_linear",
        "llmfast::swiglu_linear",
        "llmfast_models::grouped_linear",
    )
)
