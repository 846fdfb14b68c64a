"""What transformers takes for keys that a config.json leaves out, by family, and keys that change nothing here.

A test compares the tables with the configuration classes of the installed transformers.
"""

from __future__ import annotations

from typing import Any

_LLAMA = {
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": 11008,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_MISTRAL = _LLAMA | {
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_SWITCHED = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_QWEN = _LLAMA | _SWITCHED | {"num_key_value_heads": 32, "intermediate_size": 22016, "max_position_embeddings": 32768}
_EXPERTS = {"decoder_sparse_step": 1, "norm_topk_prob": False, "mlp_only_layers": None}

_GEMMA2 = {name: value for name, value in _LLAMA.items() if name != "hidden_act"} | {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "tie_word_embeddings": True,
}
_COHERE = {name: value for name, value in _LLAMA.items() if name != "rms_norm_eps"} | {
    "intermediate_size": 22528,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_inner": None,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "mixtral": _MISTRAL
    | {"rms_norm_eps": 1e-5, "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": _QWEN
    | _EXPERTS
    | {
        "num_key_value_heads": 16,
        "intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "qkv_bias": True,
    },
    "qwen3_moe": _QWEN
    | _EXPERTS
    | {
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "gemma": _LLAMA
    | {
        "num_key_value_heads": 16,
        "head_dim": 256,
        "intermediate_size": 24576,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "gemma2": _GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _GEMMA2 | {"max_position_embeddings": 131072},
    "smollm3": _LLAMA
    | {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
    "olmo2": _LLAMA | {"rms_norm_eps": 1e-5},
    "olmo3": _LLAMA | {"rms_norm_eps": 1e-5, "sliding_window": 4096},
    "cohere": _COHERE,
    "cohere2": _COHERE | {"sliding_window": 4096},
    "phi3": _LLAMA
    | {"intermediate_size": 8192, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": None},
    "gpt_oss": _LLAMA
    | {
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "attention_bias": True,
    },
    "llama4_text": _LLAMA
    | {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "moe_layers": None,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    },
    "granite": _LLAMA
    | {
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
}

# Where the file comes from, and what heads of other tasks read; how it is trained; how it is run, and by which code;
# how it generates: generation_config.json, and before there was one, config.json.
_HARMLESS = """
    model_type architectures transformers_version _name_or_path dtype torch_dtype tokenizer_class id2label label2id
    num_labels problem_type finetuning_task task_specific_params prefix summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout classifier_dropout unsloth_version unsloth_fixed

    initializer_range attention_dropout attn_pdrop embd_pdrop resid_pdrop router_aux_loss_coef output_router_logits
    router_jitter_noise

    use_cache output_hidden_states output_attentions return_dict torchscript use_bfloat16 tf_legacy_loss pretraining_tp
    chunk_size_feed_forward reorder_and_upcast_attn n_ctx _attn_implementation_autoset attn_implementation

    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens
"""
HARMLESS = frozenset(_HARMLESS.split())
"""Keys of a config.json that change nothing of what a causal language model computes in evaluation."""

INERT = {
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "use_bidirectional_attention": False,
}
"""Keys that change nothing at this one value."""
