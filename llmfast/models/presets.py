"""Published and customary model shapes by name.

>>> preset("gpt2").parameters
124475904
>>> preset("qwen2.5-0.5b", context=1024).context
1024
"""

from __future__ import annotations

import difflib
from typing import Any

from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling


def preset(name: str, **changes: Any) -> DecoderConfig:
    """The configuration of that name, with ``changes`` to its settings.

    Raises:
        ValueError: no preset of that name, or changes that cannot be.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"{name} is not a preset; {hint}")
    return DecoderConfig(**PRESETS[name] | changes)


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Radford et al. 2019, table 2."""
    return {
        "vocab_size": 50257,
        "vocab_multiple": 64,
        "width": width,
        "layers": layers,
        "heads": heads,
        "context": 1024,
        "positions": "learned",
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "biases": "all",
        "dropout": 0.1,
    }


def _modern(width: int, ff_width: int, layers: int, heads: int) -> dict[str, Any]:
    """A Llama-like model over GPT-2's vocabulary."""
    return {
        "vocab_size": 50257,
        "vocab_multiple": 64,
        "width": width,
        "ff_width": ff_width,
        "layers": layers,
        "heads": heads,
        "context": 1024,
        "norm_eps": 1e-5,
    }


def _llama3(**settings: Any) -> dict[str, Any]:
    """Grattafiori et al. 2024, table 3; Llama 3.1 and 3.2 stretch RoPE from 8,192 tokens."""
    return dict(vocab_size=128256, kv_heads=8, context=131072, rope_base=500_000.0, norm_eps=1e-5, **settings)


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "tiny": _modern(512, 1344, 4, 16),
    "small": _modern(768, 3072, 12, 12),
    "medium": _modern(1024, 4096, 24, 16),
    "large": _modern(1280, 5120, 36, 20),
    "llama-3.2-1b": _llama3(
        width=2048,
        ff_width=8192,
        layers=16,
        heads=32,
        rope_scaling=RopeScaling("llama3", factor=32.0, original_context=8192),
    ),
    "llama-3.1-8b": _llama3(
        width=4096,
        ff_width=14336,
        layers=32,
        heads=32,
        rope_scaling=RopeScaling("llama3", factor=8.0, original_context=8192),
        tie_embeddings=False,
    ),
    "qwen2.5-0.5b": {
        "vocab_size": 151936,
        "width": 896,
        "ff_width": 4864,
        "layers": 24,
        "heads": 14,
        "kv_heads": 2,
        "context": 32768,
        "rope_base": 1_000_000.0,
        "biases": "qkv",
    },
    "qwen3-0.6b": {
        "vocab_size": 151936,
        "width": 1024,
        "ff_width": 3072,
        "layers": 28,
        "heads": 16,
        "kv_heads": 8,
        "head_width": 128,
        "context": 40960,
        "rope_base": 1_000_000.0,
        "qk_norm": True,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "width": 576,
        "ff_width": 1536,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "context": 8192,
        "rope_base": 100_000.0,
        "norm_eps": 1e-5,
    },
    "mixtral-8x7b": {
        "vocab_size": 32000,
        "width": 4096,
        "ff_width": 14336,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "context": 32768,
        "rope_base": 1_000_000.0,
        "norm_eps": 1e-5,
        "tie_embeddings": False,
        "experts": ExpertsConfig(count=8, active=2, auxiliary_weight=0.02),
    },
    # Mixtral's form at a size that trains on one GPU: two of eight experts do the arithmetic of one dense feed-forward.
    "mixtral-mini": {
        "vocab_size": 50257,
        "vocab_multiple": 64,
        "width": 512,
        "layers": 8,
        "heads": 8,
        "kv_heads": 4,
        "context": 1024,
        "norm_eps": 1e-5,
        "experts": ExpertsConfig(count=8, active=2, width=704, bias_rate=1e-3, auxiliary_weight=1e-4),
    },
}
