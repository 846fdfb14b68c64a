"""The families of transformers that llmfast reads, writes or patches: the one place to add another.

Where several families can say a decoder, it is written as the first of them.
"""

from __future__ import annotations

from llmfast.integrations.huggingface import tensor_names
from llmfast.integrations.huggingface.expert_settings import Llama4Experts, LocalExperts, QwenExperts
from llmfast.integrations.huggingface.family import Family
from llmfast.integrations.huggingface.rope_settings import SCALING_KEYS, NoRope, Rope, RopeByLayer
from llmfast.integrations.huggingface.settings import (
    Activation,
    Copies,
    Fixed,
    GemmaScores,
    Only,
    QkvBias,
    Quantization,
    Renamed,
    Scales,
    Setting,
    Switched,
    Temperature,
    Unread,
)
from llmfast.integrations.huggingface.tensor_layouts import PAIRED, PAIRED_TRANSPOSED, TRANSPOSED
from llmfast.integrations.huggingface.window_settings import AlternatingWindow, Chunks, SwitchedWindow, Window

_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "ff_width": "intermediate_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
_STATIC = tuple(kind for kind in SCALING_KEYS if kind != "dynamic")
_NEEDED = ("vocab_size", "width", "layers", "heads")


def _llama(
    rope: Rope | RopeByLayer | None = None, *, norm_eps: str = "rms_norm_eps", activation: str = "hidden_act"
) -> tuple[Setting, ...]:
    """The settings of Llama, which most families share; two of them by the names that a family has for them."""
    return (
        Quantization(),
        Only({"attention_bias": False, "mlp_bias": False}),
        Renamed(_SIZES | {"norm_eps": norm_eps}, required=_NEEDED),
        rope or Rope(),
        Activation(activation, gated=True),
        Renamed({"tie_embeddings": "tie_word_embeddings"}),
    )


# The weights of norms are differences from 1.
_GEMMA = {"scale_embedding": True, "norm_weight_offset": 1.0}


def _gemma2(rope: Rope | RopeByLayer, window: AlternatingWindow, scores: GemmaScores) -> tuple[Setting, ...]:
    """The settings that Gemma 2 and 3 share."""
    return (
        *_llama(rope, activation="hidden_activation"),
        Unread("hidden_act"),
        Fixed(_GEMMA | {"norm_position": "both"}),
        window,
        scores,
    )


def _cohere(rope: Rope) -> tuple[Setting, ...]:
    """The settings that Cohere and Cohere 2 share."""
    kinds = {"norm": "layer", "norm_bias": False, "parallel_residual": True, "rope_interleaved": True}
    return (Fixed(kinds), *_llama(rope, norm_eps="layer_norm_eps"), Scales({"logit_scale": "logit_scale"}))


_OLMO2 = {"qk_norm": True, "qk_norm_over": "all", "norm_position": "after"}


_GRANITE = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention_scale": "attention_multiplier",
}

_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_GPT_OSS = (
    Quantization(("mxfp4",)),
    Renamed(_SIZES, required=_NEEDED),
    Rope(150_000.0, default=_GPT_OSS_ROPE),
    Renamed({"tie_embeddings": "tie_word_embeddings"}),
    Fixed({"activation": "clamped_swiglu", "attention_sinks": True}),
    Scales({"swiglu_limit": "swiglu_limit", "swiglu_alpha": "swiglu_alpha"}),
    Switched("attention_bias", {"biases": "all"}),
    AlternatingWindow(2),
    LocalExperts(biases=True),
    Unread("hidden_act", "initial_context_length", "experts_per_token"),
)

_LLAMA4 = (
    Quantization(),
    Only({"attention_bias": False}),
    Renamed(_SIZES | {"ff_width": "intermediate_size_mlp"}, required=_NEEDED),
    Rope(500_000.0, _STATIC),
    Activation("hidden_act", gated=True),
    Renamed({"tie_embeddings": "tie_word_embeddings"}),
    Fixed({"rope_interleaved": True}),
    Switched("use_qk_norm", {"qk_l2_norm": True}),
    NoRope(empty_is_default=True),
    Chunks(),
    Temperature(),
    Llama4Experts(),
    Unread("for_llm_compressor"),
)

