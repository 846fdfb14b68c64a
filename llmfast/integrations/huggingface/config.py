"""config.json of transformers ↔ DecoderConfig.

``from_config`` and ``to_config`` are inverse to each other: what a family's file cannot say is refused, by writing it,
reading it back and comparing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from llmfast.config import to_dict
from llmfast.integrations.huggingface.names import DECODERS, Family
from llmfast.models.activations import transformers_names
from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling

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
_GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "ff_width": "n_inner",
    "context": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
}
_ACTIVATIONS = transformers_names(gated=True)
_GPT2_ACTIVATIONS = transformers_names(gated=False)
_SCALING = {  # theirs: ours
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
_SCALING_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "truncate",
    ),
}
# What decides how a model is trained, or how its tables are laid out, and not what it computes.
_NOT_SAID = {"embedding_init", "matrix_init", "vocab_multiple", "dropout"}
_EXPERTS_NOT_SAID = {"bias_rate", "z_loss_weight", "auxiliary_weight"}


def from_config(file: dict[str, Any]) -> tuple[Family, DecoderConfig]:
    """The family and the decoder that a config.json describes.

    Raises:
        ValueError: a family that is not supported, or a setting that the decoder does not have.
    """
    kind = file.get("model_type")
    if kind not in DECODERS:
        raise ValueError(f"its model_type is {kind!r}; supported are {', '.join(DECODERS)}")
    family = DECODERS[kind]
    return family, _gpt2_from(file) if kind == "gpt2" else _llama_from(kind, file)


def to_config(config: DecoderConfig, kind: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family ``kind``, or the one that fits ``config``, and the content of its config.json.

    Raises:
        ValueError: no such family, or it cannot say all of ``config``.
    """
    kind = kind or family_of(config)
    if kind not in DECODERS:
        raise ValueError(f"{kind!r} is not a supported family; there are {', '.join(DECODERS)}")
    family = DECODERS[kind]
    file = _gpt2_to(config) if kind == "gpt2" else _llama_to(kind, config)
    file |= {"model_type": kind, "architectures": [family.architecture]}
    lost = _differences(config, from_config(file)[1])
    if lost:
        raise ValueError(f"a {kind} folder cannot say {', '.join(lost)}")
    return family, file


def family_of(config: DecoderConfig) -> str:
    """The family whose form ``config`` has."""
    if config.positions == "learned":
        return "gpt2"
    if config.experts.count:
        if config.experts.shared_width:
            return "qwen2_moe"
        return "qwen3_moe" if config.qk_norm else "mixtral"
    if config.qk_norm:
        return "qwen3"
    if config.biases == "qkv" or (config.window and "f" in config.window_pattern):
        return "qwen2"
    return "mistral" if config.window else "llama"


def _differences(wanted: DecoderConfig, written: DecoderConfig) -> list[str]:
    """Settings that would change what the model computes."""
    ours, theirs = (_comparable(each) for each in (wanted, written))
    return [f"model.{name} {ours[name]!r}" for name in ours if ours[name] != theirs[name]]


def _comparable(config: DecoderConfig) -> dict[str, Any]:
    """Settings by name, those of layers spelled out layer by layer, without what has no effect."""
    flat = {name: value for name, value in to_dict(config).items() if name not in _NOT_SAID}
    flat["window_pattern"] = [config.window_of(layer) for layer in range(config.layers)]
    flat["window"] = None
    experts = flat.pop("experts")
    has = [config.has_experts(layer) for layer in range(config.layers)]
    if any(has):
        experts |= {"pattern": has, "width": config.expert_width}
        flat |= {f"experts.{name}": value for name, value in experts.items() if name not in _EXPERTS_NOT_SAID}
        flat["ff_width"] = None if all(has) else config.ff_width
    else:
        flat["experts.pattern"] = has
    scaling = flat.pop("rope_scaling")
    used = {_SCALING[each] for each in _SCALING_KEYS.get(scaling["kind"], ())} | {"kind"}
    flat |= {f"rope_scaling.{name}": value if name in used else None for name, value in scaling.items()}
    if scaling["kind"] != "none":
        flat["rope_scaling.original_context"] = config.original_context
    if scaling["kind"] == "dynamic":  # the file has no bound on the sequence
        flat["context"] = None
    return flat


