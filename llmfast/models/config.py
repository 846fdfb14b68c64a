"""What a decoder is made of, as data: sizes and choices, with every consistency rule checked on creation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmfast.models.activations import ACTIVATIONS, ActivationName
from llmfast.models.size import flops_by_part, parameters_by_part

if TYPE_CHECKING:
    from torch import Tensor

Checkpointing = Literal["none", "selective", "full"]
"""none: keep everything; selective: keep matrix products and attention, compute norms, rotations and activations again;
full: keep only what enters a block, and run it twice."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched so that a model reads longer than it was first trained for."""

    kind: Literal["none", "linear", "dynamic", "llama3", "yarn"] = "none"
    """linear: every frequency divided by factor (Chen et al. 2023). dynamic: a base that grows with the sequence
    (NTK-aware). llama3: low frequencies only (Llama 3.1). yarn: by part, with a temperature (Peng et al. 2023)."""
    factor: float = 1.0
    """How many times longer the context becomes."""
    original_context: int | None = None
    """Context of the first training; model.context / factor if left out."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths above original_context / this are divided by factor in full."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths below original_context / this are kept."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this within original_context are kept."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are divided by factor in full."""
    attention_factor: float | None = None
    """yarn: factor on cosines and sines; 0.1·ln(factor) + 1 if left out (YaRN, section 3.4)."""
    truncate: bool = True
    """yarn: round the bounds of the ramp between the two to whole pairs."""


