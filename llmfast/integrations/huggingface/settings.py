"""Settings of a config.json, each with the way from it to ``DecoderConfig`` and back.

A family is a list of them. Reading takes the settings one after the other, a later one over an earlier one, and so does
writing. A setting need not write what it cannot say: ``config.to_config`` reads what was written and compares. What no
setting has read is refused, unless it is known to change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llmfast.integrations.huggingface.defaults import HARMLESS, INERT
from llmfast.models.activations import transformers_names
from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling


class File:
    """A config.json with the family's defaults for keys that it leaves out, which remembers the keys that are read."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.given, self.defaults = given, defaults
        self.used: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key; null counts as a value."""
        self.used.add(name)
        return self.given.get(name, self.defaults.get(name, default))

    def __getitem__(self, name: str) -> Any:
        if name not in self.given and name not in self.defaults:
            raise KeyError(name)
        return self.get(name)

    def check_all_used(self) -> None:
        """Refuse keys that no setting has read, unless they are known to change nothing.

        Raises:
            ValueError: names them.
        """
        odd = {
            name: value
            for name, value in self.given.items()
            if name not in self.used | HARMLESS and value is not None and not (name in INERT and value == INERT[name])
        }
        if odd:
            said = ", ".join(f"{name} ({value!r})" for name, value in list(odd.items())[:5])
            raise ValueError(f"it has settings that llmfast does not know, and may not leave out: {said}")


class Setting(Protocol):
    """One or several keys of a config.json that belong together."""

    def read(self, file: File) -> dict[str, Any]:
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


_WHOLE = frozenset(("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "ff_width", "context"))


def _check_whole(name: str, value: Any) -> None:
    if type(value) is not int:
        raise ValueError(f"{name} is {value!r}, not a whole number")


@dataclass(frozen=True)
class Renamed:
    """Settings that only have another name."""

    theirs: Mapping[str, str]
    """Our names, and theirs."""
    required: tuple[str, ...] = ()
    """Our names of those that the file must have: weights do not show what they are."""

    def read(self, file: File) -> dict[str, Any]:
        for ours in self.required:
            if file.given.get(self.theirs[ours]) is None:
                raise KeyError(self.theirs[ours])
        found = {ours: file.get(theirs) for ours, theirs in self.theirs.items()}
        for ours, value in found.items():
            theirs = self.theirs[ours]
            # As many key/value heads as heads, in every family, is what null says there.
            if value is None and ours != "kv_heads" and file.defaults.get(theirs) is not None:
                raise ValueError(f"{theirs} is null")
            if value is not None and ours in _WHOLE:
                _check_whole(theirs, value)
        return {ours: value for ours, value in found.items() if value is not None}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {theirs: getattr(config, ours) for ours, theirs in self.theirs.items()}


@dataclass(frozen=True)
class Fixed:
    """What every model of the family has, and its config.json does not say."""

    ours: Mapping[str, Any]

    def read(self, file: File) -> dict[str, Any]:
        return dict(self.ours)

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Only:
    """Keys of theirs of which the decoder knows one value, which is also what they are where they are missing."""

    theirs: Mapping[str, Any]

    def read(self, file: File) -> dict[str, Any]:
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

    def read(self, file: File) -> dict[str, Any]:
        return {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return dict.fromkeys(self.theirs, getattr(config, self.ours))


@dataclass(frozen=True)
class Activation:
    """The activation of the feed-forward, by the names of ``llmfast.models.activations``."""

    theirs: str
    gated: bool
    same_as: Mapping[str, str] = field(default_factory=dict)
    """Names that the family takes for another one."""

    def read(self, file: File) -> dict[str, Any]:
        names = transformers_names(gated=self.gated)
        name = file.get(self.theirs)
        name = self.same_as.get(name, name)
        if name not in names:
            raise ValueError(f"its activation is {name!r}; supported are {', '.join(names)}")
        return {"activation": names[name]}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        names = transformers_names(gated=self.gated)
        found = next((theirs for theirs, ours in names.items() if ours == config.activation), None)
        if found is None:
            raise ValueError(f"this family has no activation like {config.activation}")
        return {self.theirs: found}


class Unread:
    """Keys that published files of the family have and transformers does not read."""

    def __init__(self, *theirs: str):
        self.theirs = theirs

    def read(self, file: File) -> dict[str, Any]:
        for name in self.theirs:
            file.get(name)
        return {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {}


class QkvBias:
    """Qwen2's biases of queries, keys and values, which a config.json of Qwen2-MoE can switch off."""

    def read(self, file: File) -> dict[str, Any]:
        return {"biases": "qkv" if file.get("qkv_bias", True) else "none"}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {}


