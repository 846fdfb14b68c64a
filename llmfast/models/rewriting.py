"""The same model by another configuration: scales and orders of columns move between the configuration and the weights.

A reader of our weights that lacks a setting gets weights that hold it: the decoder in C++, and folders of a family
without it. Weights that are imported stay as they are.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from llmfast.models.config import DecoderConfig
from llmfast.models.rotary_pairs import half_split, interleaved, of_queries_and_keys


def with_scales_in_weights(config: DecoderConfig) -> DecoderConfig:
    """The configuration whose weights hold the scales of attention, the residual stream and the logits; the first stays
    where queries are normalized without weights."""
    attention_scale = config.attention_scale if config.qk_l2_norm else None
    return dataclasses.replace(config, attention_scale=attention_scale, residual_scale=1.0, logit_scale=1.0)


def rewritten(name: str, tensor: Tensor, before: DecoderConfig, after: DecoderConfig) -> Tensor:
    """The tensor ``name`` of a decoder with the configuration ``before``, in the same model with that of ``after``.

    They may differ in ``embedding_scale`` and ``scale_embedding`` (with a table of its own for the head),
    ``residual_scale``, ``logit_scale``, ``attention_scale``, ``norm_weight_offset`` and ``rope_interleaved``.
    """
    part = name.split(".", 2)[2] if name.startswith("blocks.") else name
    factor = _factor(part, before, after)
    offsets = (before.norm_weight_offset, after.norm_weight_offset) if part.endswith("norm.weight") else (0.0, 0.0)
    if factor != 1 or offsets[0] != offsets[1]:
        tensor = (tensor + offsets[0]) * factor - offsets[1]
    if part.startswith("attention.qkv."):
        query = before.heads * before.head_width
        scale = 1.0 if before.qk_norm else before.attention_factor / after.attention_factor
        if scale != 1:
            tensor = torch.cat([tensor[:query] * scale, tensor[query:]])
    if before.rope_interleaved != after.rope_interleaved:
        order = interleaved if after.rope_interleaved else half_split
        if part.startswith("attention.qkv."):
            tensor = of_queries_and_keys(order, tensor, before)
        elif part.startswith(("attention.q_norm.", "attention.k_norm.")):
            flat = tensor.flatten()  # heads with weights of their own have a row each
            tensor = order(flat, len(flat) // before.head_width).view(tensor.shape)
    return tensor


def _factor(part: str, before: DecoderConfig, after: DecoderConfig) -> float:
    """What a tensor is multiplied by as a whole; ``part`` is its name, that inside of the block if it is in one."""
    module = part.rpartition(".")[0]
    if part == "embedding.weight":
        return before.embedding_factor / after.embedding_factor
    if module == "norm":  # before the head, which may be tied
        return before.logit_scale / after.logit_scale
    if module == "attention.q_norm":
        return before.attention_factor / after.attention_factor
    if before.norm_position == "before":
        adds = module in ("attention.out", "feed_forward.down", "feed_forward.shared.down")
        adds = adds or part in ("feed_forward.experts.down", "feed_forward.experts.down_bias")
    else:
        adds = module in ("attention_post_norm", "feed_forward_post_norm")
    return before.residual_scale / after.residual_scale if adds else 1.0
