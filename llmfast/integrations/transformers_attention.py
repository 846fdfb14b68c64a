"""flash_attention as an attention implementation of Hugging Face transformers.

    from llmfast.integrations.transformers_attention import register
    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="llmfast")

Prefill, training and cached decoding take flash_attention; padding masks become sequence lengths. A mask of
another pattern (prefix-bidirectional, chunked, several sequences in a row distinguished by positions) is built in full,
and attention runs in plain PyTorch: the result is the same, at eager speed.
"""

import torch
import torch.nn.functional as F

from ..kernels import flash_attention
from ..kernels.attention.reference import attention_probabilities

NAME = "llmfast"


def register():
    """Makes ``attn_implementation="llmfast"`` known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


def attention_mask(
    batch_size,
    q_length,
    kv_length,
    q_offset=0,
    kv_offset=0,
    mask_function=None,
    attention_mask=None,
    **kwargs,
):
    """The mask that the layers receive: None, the padding mask (B, T), or, where neither suffices, the whole mask
    (B, 1, S, T). The pattern is plain where transformers lets PyTorch's SDPA skip its mask."""
    from transformers.masking_utils import sdpa_mask

    plain = kwargs.get("allow_is_causal_skip", True) or kwargs.get("allow_is_bidirectional_skip", False)
    bidirectional = kwargs.get("allow_is_bidirectional_skip", False)
    aligned = bidirectional or q_offset + q_length == kv_offset + kv_length  # The last query at the last key.
    if plain and aligned:
        if attention_mask is None:
            return None
        padding = attention_mask[:, -kv_length:].bool()
        if padding.shape[1] == kv_length:
            return None if padding.all() else padding
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **kwargs,
    )


def attention_forward(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    sliding_window=None,
    softcap=None,
    is_causal=None,
    s_aux=None,
    **kwargs,
):
    """query (B, H, S, D), key and value (B, K, T, D) -> ``(out (B, S, H, D), None)``."""
    width, value_width = query.shape[-1], value.shape[-1]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = width**-0.5 if scaling is None else scaling
    if attention_mask is not None and attention_mask.dim() == 4:
        out = masked_attention(query, key, value, attention_mask, scale, softcap, s_aux, dropout)
        return out.transpose(1, 2), None
    # Widths that the kernel does not take are filled up with zeros, which change no product.
    common = -(-max(width, value_width) // 8) * 8
    query, key, value = (F.pad(x, (0, common - x.shape[-1])) for x in (query, key, value))
    options = {
        "causal": causal,
        "scale": scale,
        "window": None if sliding_window is None else (sliding_window - 1, 0 if causal else sliding_window - 1),
        "softcap": softcap,
        "sinks": s_aux,
        "dropout_p": dropout,
    }
    if attention_mask is None:
        out = flash_attention(query, key, value, **options).transpose(1, 2)
    else:
        out = unpadded_attention(query, key, value, attention_mask, options)
    return out[..., :value_width], None


def unpadded_attention(query, key, value, padding, options):
    """Attention among the tokens that ``padding`` (B, T) shows, packed; zeros for the others. -> (B, S, H,
    D)"""
    B, H, S, D = query.shape
    q_shown, k_shown = padding[:, -S:], padding
    q_at, k_at = (torch.nonzero(shown.flatten()).flatten() for shown in (q_shown, k_shown))
    packed = (x.transpose(1, 2).flatten(0, 1)[at] for x, at in ((query, q_at), (key, k_at), (value, k_at)))
    out = flash_attention(
        *packed,
        cu_seqlens_q=boundaries(q_shown),
        cu_seqlens_k=boundaries(k_shown),
        **options,
    )
    return out.new_zeros((B * S, H, D)).index_copy(0, q_at, out).view(B, S, H, D)


def boundaries(shown):
    return F.pad(shown.sum(dim=1).cumsum(dim=0), (1, 0)).to(torch.int32)


def masked_attention(query, key, value, mask, scale, softcap, sinks, dropout):
    """Attention under a whole mask, boolean or additive, (B or 1, 1, S, T)."""
    mask = mask[..., : key.shape[2]]
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    shown = mask if mask.dtype == torch.bool else mask == 0
    probabilities, _ = attention_probabilities(query, key, shown, scale=scale, softcap=softcap, sinks=sinks)
    probabilities = F.dropout(probabilities, dropout).to(value.dtype)
    return probabilities @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
