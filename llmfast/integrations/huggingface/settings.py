"""Settings of a config.json, each with the way from it to ``DecoderConfig`` and back.

A family is a list of them. Reading takes the settings one after the other, a later one over an earlier one, and so does
writing. A setting need not write what it cannot say: ``config.to_config`` reads what was written and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmfast.models.activations import transformers_names
from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling


class Setting(Protocol):
    """One or several keys of a config.json that belong together."""

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of ``DecoderConfig``.

        Raises:
            ValueError: a value that the decoder does not have.
            KeyError: a key that is missing.
        """
        ...

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """Keys of config.json.

        Raises:
            ValueError: a value that the family does not have.
        """
        ...


@dataclass(frozen=True)
class Renamed:
    """Settings that only have another name. One that the file lacks, or has as null, is left out, or is ``default``."""

    theirs: Mapping[str, str]
    """Our names, and theirs."""
    default: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes where the file does not say, by our names."""
    required: tuple[str, ...] = ()
    """Our names of those without a default, which the file must have: weights do not show what they are."""

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        for ours in self.required:
            if file.get(self.theirs[ours]) is None:
                raise KeyError(self.theirs[ours])
        found = {ours: file[theirs] for ours, theirs in self.theirs.items() if file.get(theirs) is not None}
        return {**self.default, **found}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {theirs: getattr(config, ours) for ours, theirs in self.theirs.items()}


@dataclass(frozen=True)
class Fixed:
    """What every model of the family has, and its config.json does not say."""

    ours: Mapping[str, Any]

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.ours)

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Only:
    """Keys of theirs of which the decoder knows one value, which is also what they are where they are missing."""

    theirs: Mapping[str, Any]

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        for name, only in self.theirs.items():
            if file.get(name, only) != only:
                raise ValueError(f"{name} is {file[name]}; supported is {only}")
        return {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Copies:
    """One setting of ours that the family has under several more names, which are written and not read."""

    ours: str
    theirs: tuple[str, ...]

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return dict.fromkeys(self.theirs, getattr(config, self.ours))


@dataclass(frozen=True)
class Activation:
    """The activation of the feed-forward, by the names of ``llmfast.models.activations``."""

    theirs: str
    default: str
    gated: bool

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        names = transformers_names(gated=self.gated)
        name = file.get(self.theirs, self.default)
        if name not in names:
            raise ValueError(f"its activation is {name!r}; supported are {', '.join(names)}")
        return {"activation": names[name]}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        names = transformers_names(gated=self.gated)
        found = next((theirs for theirs, ours in names.items() if ours == config.activation), None)
        if found is None:
            raise ValueError(f"this family has no activation like {config.activation}")
        return {self.theirs: found}


class QkvBias:
    """Qwen2's biases of queries, keys and values, which a config.json of Qwen2-MoE can switch off."""

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        return {"biases": "qkv" if file.get("qkv_bias", True) else "none"}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {}


# --- rotary embedding -----------------------------------------------------------------------------------------------

SCALING = {  # theirs: ours
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
SCALING_KEYS = {
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


@dataclass(frozen=True)
class Rope:
    """``rope_parameters``, or what they were until transformers 5: ``rope_theta`` and ``rope_scaling``."""

    base: float = 10_000.0
    """What transformers takes where the file does not say."""

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        given = file.get("rope_parameters") or file.get("rope_scaling") or {}
        base = float(given.get("rope_theta") or file.get("rope_theta", self.base))
        kind = given.get("rope_type") or given.get("type") or "default"
        if (given.get("partial_rotary_factor") or 1.0) != 1.0:
            raise ValueError(f"partial_rotary_factor is {given['partial_rotary_factor']}; supported is 1")
        if kind == "default":
            return {"rope_base": base}
        if kind not in SCALING_KEYS:
            raise ValueError(f"its rope_type is {kind!r}; supported are default, {', '.join(SCALING_KEYS)}")
        found = {SCALING[key]: given[key] for key in SCALING_KEYS[kind] if given.get(key) is not None}
        if kind in ("llama3", "yarn", "dynamic"):
            found.setdefault("original_context", file["max_position_embeddings"])
        scaling = RopeScaling(kind, **found)
        settings = {"rope_base": base, "rope_scaling": scaling}
        if kind == "dynamic":
            settings["context"] = int(file["max_position_embeddings"] * scaling.factor)
        return settings

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        scaling = config.rope_scaling
        if scaling.kind == "none":
            return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base}}
        written = {key: getattr(scaling, SCALING[key]) for key in SCALING_KEYS[scaling.kind]}
        if "original_max_position_embeddings" in written:
            written["original_max_position_embeddings"] = config.original_context
        said = {key: value for key, value in written.items() if value is not None}
        file: dict[str, Any] = {"rope_parameters": {"rope_type": scaling.kind, "rope_theta": config.rope_base, **said}}
        if scaling.kind == "dynamic":
            file["max_position_embeddings"] = config.original_context
        return file