_GPT2 = (
    Quantization(),
    Only({"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}),
    Renamed(
        {
            "vocab_size": "vocab_size",
            "width": "n_embd",
            "layers": "n_layer",
            "heads": "n_head",
            "ff_width": "n_inner",
            "context": "n_positions",
            "norm_eps": "layer_norm_epsilon",
            "dropout": "resid_pdrop",
            "tie_embeddings": "tie_word_embeddings",
        },
        required=_NEEDED,
    ),
    Copies("dropout", ("attn_pdrop", "embd_pdrop")),
    Activation("activation_function", gated=False),
    Fixed({"positions": "learned", "norm": "layer", "biases": "all"}),
)

_GPT2_MODULES = {"MLP": "gelu_mlp", "LMHeadModel": "loss"}
_LLAMA_MODULES = {"RMSNorm": "rms_norm", "MLP": "gated_mlp", "Attention": "attention", "ForCausalLM": "loss"}
_GEMMA_MODULES = _LLAMA_MODULES | {"RMSNorm": "rms_norm_from_one"}
# Attention of another order than Llama's keeps its forward, which calls the implementation that is set.
_OWN_ATTENTION = {"RMSNorm": "rms_norm", "MLP": "gated_mlp", "ForCausalLM": "loss"}
_MIXTRAL_MODULES = {"RMSNorm": "rms_norm", "Attention": "attention", "ForCausalLM": "loss"}

FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            _GPT2,
            tensor_names.GPT2,
            _GPT2_MODULES,
            conv1d=True,
            ignored=r".*\.attn\.(masked_)?bias",
        ),
        Family("llama", "LlamaForCausalLM", _llama(), tensor_names.LLAMA, _LLAMA_MODULES),
        Family("mistral", "MistralForCausalLM", (*_llama(), Window()), tensor_names.LLAMA, _LLAMA_MODULES),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            (*_llama(), QkvBias(), SwitchedWindow("late")),
            tensor_names.LLAMA,
            _LLAMA_MODULES,
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            (Fixed({"qk_norm": True}), *_llama(), SwitchedWindow("late")),
            tensor_names.LLAMA,
            _LLAMA_MODULES,
        ),
        Family(
            "gemma",
            "GemmaForCausalLM",
            (
                *_llama()[:-2],
                Activation("hidden_act", gated=True, same_as={"gelu": "gelu_pytorch_tanh"}),
                Unread("hidden_activation"),
                Renamed({"tie_embeddings": "tie_word_embeddings"}),
                Fixed(_GEMMA),
            ),
            tensor_names.LLAMA,
            _GEMMA_MODULES,
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            _gemma2(Rope(), AlternatingWindow(2), GemmaScores(True)),
            tensor_names.GEMMA2,
            _GEMMA_MODULES,
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            (
                Fixed({"qk_norm": True}),
                *_gemma2(
                    RopeByLayer(Rope(1e6, _STATIC), 10_000.0, "rope_local_base_freq"),
                    AlternatingWindow(6, "sliding_window_pattern"),
                    GemmaScores(caps_attention=False),
                ),
                Unread("_sliding_window_pattern"),
            ),
            tensor_names.GEMMA2,
            _GEMMA_MODULES,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            (*_llama(Rope(kinds=())), Window(), Unread("original_max_position_embeddings")),
            tensor_names.PHI3,
            _OWN_ATTENTION | {"MLP": "packed_mlp"},
        ),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            (*_llama(Rope(2e6)), NoRope(), SwitchedWindow("unrotated"), Unread("max_window_layers")),
            tensor_names.LLAMA,
            _OWN_ATTENTION,
        ),
        Family("olmo2", "Olmo2ForCausalLM", (*_llama(), Fixed(_OLMO2)), tensor_names.OLMO2, _OWN_ATTENTION),
        Family(
            "olmo3",
            "Olmo3ForCausalLM",
            (
                *_llama(RopeByLayer(Rope(500_000.0, _STATIC), 500_000.0, "rope_theta")),
                Fixed(_OLMO2),
                AlternatingWindow(4),
            ),
            tensor_names.OLMO2,
            _OWN_ATTENTION,
        ),
        Family(
            "granite",
            "GraniteForCausalLM",
            (*_llama(), Scales(_GRANITE, divides=("logit_scale",))),
            tensor_names.LLAMA,
            _LLAMA_MODULES,
        ),
        Family(
            "gpt_oss",
            "GptOssForCausalLM",
            _GPT_OSS,
            tensor_names.GPT_OSS,
            {"RMSNorm": "rms_norm", "ForCausalLM": "loss"},
            layouts={
                "blocks.{i}.feed_forward.experts.gate_up": PAIRED_TRANSPOSED,
                "blocks.{i}.feed_forward.experts.gate_up_bias": PAIRED,
                "blocks.{i}.feed_forward.experts.down": TRANSPOSED,
            },
        ),
        Family(
            "llama4_text",
            "Llama4ForCausalLM",
            _LLAMA4,
            tensor_names.LLAMA4,
            {"TextRMSNorm": "rms_norm", "TextMLP": "gated_mlp", "ForCausalLM": "loss"},
            layouts={
                "blocks.{i}.feed_forward.experts.gate_up": TRANSPOSED,
                "blocks.{i}.feed_forward.experts.down": TRANSPOSED,
            },
        ),
        Family(
            "cohere",
            "CohereForCausalLM",
            (*_cohere(Rope(500_000.0)), Switched("use_qk_norm", {"qk_norm": True, "qk_norm_over": "own_head"})),
            tensor_names.COHERE,
            {"LayerNorm": "layer_norm_without_bias", "MLP": "gated_mlp", "ForCausalLM": "loss"},
        ),
        Family(
            "cohere2",
            "Cohere2ForCausalLM",
            (*_cohere(Rope()), AlternatingWindow(4, "sliding_window_pattern", full_has_no_rope=True)),
            tensor_names.COHERE,
            {"LayerNorm": "layer_norm_without_bias", "MLP": "gated_mlp", "ForCausalLM": "loss"},
        ),
        Family(
            "mixtral",
            "MixtralForCausalLM",
            (*_llama(Rope(1e6)), Window(), LocalExperts()),
            tensor_names.MIXTRAL,
            _MIXTRAL_MODULES,
        ),
        Family(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            (*_llama(), QkvBias(), SwitchedWindow("early_even"), QwenExperts(shared=True)),
            tensor_names.QWEN_MOE,
            _LLAMA_MODULES,
        ),
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            (
                Fixed({"qk_norm": True}),
                *_llama(),
                SwitchedWindow("all"),
                QwenExperts(shared=False),
                Unread("max_window_layers"),
            ),
            tensor_names.QWEN_MOE,
            _LLAMA_MODULES,
        ),
    )
}
DECODERS = {name: family for name, family in FAMILIES.items() if family.settings}