class Granite:
    """Granite's multipliers, which go into the weights (``families.granite_factors``)."""

    def read(self, file: File) -> dict[str, Any]:
        embedding, logits = file["embedding_multiplier"], file["logits_scaling"]
        for name in ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"):
            if type(file[name]) not in (int, float) or not math.isfinite(file[name]):
                raise ValueError(f"{name} is {file[name]!r}, not a finite number")
        # A table that serves at both ends can hold one factor only.
        return {} if embedding == 1 / logits else {"tie_embeddings": False}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {"attention_multiplier": config.head_width**-0.5}


class Quantization:
    """The quantization of the stored weights, of which 4 bits of bitsandbytes can be decoded."""

    def read(self, file: File) -> dict[str, Any]:
        found = file.get("quantization_config")
        if found and not (found.get("quant_method", "bitsandbytes") == "bitsandbytes" and found.get("load_in_4bit")):
            method = found.get("quant_method", "bitsandbytes in 8 bits")
            raise ValueError(f"its weights are quantized ({method}); supported are the 4 bits of bitsandbytes")
        return {}

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


def _joined(name: str, *values: Any) -> Any:
    """The value that is given under several names."""
    found = {value for value in values if value is not None}
    if len(found) > 1:
        raise ValueError(f"{name} is given twice: {' and '.join(map(str, values))}")
    return found.pop() if found else None


def _yarn_attention_factor(given: Mapping[str, Any]) -> float | None:
    """The factor on cosines and sines, which may also be given by two factors on its logarithm."""
    mscale, of_all = given.get("mscale"), given.get("mscale_all_dim")
    if given.get("attention_factor") is not None or not (mscale and of_all):
        return given.get("attention_factor")
    growth = 0.1 * math.log(max(given["factor"], 1))
    return (growth * mscale + 1) / (growth * of_all + 1)


@dataclass(frozen=True)
class Rope:
    """``rope_parameters``, or what they were until transformers 5: ``rope_theta`` and ``rope_scaling``."""

    base: float = 10_000.0
    """What transformers takes where the file does not say."""

    kinds: tuple[str, ...] = tuple(SCALING_KEYS)
    """The kinds of scaling that the family has."""

    def read(self, file: File) -> dict[str, Any]:
        old, new = file.get("rope_scaling"), file.get("rope_parameters")
        given = dict(old or new or {})
        base = float(given.pop("rope_theta", None) or file.get("rope_theta", self.base))
        kind = _joined("rope_type", given.pop("rope_type", None), given.pop("type", None)) or "default"
        outside = file.get("partial_rotary_factor"), file.get("original_max_position_embeddings")
        partial = given.pop("partial_rotary_factor", outside[0])
        if partial not in (None, 1):
            raise ValueError(f"partial_rotary_factor is {partial}; supported is 1")
        if kind != "default" and kind not in self.kinds:
            raise ValueError(f"its rope_type is {kind!r}; supported are {', '.join(('default', *self.kinds))}")
        known = ("mscale", "mscale_all_dim", *SCALING_KEYS["yarn"]) if kind == "yarn" else SCALING_KEYS.get(kind, ())
        if odd := [name for name, value in given.items() if name not in known and value is not None]:
            raise ValueError(f"its rotary embedding ({kind}) has settings that llmfast does not know: {', '.join(odd)}")
        if kind == "default":
            return {"rope_base": base}
        for name in ("factor", *(("low_freq_factor", "high_freq_factor") if kind == "llama3" else ())):
            if given.get(name) is None:
                raise ValueError(f"its rotary embedding ({kind}) has no {name}")
        found = {SCALING[key]: given[key] for key in SCALING_KEYS[kind] if given.get(key) is not None}
        if kind in ("llama3", "yarn"):
            found["original_context"] = outside[1] or found.get("original_context") or file["max_position_embeddings"]
        if kind == "dynamic":
            found["original_context"] = file["max_position_embeddings"]
        if kind == "yarn":
            found["attention_factor"] = _yarn_attention_factor(given)
            for name in ("beta_fast", "beta_slow"):  # 0 counts as left out
                if not found.get(name):
                    found.pop(name, None)
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

    def read(self, file: File) -> dict[str, Any]:
        window = file.get("sliding_window")
        if window is None:
            return {}
        _check_whole("sliding_window", window)
        return {"window": window}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        slides = any(config.window_of(layer) for layer in range(config.layers))
        return {"sliding_window": config.window if slides else None}