# --- sliding windows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """One sliding window for all layers, or none where ``sliding_window`` is null."""

    default: int | None = None

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        window = file.get("sliding_window", self.default)
        return {"window": window} if window else {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        slides = any(config.window_of(layer) for layer in range(config.layers))
        return {"sliding_window": config.window if slides else None}


@dataclass(frozen=True)
class SwitchedWindow:
    """Qwen's sliding window, which counts only with ``use_sliding_window``."""

    by_layer: bool
    """Whether the file says for each layer whether it slides."""

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        window = file.get("sliding_window")
        if not window or not file.get("use_sliding_window"):
            return {}
        if not self.by_layer:
            return {"window": window}
        types = file.get("layer_types")
        if types is None:
            full = file.get("max_window_layers", 28)
            types = ["full" if layer < full else "sliding" for layer in range(file["num_hidden_layers"])]
        return {"window": window, "window_pattern": "".join("s" if each.startswith("s") else "f" for each in types)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        windows = [config.window_of(layer) for layer in range(config.layers)]
        if not any(windows):
            return {}
        types = ["sliding_attention" if each else "full_attention" for each in windows]
        return {"sliding_window": config.window, "use_sliding_window": True, "layer_types": types}


# --- mixture of experts ---------------------------------------------------------------------------------------------


class MixtralExperts:
    """Experts in every layer, as wide as the feed-forward."""

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        return {"experts": ExpertsConfig(file["num_local_experts"], file["num_experts_per_tok"])}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        experts = _experts_of(config)
        return {
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.active,
            "intermediate_size": config.expert_width,
            "router_aux_loss_coef": experts.auxiliary_weight,
        }


@dataclass(frozen=True)
class QwenExperts:
    """Experts in some layers, of a width of their own."""

    shared: bool
    """Whether there is an expert that every token passes, weighed by a gate."""

    def read(self, file: Mapping[str, Any]) -> dict[str, Any]:
        dense, step = file.get("mlp_only_layers") or [], file.get("decoder_sparse_step", 1)
        layers = range(file["num_hidden_layers"])
        shared = file["shared_expert_intermediate_size"] if self.shared else 0
        experts = ExpertsConfig(
            file.get("num_experts") or file["num_local_experts"],
            file["num_experts_per_tok"],
            width=file["moe_intermediate_size"],
            pattern="".join("e" if (layer + 1) % step == 0 and layer not in dense else "d" for layer in layers),
            normalize=file.get("norm_topk_prob", False),
            shared_width=shared,
            shared_gate=bool(shared),
        )
        return {"experts": experts}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        experts = _experts_of(config)
        written = {
            "num_experts": experts.count,
            "num_experts_per_tok": experts.active,
            "moe_intermediate_size": config.expert_width,
            "mlp_only_layers": [layer for layer in range(config.layers) if not config.has_experts(layer)],
            "decoder_sparse_step": 1,
            "norm_topk_prob": experts.normalize,
            "router_aux_loss_coef": experts.auxiliary_weight,
        }
        return written | ({"shared_expert_intermediate_size": experts.shared_width} if self.shared else {})


def _experts_of(config: DecoderConfig) -> ExpertsConfig:
    if not config.experts.count:
        raise ValueError("this family has experts, and model.experts.count is 0")
    return config.experts
