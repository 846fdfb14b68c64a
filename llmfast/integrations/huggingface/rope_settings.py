"""Settings of the rotary embedding in a config.json; see ``settings``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmfast.integrations.huggingface.settings import FULL, SLIDING, File, joined
from llmfast.models.config import DecoderConfig, RopeScaling

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

    default: Mapping[str, Any] = field(default_factory=dict)
    """What ``rope_parameters`` are where the file has none."""

    def read(self, file: File) -> dict[str, Any]:
        old, new = file.get("rope_scaling"), file.get("rope_parameters")
        return self.read_table(file, dict(old or new or (self.default if new is None else {})))

    def read_table(self, file: File, given: dict[str, Any]) -> dict[str, Any]:
        """As ``read``, of what ``rope_parameters`` holds."""
        base = float(given.pop("rope_theta", None) or file.get("rope_theta", self.base))
        kind = joined("rope_type", given.pop("rope_type", None), given.pop("type", None)) or "default"
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


@dataclass(frozen=True)
class RopeByLayer:
    """Rotary settings of layers that see all, and of those with a sliding window, whose frequencies are not scaled."""

    full: Rope
    window_base: float
    """What transformers takes where the file does not say."""
    window_key: str
    """How files of transformers 4 call the base of layers with a window."""

    def read(self, file: File) -> dict[str, Any]:
        tables = dict(file.get("rope_parameters") or {})
        if odd := [name for name in tables if name not in (FULL, SLIDING)]:
            raise ValueError(f"rope_parameters has {odd[0]}; supported are {FULL} and {SLIDING}, each with its own")
        for_all, of_window = (dict(tables.get(name) or {}) for name in (FULL, SLIDING))
        found = self.full.read_table(file, for_all | (file.get("rope_scaling") or {}))
        base = float(of_window.pop("rope_theta", None) or file.get(self.window_key, self.window_base))
        kind = joined("rope_type", of_window.pop("rope_type", None), of_window.pop("type", None)) or "default"
        partial = of_window.pop("partial_rotary_factor", None)
        if kind != "default" or partial not in (None, 1) or any(value is not None for value in of_window.values()):
            raise ValueError(f"its layers with {SLIDING} stretch their rotary frequencies, which is not supported")
        if base == found["rope_base"] and "rope_scaling" not in found:
            return found
        return found | {"window_rope_base": base}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        if config.window_rope_base is None and config.rope_scaling.kind != "none":
            raise ValueError("this family does not scale the rotary frequencies of layers with a window")
        base = config.rope_base if config.window_rope_base is None else config.window_rope_base
        of_window = {"rope_type": "default", "rope_theta": base}
        return {"rope_parameters": {FULL: self.full.write(config)["rope_parameters"], SLIDING: of_window}}


@dataclass(frozen=True)
class NoRope:
    """Layers without positions (SmolLM3)."""

    empty_is_default: bool = False
    """Whether an empty list says what a missing one says (Llama 4)."""

    def read(self, file: File) -> dict[str, Any]:
        layers, rotates = file["num_hidden_layers"], file.get("no_rope_layers")
        interval = file.get("no_rope_layer_interval")
        if rotates is None or (self.empty_is_default and not rotates):
            rotates = [(layer + 1) % interval for layer in range(layers)]
        if len(rotates) != layers:
            raise ValueError(f"no_rope_layers has {len(rotates)} entries for {layers} layers")
        return {"rope_pattern": "".join("r" if each else "n" for each in rotates)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {"no_rope_layers": [int(config.rotation_of(layer) != "none") for layer in range(config.layers)]}
