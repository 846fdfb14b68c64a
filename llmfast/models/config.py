"""What a decoder is made of, as data: sizes and choices, with every consistency rule checked on creation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and choices of one decoder (pre-norm blocks, RMSNorm, RoPE, SwiGLU, grouped-query attention)."""

    vocab_size: int = 4096
    """V: rows of the embedding table. A training run takes it from its tokenizer."""
    width: int = 128
    """E: width of the residual stream."""
    layers: int = 3
    """Number of blocks."""
    heads: int = 4
    """H: query heads."""
    kv_heads: int | None = None
    """K: key/value heads, a divisor of heads (grouped-query attention); heads if left out."""
    head_width: int | None = None
    """D: width of one head; width / heads if left out."""
    ff_width: int | None = None
    """F: width of the SwiGLU feed-forward; 8/3 of width rounded up to a multiple of 32 if left out."""
    context: int = 128
    """Longest sequence the model is trained on and generates."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square inside RMSNorm."""
    qk_norm: bool = False
    """Normalise each query and key head before attention."""
    tie_embeddings: bool = True
    """Share the embedding table with the output head."""
    embedding_init: Literal["linear", "normal"] = "linear"
    """linear: variance 2/(V + E) truncated at 3 sigma, as for a linear layer; normal: standard deviation 0.02."""

    scale_embedding: bool = False
    """Multiply embeddings by sqrt(E) on their way in (Vaswani et al. 2017, section 3.4; Gemma). With a tied table of
    linear-layer size, tokens would otherwise start far quieter than what the blocks add to them."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}; set model.head_width"
            )
        fill = {
            "kv_heads": self.heads,
            "head_width": self.width // self.heads,
            "ff_width": -(-8 * self.width // (3 * 32)) * 32,
        }
        for name, value in fill.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}: "
                "each key/value head serves the same number of query heads"
            )
        if self.head_width % 2:
            raise ValueError(f"model.head_width {self.head_width} is odd; rotary embedding turns pairs")

    @property
    def block_parameters(self) -> int:
        """Parameters of all blocks and the final norm: everything but the embedding table and the output head."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        if self.qk_norm:
            attention += 2 * self.head_width
        feed_forward = 3 * self.width * self.ff_width
        return self.layers * (attention + feed_forward + 2 * self.width) + self.width

    @property
    def parameters(self) -> int:
        """All parameters, a tied table counted once."""
        tables = 1 if self.tie_embeddings else 2
        return self.block_parameters + tables * self.vocab_size * self.width

    def flops_per_token(self, sequence: int | None = None) -> float:
        """Floating-point operations of one training step per token: forward plus twice that for backward.

        2 per parameter that takes part in a matrix product (an embedding look-up does not) and, in attention,
        4·H·D per visible key, of which a causal sequence sees half on average (PaLM, appendix B).
        """
        matrix_parameters = self.block_parameters + self.vocab_size * self.width
        keys = (sequence or self.context) / 2
        return 3 * (2 * matrix_parameters + 4 * self.layers * self.heads * self.head_width * keys)