@dataclass(frozen=True)
class ExpertsConfig:
    """Mixture of experts: each token is sent to a few of many feed-forwards."""

    count: int = 0
    """Experts a layer; 0 for none, a plain feed-forward."""
    active: int = 2
    """Experts that a token is sent to (top-k)."""
    width: int | None = None
    """Feed-forward width of one expert; model.ff_width if left out."""
    pattern: str = "e"
    """Which layers have experts (e) and which are dense (d), repeated over the layers: "de" is every second one."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """How the router's logits become scores (sigmoid: DeepSeek-V3)."""
    normalize: bool = True
    """Divide the scores of a token's experts by their sum."""
    shared_width: int = 0
    """Width of an expert that every token passes (DeepSeek's n shared experts are one n times as wide); 0 for none."""
    biases: bool = False
    """Whether the router and the experts have biases (GPT-OSS)."""
    scale_input: bool = False
    """Multiply what enters an expert by its score, and not what it gives (Llama 4)."""
    shared_gate: bool = False
    """Weigh the shared expert by a sigmoid of the token (Qwen2-MoE)."""
    auxiliary_weight: float = 0.01
    """Weight of the load-balancing loss (Switch Transformer, eq. 4); 0 leaves it out."""
    bias_rate: float = 0.0
    """Step by which the router's bias moves against imbalance after each optimizer step (auxiliary-loss-free
    balancing, Wang et al. 2024, who use 0.001); 0 leaves it out."""
    z_loss_weight: float = 0.0
    """Weight of the squared log-sum of the router's logits (ST-MoE, eq. 5); 0 leaves it out."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and choices of one decoder: GPT-2, Llama, Qwen, Mixtral and what lies between."""

    vocab_size: int = 4096
    """V: number of tokens. A training run takes it from its tokenizer."""
    vocab_multiple: int = 1
    """Fill the embedding table up to a multiple of this (GPT-2: 50257 to 50304 by 64), which matrix products like;
    the rows added are never predicted and get no gradient."""
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
    """F: width of the feed-forward; if left out, 4 times width for gelu, 8/3 rounded up to a multiple of 32 for gated
    activations."""
    context: int = 128
    """Longest sequence the model is trained on and generates."""

    positions: Literal["rope", "learned"] = "rope"
    """rope: queries and keys are turned by their position; learned: a table of positions is added to the embedding."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling = RopeScaling()
    """Stretching of the rotary frequencies."""
    rope_pattern: str = "r"
    """Which layers rotate queries and keys (r) and which use no positions (n), repeated over the layers: "rrrn" is
    three of four (SmolLM3)."""
    rope_interleaved: bool = False
    """Turn pairs of neighboring columns of a head (Cohere), and not columns half a head apart."""
    window_rope_base: float | None = None
    """Base of the rotary frequencies, then without scaling, of layers with a sliding window (Gemma 3); rope_base and
    rope_scaling if left out."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    norm_bias: bool = True
    """Whether LayerNorm has a bias (Cohere has none)."""
    norm_eps: float = 1e-6
    """Added to the mean square (or the variance) inside the norms."""
    norm_weight_offset: float = 0.0
    """Added to the weights of RMSNorm (Gemma: 1, whose weights are differences from 1)."""
    norm_position: Literal["before", "after", "both"] = "before"
    """Where attention and feed-forward are normalised: their input, their output before it joins the residual stream
    (OLMo 2), or both (Gemma 2)."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same normalised input, and their outputs are added together (Cohere)."""
    qk_norm: bool = False
    """Normalise queries and keys before attention."""
    qk_norm_over: Literal["head", "own_head", "all"] = "head"
    """head: qk_norm normalises each head, with weights that all heads share (Qwen3); own_head: with weights of its own
    (Cohere); all: all heads of a token together (OLMo 2)."""
    qk_l2_norm: bool = False
    """Divide each head of queries and keys by its root mean square after the rotation, in layers that rotate them,
    without weights (Llama 4)."""
    query_temperature: float | None = None
    """In layers without positions, queries are multiplied by 1 + this · ln(1 + floor((position + 1) / n)), where n is
    query_temperature_tokens (Nakanishi 2025; Llama 4: 0.1); not at all if left out."""
    query_temperature_tokens: int = 8192
    """Tokens from one such factor to the next."""
    embedding_scale: float | None = None
    """Factor on embeddings on their way in (Granite); 1 if left out, or that of scale_embedding."""
    residual_scale: float = 1.0
    """Factor on what attention and feed-forward add to the residual stream (Granite)."""
    logit_scale: float = 1.0
    """Factor on the logits of tokens (Granite, Cohere), before logit_softcap."""
    attention_scale: float | None = None
    """Factor on the products of queries and keys; 1 / sqrt(head_width) if left out."""
    attention_softcap: float | None = None
    """Bound c of attention scores s, which become c·tanh(s / c) (Gemma 2: 50); none if left out."""
    logit_softcap: float | None = None
    """The same for the logits of tokens (Gemma 2: 30)."""
    attention_sinks: bool = False
    """Each head of attention has a learned logit, which joins the softmax and stands for no value (GPT-OSS)."""
    activation: ActivationName = "swiglu"
    """Activation of the feed-forward; swiglu, geglu and clamped_swiglu (GPT-OSS) are gated. tanh: GPT-2's approximation
    of gelu."""
    swiglu_limit: float = 7.0
    """clamped_swiglu: bound of the gate, from above, and of what it multiplies, on both sides."""
    swiglu_alpha: float = 1.702
    """clamped_swiglu: factor on the gate inside the sigmoid."""
    biases: Literal["none", "qkv", "all"] = "none"
    """Which linear layers of the blocks have a bias; qkv: those of queries, keys and values (Qwen2). Experts have a
    setting of their own, experts.biases."""
    window: int | None = None
    """Sliding-window attention: each token sees this many, itself included; all before it if left out."""
    attention_chunk: int | None = None
    """Chunked attention, in layers that window_pattern calls c: documents are cut into chunks of this many tokens, and
    each token sees those before it in its chunk, and itself (Llama 4)."""
    window_pattern: str = "s"
    """Which layers slide (s), attend by chunks (c) or see all (f), repeated over the layers: of "sssf", three of four
    slide."""
    dropout: float = 0.0
    """Probability of dropping an element of the embedding, of attention and of what a block adds (GPT-2: 0.1)."""
    experts: ExpertsConfig = ExpertsConfig()
    """Mixture of experts in place of the feed-forward."""

    tie_embeddings: bool = True
    """Share the embedding table with the output head."""
    embedding_init: Literal["linear", "normal", "fan_in", "unit"] = "linear"
    """linear: variance 2/(V + E) truncated at 3 sigma, as for a linear layer; normal: standard deviation 0.02 (GPT-2);
    fan_in: variance 1/E; unit: variance 1."""
    matrix_init: Literal["fan_in", "linear", "normal"] = "fan_in"
    """Matrices of the blocks. fan_in: variance 1/in; linear: 2/(in + out); normal: standard deviation 0.02 (GPT-2)."""
    scale_embedding: bool = False
    """Multiply embeddings by sqrt(E) on their way in, an embedding_scale that follows the width (Vaswani et al. 2017,
    section 3.4; Gemma). With a tied table of linear-layer size, tokens would otherwise start far quieter than what the
    blocks add to them."""
    smear: bool = False
    """Add to each embedding a learned share of the one before it, with which small models learn to copy early."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "vocab_multiple", "width", "layers", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}; set model.head_width"
            )
        expansion = -(-8 * self.width // (3 * 32)) * 32 if self.gated else 4 * self.width
        fill = {"kv_heads": self.heads, "head_width": self.width // self.heads, "ff_width": expansion}
        for name, value in fill.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("kv_heads", "ff_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}: "
                "each key/value head serves the same number of query heads"
            )
        if self.head_width % 8 or not 8 <= self.head_width <= 256:
            raise ValueError(
                f"model.head_width {self.head_width} is not a multiple of 8 from 8 to 256, which attention takes"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be at least 0 and below 1, got {self.dropout}")
        self._check_window()
        self._check_rope()
        self._check_norms()
        self._check_scores()
        self._check_experts()

    def _check_window(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"model.window must be at least 1, got {self.window}")
        _check_pattern("model.window_pattern", self.window_pattern, "scf")
        if self.attention_chunk is not None and self.attention_chunk < 1:
            raise ValueError(f"model.attention_chunk must be at least 1, got {self.attention_chunk}")
        if ("c" in self.window_pattern) != (self.attention_chunk is not None):
            raise ValueError(
                f"model.attention_chunk {self.attention_chunk} and model.window_pattern {self.window_pattern!r}: "
                "layers with the letter c need the chunk, and the chunk needs such layers"
            )

    def _check_rope(self) -> None:
        scaling = self.rope_scaling
        _check_pattern("model.rope_pattern", self.rope_pattern, "rn")
        for name in ("rope_base", "window_rope_base"):
            base = getattr(self, name)
            if base is not None and not 0 < base < math.inf:
                raise ValueError(f"model.{name} must be a positive number, got {base}")
        if not 1 <= scaling.factor < math.inf:
            raise ValueError(f"model.rope_scaling.factor must be at least 1, got {scaling.factor}")
        if scaling.kind != "none" and self.positions != "rope":
            raise ValueError(f"model.rope_scaling needs model.positions rope, but they are {self.positions}")
        if self.rope_interleaved and self.positions != "rope":
            raise ValueError(f"model.rope_interleaved needs model.positions rope, but they are {self.positions}")
        if self.query_temperature is not None and (self.positions != "rope" or scaling.kind == "dynamic"):
            raise ValueError("model.query_temperature needs model.positions rope, without dynamic model.rope_scaling")
        if self.query_temperature_tokens < 1:
            raise ValueError(f"model.query_temperature_tokens must be at least 1, got {self.query_temperature_tokens}")
        if self.window_rope_base is not None and scaling.kind == "dynamic":
            raise ValueError("model.window_rope_base does not go with dynamic model.rope_scaling")

    def _check_norms(self) -> None:
        if not 0 <= self.norm_eps < math.inf:
            raise ValueError(f"model.norm_eps must be a number of at least 0, got {self.norm_eps}")
        if self.parallel_residual and self.norm_position != "before":
            raise ValueError(
                f"model.parallel_residual needs model.norm_position before, but it is {self.norm_position}"
            )
        if not math.isfinite(self.norm_weight_offset):
            raise ValueError(f"model.norm_weight_offset must be a finite number, got {self.norm_weight_offset}")
        if self.norm_weight_offset and self.norm != "rms":
            raise ValueError(f"model.norm_weight_offset needs model.norm rms, but it is {self.norm}")

    def _check_scores(self) -> None:
        for name in (
            "embedding_scale",
            "residual_scale",
            "logit_scale",
            "attention_scale",
            "attention_softcap",
            "logit_softcap",
            "swiglu_limit",
            "swiglu_alpha",
            "query_temperature",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"model.{name} must be a positive number, got {value}")
        if self.scale_embedding and self.embedding_scale is not None:
            raise ValueError(f"model.scale_embedding and model.embedding_scale {self.embedding_scale}: set one of them")

    def _check_experts(self) -> None:
        experts = self.experts
        _check_pattern("model.experts.pattern", experts.pattern, "ed")
        for name in ("count", "shared_width", "auxiliary_weight", "bias_rate", "z_loss_weight"):
            if not 0 <= getattr(experts, name) < math.inf:
                raise ValueError(f"model.experts.{name} must be a number of at least 0, got {getattr(experts, name)}")
        if experts.width is not None and experts.width < 1:
            raise ValueError(f"model.experts.width must be at least 1, got {experts.width}")
        if not experts.count:
            return
        if not self.gated:
            raise ValueError(f"model.experts need a gated model.activation, such as swiglu, not {self.activation}")
        if not 1 <= experts.active <= experts.count:
            raise ValueError(
                f"model.experts.active must be from 1 to model.experts.count {experts.count}, got {experts.active}"
            )
        if experts.shared_gate and not experts.shared_width:
            raise ValueError("model.experts.shared_gate weighs a shared expert: set model.experts.shared_width")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward multiplies by a gate."""
        return ACTIVATIONS[self.activation].gated

    def activation_function(self) -> Callable[..., Tensor]:
        """The activation of the feed-forward; see ``llmfast.models.activations``."""
        settings = {"limit": self.swiglu_limit, "alpha": self.swiglu_alpha}
        return ACTIVATIONS[self.activation].function(**settings if self.activation == "clamped_swiglu" else {})

    @property
    def embedding_factor(self) -> float:
        """What embeddings are multiplied by on their way in."""
        return self.width**0.5 if self.scale_embedding else self.embedding_scale or 1.0

    @property
    def attention_factor(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.attention_scale or self.head_width**-0.5

    @property
    def table_rows(self) -> int:
        """Rows of the embedding table: the vocabulary, filled up."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def expert_width(self) -> int:
        """Feed-forward width of one expert."""
        return self.experts.width or self.ff_width

    @property
    def original_context(self) -> int:
        """Context of the first training, which RoPE scaling starts from."""
        return self.rope_scaling.original_context or max(1, int(self.context / self.rope_scaling.factor))

    def window_of(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included; None for all before it."""
        return self.window if self.window_pattern[layer % len(self.window_pattern)] == "s" else None

    def chunk_of(self, layer: int) -> int | None:
        """How many tokens the chunks have within which this layer attends; None where it does not do so."""
        return self.attention_chunk if self.window_pattern[layer % len(self.window_pattern)] == "c" else None

    def rotation_of(self, layer: int) -> Literal["none", "all", "window"]:
        """Which rotary table this layer uses: none, that of all layers, or that of layers with a sliding window."""
        if self.positions != "rope" or self.rope_pattern[layer % len(self.rope_pattern)] == "n":
            return "none"
        return "window" if self.window_rope_base is not None and self.window_of(layer) is not None else "all"

    @property
    def widest_window(self) -> int | None:
        """How many tokens a token sees at most in any layer, itself included; None if a layer sees all before it."""
        return None if None in map(self.window_of, range(self.layers)) else self.window

    def has_experts(self, layer: int) -> bool:
        """Whether this layer's feed-forward is a mixture of experts."""
        pattern = self.experts.pattern
        return self.experts.count > 0 and pattern[layer % len(pattern)] == "e"

    @property
    def parameters(self) -> int:
        """All parameters, a tied table counted once."""
        return sum(parameters_by_part(self).values())

    def flops_per_token(self, sequence: int | None = None) -> float:
        """Floating-point operations of one training step per token; see ``llmfast.models.size.flops_by_part``."""
        return sum(flops_by_part(self, sequence).values())


def _check_pattern(name: str, pattern: str, letters: str) -> None:
    if not pattern or set(pattern) - set(letters):
        said = f"{', '.join(letters[:-1])} and {letters[-1]}"
        raise ValueError(f"{name} is made of the letters {said}, got {pattern!r}")
