"""Sizes from a configuration alone: parameters and arithmetic, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfast.models.config import DecoderConfig


def parameters_by_part(config: DecoderConfig) -> dict[str, int]:
    """Parameters of each part of the model, a tied table counted once."""
    E, layers = config.width, config.layers
    per_norm = 2 if config.norm == "layer" and config.norm_bias else 1
    norms = (norms_of_block(config) * layers + 1) * E + layers * _qk_norms(config)
    moe_layers = sum(map(config.has_experts, range(layers)))
    experts = config.experts
    parts = {
        "embedding": config.table_rows * E,
        "positions": config.context * E if config.positions == "learned" else 0,
        "smear": E if config.smear else 0,
        "attention": layers * _attention(config),
        "feed-forward": (layers - moe_layers) * _feed_forward(config, config.ff_width),
        "experts": moe_layers * experts.count * _expert(config),
        "shared experts": moe_layers * _feed_forward(config, experts.shared_width) if experts.shared_width else 0,
        "routers": moe_layers * (E * (experts.count + experts.shared_gate) + experts.count * experts.biases),
        "norms": per_norm * norms,
        "head": 0 if config.tie_embeddings else config.table_rows * E,
    }
    return {part: count for part, count in parts.items() if count}


def experts_share(config: DecoderConfig) -> float:
    """The share of the parameters that belongs to experts."""
    parts = parameters_by_part(config)
    return parts.get("experts", 0) / sum(parts.values())


def active_parameters(config: DecoderConfig) -> int:
    """Parameters that one token passes: of all experts, those it is sent to."""
    parts = parameters_by_part(config)
    idle = 1 - config.experts.active / max(1, config.experts.count)
    return sum(parts.values()) - round(parts.get("experts", 0) * idle)


def flops_by_part(config: DecoderConfig, sequence: int | None = None) -> dict[str, float]:
    """Floating-point operations of one training step per token: forward plus twice that for backward.

    2 per weight of a matrix product (an embedding look-up is none) and, in attention, 4·H·D per visible key, of which
    a causal sequence of S tokens sees S/2 on average (PaLM, appendix B), or what its window lets it see.
    """
    S = sequence or config.context
    E, layers = config.width, config.layers
    moe_layers = sum(map(config.has_experts, range(layers)))
    keys = sum(_mean_keys(S, config.window_of(layer), config.chunk_of(layer)) for layer in range(layers))
    experts = config.experts
    per_expert_layer = experts.active * config.expert_width + experts.shared_width
    forward = {
        "attention products": 2 * layers * _attention_matrices(config),
        "attention scores": 4 * config.heads * config.head_width * keys,
        "feed-forward": 2 * (layers - moe_layers) * (3 if config.gated else 2) * E * config.ff_width,
        "experts": 2 * moe_layers * (3 * E * per_expert_layer + E * experts.count),
        "head": 2 * config.table_rows * E,
    }
    return {part: 3.0 * count for part, count in forward.items() if count}


def cache_bytes_per_token(config: DecoderConfig, bytes_per_number: int = 2) -> int:
    """Keys and values kept per token of a sequence."""
    return 2 * config.layers * config.kv_heads * config.head_width * bytes_per_number


def _attention_matrices(config: DecoderConfig) -> int:
    return config.width * config.head_width * (2 * config.heads + 2 * config.kv_heads)


def _attention(config: DecoderConfig) -> int:
    biases = (config.heads + 2 * config.kv_heads) * config.head_width if config.biases != "none" else 0
    sinks = config.heads if config.attention_sinks else 0
    return _attention_matrices(config) + biases + (config.width if config.biases == "all" else 0) + sinks


def _expert(config: DecoderConfig) -> int:
    E, W = config.width, config.expert_width
    return 3 * E * W + (2 * W + E if config.experts.biases else 0)


def _feed_forward(config: DecoderConfig, F: int) -> int:
    inputs = 2 if config.gated else 1
    return (inputs + 1) * config.width * F + (inputs * F + config.width if config.biases == "all" else 0)


def norms_of_block(config: DecoderConfig) -> int:
    """How many norms of the width of the residual stream a block has."""
    return {"before": 1 if config.parallel_residual else 2, "after": 2, "both": 4}[config.norm_position]


def _qk_norms(config: DecoderConfig) -> int:
    """Weights of the norms of a layer's queries and keys."""
    if not config.qk_norm:
        return 0
    heads = 2 if config.qk_norm_over == "head" else config.heads + config.kv_heads
    return heads * config.head_width


def _mean_keys(S: int, window: int | None, chunk: int | None) -> float:
    """Keys a token of a sequence sees on average: S/2, or with a window w < S, w less what the first tokens lack, or
    half a chunk (the last one counts as a whole)."""
    if chunk is not None:
        return min(S, chunk) / 2
    if window is None or window >= S:
        return S / 2
    return window - window * window / (2 * S)
