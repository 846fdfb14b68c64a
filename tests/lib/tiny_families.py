"""Tiny random models of every causal and encoder-decoder family that the installed transformers registers."""

from __future__ import annotations

import torch


def _each(names: str, value: object) -> dict[str, object]:
    return dict.fromkeys(names.split(), value)


SMALL = {
    **_each("vocab_size", 96),
    **_each("hidden_size d_model n_embd embed_dim embedding_size", 32),
    **_each(
        """
        intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner intermediate_size_mlp
        ffn_hidden_size moe_shared_expert_intermediate_size
        """,
        48,
    ),
    **_each("moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size", 24),
    **_each(
        """
        num_hidden_layers num_layers encoder_layers decoder_layers n_layer n_layers num_decoder_layers
        num_encoder_layers
        """,
        2,
    ),
    **_each(
        """
        num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads
        """,
        4,
    ),
    **_each("num_key_value_heads type_vocab_size", 2),
    **_each("head_dim d_kv qk_rope_head_dim qk_nope_head_dim v_head_dim", 8),
    **_each("q_lora_rank kv_lora_rank", 16),
    **_each("max_position_embeddings n_positions n_ctx", 64),
    **_each("num_experts num_local_experts n_routed_experts", 4),
    **_each("num_experts_per_tok n_shared_experts", 2),
    **_each("n_group topk_group first_k_dense_replace", 1),
    **_each("sliding_window attention_chunk_size", 5),
    **_each(
        """
        attention_dropout dropout activation_dropout dropout_rate attn_pdrop resid_pdrop embd_pdrop
        hidden_dropout_prob attention_probs_dropout_prob hidden_dropout embedding_dropout attn_dropout_rate
        router_jitter_noise encoder_layerdrop decoder_layerdrop layerdrop
        """,
        0.0,
    ),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
"""Settings that make a configuration tiny, by the names that families give them."""


def configuration(kind: str, **changes):
    """The configuration of a family, as small as ``SMALL`` and ``changes`` (None leaves one out) make it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    known = cls.__init__.__code__.co_varnames if not hasattr(cls, "__dataclass_fields__") else cls.__dataclass_fields__
    settings = {name: value for name, value in SMALL.items() if name in known or name in cls.attribute_map}
    settings = {**settings, **changes}
    return cls(**{name: value for name, value in settings.items() if value is not None})


def randomize(model, seed: int = 0) -> None:
    """Weights large enough for attention to decide what comes out."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        mean, std = (0.5, 0.2) if parameter.ndim == 1 else (0.0, 0.15)
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)


# What a tiny model of a family needs beside SMALL.
_LATENT = {"num_key_value_heads": 4}
_MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4}
_LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_ZAMBA = {
    "layers_block_type": ["mamba", "hybrid", "hybrid"],
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "mamba_d_state": 8,
    "use_mamba_kernels": False,
}
CHANGES = {
    **_each(
        """
        axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa
        longcat_flash minicpm3 youtu
        """,
        _LATENT,
    ),
    **_each("qwen3_5_moe_text qwen3_5_text qwen3_next", _LINEAR),
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"], "num_mtp_layers": 0, **_LATENT},
    "bamba": _MAMBA_2 | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48},
    },
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "laurel_rank": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": _MAMBA_2 | {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        **_LATENT,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "n_groups": 2, "head_dim": 8, "state_size": 8},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 5},
    "zamba": _ZAMBA | {"n_mamba_heads": 2},
    "zamba2": _ZAMBA | {"n_mamba_heads": 4, "chunk_size": 4},
    "zaya": {"num_experts_per_tok": 1},
}

_IMAGES = "takes images or sound beside text: its language model is a family of its own in this table"
NOT_TINY = {
    **_each(
        """
        audioflamingo3 dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git glmasr got_ocr2
        granite_speech granite_speech_plus llama4 mllama moss_transcribe_diarize musicflamingo musicgen
        musicgen_melody nemo_speechlm phi4_multimodal qwen2_audio qwen3_5 qwen3_5_moe qwen3_asr qwen4_exp
        t5gemma2 vibevoice_asr voxtral voxtral_realtime
        """,
        _IMAGES,
    ),
    **_each("encoder-decoder t5gemma", "is made of two configurations of other families"),
    **_each("gemma4_assistant gemma4_unified_assistant", "drafts for another model, whose states it reads"),
    "blt": "is made of five configurations, of patches of bytes",
    "cohere_compass_text": "its rotary embedding needs a table by kinds of layers, which only its own files have",
    "qwen4_exp_text": "an experiment whose sizes depend on each other and have no defaults",
    "reformer": "hashes in training mode only, where two runs differ",
    "xmod": "needs a language that is set on the model",
}
"""Families without a tiny model that this table can describe, and why."""


def families() -> list[tuple[str, str, bool]]:
    """All that are registered: the model_type, the class, and whether it has an encoder."""
    from transformers.models.auto import modeling_auto

    causal, pairs = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    return [(*each, False) for each in causal.items()] + [(*each, True) for each in pairs.items()]
