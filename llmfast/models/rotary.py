"""Tables of rotary angles: plain RoPE, and the ways to stretch it to longer contexts."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from llmfast.models.config import DecoderConfig, RopeScaling


def rotary_table(config: DecoderConfig, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, D/2) of the rotary angles position · frequency (Su et al. 2021, eq. 15).

    Under dynamic scaling the frequencies depend on ``length``. Angles are formed in float64: in float32 a late
    position's angle is off by its last digits.
    """
    positions = torch.arange(length, dtype=torch.float64, device=device)
    angles = torch.outer(positions, frequencies(config, length, device))
    size = temperature(config)
    return (angles.cos() * size).float(), (angles.sin() * size).float()


def window_rotary_table(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """As ``rotary_table``, of layers with a sliding window; empty where these have no base of their own."""
    if config.window_rope_base is None or config.positions != "rope":
        return torch.empty(0), torch.empty(0)
    plain = dataclasses.replace(config, rope_base=config.window_rope_base, rope_scaling=RopeScaling())
    return rotary_table(plain, config.context)


def rotary_rows(config: DecoderConfig, positions: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, D/2) at ``positions`` (N,), each of the table of length ``reach`` (N,)."""
    lengths, which = reach.unique(return_inverse=True)
    stretched = torch.stack([frequencies(config, length, positions.device) for length in lengths.tolist()])
    angles = positions.double().unsqueeze(1) * stretched[which]
    size = temperature(config)
    return (angles.cos() * size).float(), (angles.sin() * size).float()


def frequencies(config: DecoderConfig, length: int, device: torch.device | None = None) -> Tensor:
    """Radians that each pair of columns turns from one position to the next: (D/2,) in float64."""
    kind, factor = config.rope_scaling.kind, config.rope_scaling.factor
    D, base, original = config.head_width, config.rope_base, config.original_context
    if kind == "dynamic" and length > original:
        # The slowest pair turns as far over `length` as it did over the original context.
        base *= (factor * length / original - (factor - 1)) ** (D / (D - 2))
    plain = base ** -(torch.arange(0, D, 2, dtype=torch.float64, device=device) / D)
    if kind == "linear":
        return plain / factor
    if kind == "llama3":
        return plain * (1 - _llama3_stretched(config, plain) * (1 - 1 / factor))
    if kind == "yarn":
        return plain * (1 - _yarn_stretched(config, plain) * (1 - 1 / factor))
    return plain


def temperature(config: DecoderConfig) -> float:
    """Factor on cosines and sines, by which YaRN sharpens attention over more keys (section 3.4)."""
    scaling = config.rope_scaling
    if scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def _llama3_stretched(config: DecoderConfig, plain: Tensor) -> Tensor:
    """How far each frequency is stretched, from 0 (kept) to 1 (divided by factor), by turns in the first context."""
    low, high = config.rope_scaling.low_frequency_factor, config.rope_scaling.high_frequency_factor
    turns = config.original_context * plain / (2 * math.pi)
    return 1 - ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_stretched(config: DecoderConfig, plain: Tensor) -> Tensor:
    """As ``_llama3_stretched``, by a ramp over the pairs (YaRN, section 3.2)."""
    D, scaling = config.head_width, config.rope_scaling

    def pair_that_turns(times: float) -> float:
        return D * math.log(config.original_context / (times * 2 * math.pi)) / (2 * math.log(config.rope_base))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, D - 1)
    pairs = torch.arange(D // 2, dtype=torch.float64, device=plain.device)
    return ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