# --- GPT-2 ----------------------------------------------------------------------------------------------------------


def _gpt2_from(file: dict[str, Any]) -> DecoderConfig:
    for name, only in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}.items():
        _refuse_unless(file, name, only)
    return DecoderConfig(
        **{ours: file[theirs] for ours, theirs in _GPT2_SIZES.items() if file.get(theirs) is not None},
        activation=_activation(file.get("activation_function", "gelu_new"), _GPT2_ACTIVATIONS),
        tie_embeddings=file.get("tie_word_embeddings", True),
        positions="learned",
        norm="layer",
        biases="all",
    )


def _gpt2_to(config: DecoderConfig) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in _GPT2_SIZES.items()} | {
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "activation_function": _their_activation(config, _GPT2_ACTIVATIONS),
        "tie_word_embeddings": config.tie_embeddings,
    }


# --- Llama and its kin ----------------------------------------------------------------------------------------------


def _llama_from(kind: str, file: dict[str, Any]) -> DecoderConfig:
    _refuse_unless(file, "attention_bias", False)
    _refuse_unless(file, "mlp_bias", False)
    qwen2 = kind in ("qwen2", "qwen2_moe") and file.get("qkv_bias", True)
    settings = {ours: file[theirs] for ours, theirs in _SIZES.items() if file.get(theirs) is not None}
    if kind == "qwen3":
        settings.setdefault("head_width", 128)
    base, scaling = _rope_from(file)
    if scaling.kind == "dynamic":
        settings["context"] = int(settings["context"] * scaling.factor)
    return DecoderConfig(
        **settings,
        **_window_from(kind, file, settings["layers"]),
        rope_base=base,
        rope_scaling=scaling,
        activation=_activation(file.get("hidden_act", "silu"), _ACTIVATIONS),
        biases="qkv" if qwen2 else "none",
        qk_norm=kind.startswith("qwen3"),
        tie_embeddings=file.get("tie_word_embeddings", False),
        experts=_experts_from(kind, file, settings["layers"]),
    )


def _llama_to(kind: str, config: DecoderConfig) -> dict[str, Any]:
    file = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()} | {
        "hidden_act": _their_activation(config, _ACTIVATIONS),
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": _rope_to(config),
    }
    if config.rope_scaling.kind == "dynamic":
        file["max_position_embeddings"] = config.original_context
    return file | _window_to(kind, config) | _experts_to(kind, config)


