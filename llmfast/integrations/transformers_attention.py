"""flash_attention as an attention implementation of Hugging Face transformers.

    from llmfast.integrations.transformers_attention import register
    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="llmfast")

Prefill, training and cached decoding of causal, sliding and bidirectional attention, padded or not, take
flash_attention. Masks of any other kind (chunked, prefix-bidirectional, several sequences in a row distinguished by
positions) and biases run in plain PyTorch with the whole mask, and one warning says so: the result is the same, at the
speed of eager attention. A model whose layers never call this implementation is refused.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.integrations.transformers_masks import LayerMask, Pattern, attention_mask
from llmfast.kernels import flash_attention
from llmfast.kernels.attention.reference import attention_scores

NAME = "llmfast"
WIDEST = 256  # of the heads that flash_attention takes

_collector: Any = None  # holds the outputs that transformers records in a pass, by name


def register() -> None:
    """Make ``attn_implementation="llmfast"`` known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    global _collector
    with contextlib.suppress(ImportError):  # transformers before 5.2
        from transformers.utils.output_capturing import _active_collector as _collector
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of query (B, H, S, D) over key and value (B, K, T, D): ``(out (B, S, H, D) contiguous, None)``.

    The sliding window is part of the mask, as for PyTorch's SDPA. Without a mask, attention is causal where the module
    says so (``is_causal``) and there is more than one query, which then stand at the first keys.

    Args:
        attention_mask: A ``LayerMask``; or (B or 1, H or 1, S, T) boolean, true where a query sees a key, or a bias.
        softcap, s_aux: ``softcap`` and ``sinks`` of flash_attention.
        position_bias: (B or 1, H, S, T), added to the scores.

    Returns:
        the result, and the weights (B, H, S, T) if ``output_attentions`` asks for them.

    Raises:
        ValueError: for the paged cache of continuous batching, and for tensors of an option that it does not know.
    """
    if cache is not None:
        raise ValueError('attn_implementation="llmfast" has no paged cache: use "sdpa" for continuous batching')
    _refuse_unknown(module, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    pattern = _pattern(module, query, key, attention_mask, is_causal)
    wants_weights = bool(kwargs.get("output_attentions")) or _weights_are_recorded()
    reason = "attention weights are asked for" if wants_weights else _why_plain(query, key, value, position_bias)
    if pattern is None or reason:
        _say_once(reason or "the model's mask is none that flash_attention computes")
        mask = _elements(attention_mask, pattern, query, key)
        options = (position_bias, scale, softcap, s_aux, dropout, wants_weights)
        out, weights = plain_attention(query, key, value, mask, *options)
        return out.transpose(1, 2).contiguous(), weights
    key, value = key[:, :, : pattern.keys], value[:, :, : pattern.keys]
    options = {
        "causal": pattern.causal,
        "scale": scale,
        "window": pattern.window,
        "softcap": softcap,
        "sinks": s_aux,
        "dropout_p": dropout,
    }
    if pattern.padding is None:
        out = flash_attention(query, key, value, **options).transpose(1, 2).contiguous()
    else:
        out = unpadded_attention(query, key, value, pattern, options)
    return out, None


def _refuse_unknown(module: nn.Module, options: dict[str, Any]) -> None:
    """Refuse options that would change the result: tensors of numbers. (Indices and positions are in the mask.)"""
    for name, value in options.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            raise ValueError(
                f'attn_implementation="llmfast" does not know the option {name} that {type(module).__name__} gives to '
                'its attention: use attn_implementation="eager"'
            )


def _weights_are_recorded() -> bool:
    """Whether transformers records attention weights in this pass: not every model (GPT-2) tells its layers."""
    return _collector is not None and any("attentions" in name for name in _collector.get() or ())


def _pattern(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None
) -> Pattern | None:
    """What the queries see, as a pattern; None if only the elements of the mask tell."""
    S, T = query.shape[2], key.shape[2]
    if mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and S > 1
        return Pattern(causal, None, min(S, T) if causal else T, None)
    if isinstance(mask, LayerMask) and mask.shape[2:] == (S, T) and len(mask) == len(query) == len(key):
        return mask.pattern
    return None


def _why_plain(query: Tensor, key: Tensor, value: Tensor, position_bias: Tensor | None) -> str:
    """Why flash_attention cannot compute this, whatever the mask; empty where it can."""
    if position_bias is not None:
        return "the model adds a bias to its scores"
    if max(query.shape[-1], value.shape[-1]) > WIDEST:
        return f"heads are wider than {WIDEST}"
    if not query.shape[0] == key.shape[0] == value.shape[0] or query.shape[1] % key.shape[1]:
        return "queries and keys differ in their batch or heads"
    if key.shape[2] == 0:
        return "there are no keys"
    return ""


_said: set[str] = set()


def _say_once(reason: str) -> None:
    if reason not in _said and not torch.compiler.is_compiling():
        _said.add(reason)
        warnings.warn(f'attn_implementation="llmfast" computes in plain PyTorch here: {reason}', stacklevel=3)


def _elements(mask: Tensor | None, pattern: Pattern | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask as an ordinary tensor; None where every query sees every key."""
    if isinstance(mask, LayerMask):
        mask = mask.elements()
    if mask is not None:
        return mask[..., : key.shape[2]]
    if pattern is None or pattern.is_whole:
        return None
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]


def unpadded_attention(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, options: dict[str, Any]) -> Tensor:
    """Attention among the tokens that are no padding, packed: (B, S, H, D), zeros for queries that are padding.

    Queries of bidirectional attention are of another sequence than the keys, or may stand anywhere in the same: all of
    them see the keys that are no padding.
    """
    B, H, S, _ = query.shape
    k_shown = pattern.padding
    q_shown = k_shown[:, -S:] if pattern.causal or pattern.window else k_shown.new_ones((B, S))
    q_at, k_at = (torch.nonzero(shown.flatten()).flatten() for shown in (q_shown, k_shown))
    packed = (x.transpose(1, 2).flatten(0, 1)[at] for x, at in ((query, q_at), (key, k_at), (value, k_at)))
    out = flash_attention(*packed, cu_seqlens_q=boundaries(q_shown), cu_seqlens_k=boundaries(k_shown), **options)
    return out.new_zeros((B * S, *out.shape[1:])).index_copy(0, q_at, out).view(B, S, H, -1)


def boundaries(shown: Tensor) -> Tensor:
    """Where the rows of ``shown`` (B, T) start when only what is shown is laid end to end: (B + 1,) int32."""
    return F.pad(shown.sum(dim=1).cumsum(dim=0), (1, 0)).to(torch.int32)


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dropout: float,
    wants_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention under a whole mask, boolean or additive, and a bias: (B, H, S, D), and the weights if wanted."""
    if bias is not None and mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, bias, torch.finfo(bias.dtype).min)
    elif bias is not None:
        mask = bias if mask is None else bias + mask
    if softcap is None and sinks is None and not wants_weights:
        grouped = query.shape[1] != key.shape[1]
        mask = mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale, enable_gqa=grouped), None
    scores = attention_scores(query, key, scale=scale, softcap=softcap)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    elif mask is not None:  # A finite fill: -inf would turn rows that see nothing, and their gradients, into NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(query.dtype)
    if mask is not None and mask.dtype == torch.bool:
        weights = weights * mask
    mixed = F.dropout(weights, dropout) if dropout else weights
    return mixed @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1), weights