@dataclass(frozen=True)
class SwitchedWindow:
    """Qwen's sliding window, which counts only with ``use_sliding_window``."""

    layers: Literal["all", "late", "early_even"]
    """Which layers slide where the file does not say it layer by layer: those from ``max_window_layers`` on, or of
    those before it every second one. With "all" a file cannot say it by layer."""

    def read(self, file: File) -> dict[str, Any]:
        window, slides = file.get("sliding_window"), file.get("use_sliding_window")
        if window is not None:
            _check_whole("sliding_window", window)
        bound, layers = file.get("max_window_layers"), range(file["num_hidden_layers"])
        types = None if self.layers == "all" else file.get("layer_types")
        if types is None:
            by_rule = {
                "all": lambda i: True,
                "late": lambda i: i >= bound,
                "early_even": lambda i: not i % 2 and i < bound,
            }
            is_sliding = [bool(window and slides) and by_rule[self.layers](layer) for layer in layers]
        else:
            if len(types) != len(layers) or set(types) - {"full_attention", "sliding_attention"}:
                raise ValueError(
                    f"layer_types is {types}; supported are full_attention and sliding_attention, by layer"
                )
            is_sliding = [each == "sliding_attention" for each in types]
            if any(is_sliding) and not (window and slides):
                raise ValueError("layer_types has sliding_attention, but use_sliding_window is off")
        if not any(is_sliding):
            return {}
        return {"window": window, "window_pattern": "".join("fs"[each] for each in is_sliding)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        windows = [config.window_of(layer) for layer in range(config.layers)]
        if not any(windows):
            return {}
        said = {"sliding_window": config.window, "use_sliding_window": True}
        if self.layers == "all":
            return said
        return said | {"layer_types": ["sliding_attention" if each else "full_attention" for each in windows]}


# --- mixture of experts ---------------------------------------------------------------------------------------------


class MixtralExperts:
    """Experts in every layer, as wide as the feed-forward."""

    def read(self, file: File) -> dict[str, Any]:
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

    def read(self, file: File) -> dict[str, Any]:
        dense, step = file.get("mlp_only_layers") or [], file["decoder_sparse_step"]
        count = (
            _joined("num_experts", file.get("num_local_experts"), file.given.get("num_experts")) or file["num_experts"]
        )
        file.get("num_experts")
        layers = range(file["num_hidden_layers"])
        shared = file["shared_expert_intermediate_size"] if self.shared else 0
        experts = ExpertsConfig(
            count,
            file["num_experts_per_tok"],
            width=file["moe_intermediate_size"],
            pattern="".join("e" if (layer + 1) % step == 0 and layer not in dense else "d" for layer in layers),
            normalize=file["norm_topk_prob"],
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