def _rope_from(file: dict[str, Any]) -> tuple[float, RopeScaling]:
    """From ``rope_parameters``, or what it was until transformers 5: ``rope_theta`` and ``rope_scaling``."""
    given = file.get("rope_parameters") or file.get("rope_scaling") or {}
    base = given.get("rope_theta") or file.get("rope_theta", 10_000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if (given.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor is {given['partial_rotary_factor']}; supported is 1")
    if kind == "default":
        return float(base), RopeScaling()
    if kind not in _SCALING_KEYS:
        raise ValueError(f"its rope_type is {kind!r}; supported are default, {', '.join(_SCALING_KEYS)}")
    found = {_SCALING[key]: given[key] for key in _SCALING_KEYS[kind] if given.get(key) is not None}
    if kind in ("llama3", "yarn", "dynamic"):
        found.setdefault("original_context", file["max_position_embeddings"])
    return float(base), RopeScaling(kind, **found)


def _rope_to(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling.kind == "none":
        return {"rope_type": "default", "rope_theta": config.rope_base}
    written = {key: getattr(scaling, _SCALING[key]) for key in _SCALING_KEYS[scaling.kind]}
    if "original_max_position_embeddings" in written:
        written["original_max_position_embeddings"] = config.original_context
    return {"rope_type": scaling.kind, "rope_theta": config.rope_base} | {
        key: value for key, value in written.items() if value is not None
    }


def _window_from(kind: str, file: dict[str, Any], layers: int) -> dict[str, Any]:
    window = file.get("sliding_window", 4096 if kind == "mistral" else None)
    if kind == "llama" or not window or (kind.startswith("qwen") and not file.get("use_sliding_window")):
        return {}
    types = file.get("layer_types")
    if not kind.startswith("qwen") or kind == "qwen3_moe":
        return {"window": window}
    if types is None:
        full = file.get("max_window_layers", 28)
        types = ["full_attention" if layer < full else "sliding_attention" for layer in range(layers)]
    return {
        "window": window,
        "window_pattern": "".join("s" if each.startswith("s") else "f" for each in types),
    }


def _window_to(kind: str, config: DecoderConfig) -> dict[str, Any]:
    windows = [config.window_of(layer) for layer in range(config.layers)]
    if not any(windows):
        return {"sliding_window": None} if kind in ("mistral", "mixtral") else {}
    written: dict[str, Any] = {"sliding_window": config.window}
    if kind.startswith("qwen"):
        written |= {
            "use_sliding_window": True,
            "layer_types": ["sliding_attention" if each else "full_attention" for each in windows],
        }
    return written


def _experts_from(kind: str, file: dict[str, Any], layers: int) -> ExpertsConfig:
    if kind == "mixtral":
        return ExpertsConfig(file["num_local_experts"], file["num_experts_per_tok"])
    if not kind.endswith("_moe"):
        return ExpertsConfig()
    dense, step = file.get("mlp_only_layers") or [], file.get("decoder_sparse_step", 1)
    pattern = ["e" if (layer + 1) % step == 0 and layer not in dense else "d" for layer in range(layers)]
    shared = file["shared_expert_intermediate_size"] if kind == "qwen2_moe" else 0
    return ExpertsConfig(
        file.get("num_experts") or file["num_local_experts"],
        file["num_experts_per_tok"],
        width=file["moe_intermediate_size"],
        pattern="".join(pattern),
        normalize=file.get("norm_topk_prob", False),
        shared_width=shared,
        shared_gate=bool(shared),
    )


def _experts_to(kind: str, config: DecoderConfig) -> dict[str, Any]:
    experts = config.experts
    if kind == "mixtral":
        return {
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.active,
            "intermediate_size": config.expert_width,
            "router_aux_loss_coef": experts.auxiliary_weight,
        }
    if not kind.endswith("_moe"):
        return {}
    written = {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "moe_intermediate_size": config.expert_width,
        "mlp_only_layers": [layer for layer in range(config.layers) if not config.has_experts(layer)],
        "decoder_sparse_step": 1,
        "norm_topk_prob": experts.normalize,
        "router_aux_loss_coef": experts.auxiliary_weight,
    }
    return written | ({"shared_expert_intermediate_size": experts.shared_width} if kind == "qwen2_moe" else {})


def _activation(theirs: str, table: dict[str, str]) -> str:
    if theirs not in table:
        raise ValueError(f"its activation is {theirs!r}; supported are {', '.join(table)}")
    return table[theirs]


def _their_activation(config: DecoderConfig, table: dict[str, str]) -> str:
    found = [theirs for theirs, ours in table.items() if ours == config.activation]
    if not found:
        raise ValueError(f"this family has no activation like {config.activation}")
    return found[0]


def _refuse_unless(file: dict[str, Any], name: str, only: Any) -> None:
    if file.get(name, only) != only:
        raise ValueError(f"{name} is {file[name]}; supported is {only}")


def with_plain_embedding(config: DecoderConfig) -> DecoderConfig:
    """The configuration without ``scale_embedding``, whose factor then has to be in the (untied) table."""
    return dataclasses.replace(config, scale_embedding=False, tie_embeddings=False)
