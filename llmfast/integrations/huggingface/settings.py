"""Settings of a config.json, each with the way from it to ``DecoderConfig`` and back.

A family is a list of them. Reading takes the settings one after the other, a later one over an earlier one, and so does
writing. A setting need not write what it cannot say: ``config.to_config`` reads what was written and compares. What no
setting has read is refused, unless it is known to change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmfast.integrations.huggingface.defaults import HARMLESS, INERT
from llmfast.models.activations import transformers_names
from llmfast.models.config import DecoderConfig


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


FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
"""How files call layers that see all, those with a window, and those that attend by chunks."""

_SCORE_CAP = "attn_logit_softcapping"
_WHOLE = frozenset(("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "ff_width", "context"))


def check_whole(name: str, value: Any) -> None:
    if type(value) is not int:
        raise ValueError(f"{name} is {value!r}, not a whole number")


def joined(name: str, *values: Any) -> Any:
    """The value that is given under several names."""
    found = {value for value in values if value is not None}
    if len(found) > 1:
        raise ValueError(f"{name} is given twice: {' and '.join(map(str, values))}")
    return found.pop() if found else None


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
                check_whole(theirs, value)
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
class Switched:
    """A key of theirs that switches some settings of ours on."""

    theirs: str
    ours: Mapping[str, Any]

    def read(self, file: File) -> dict[str, Any]:
        found = file.get(self.theirs, False)
        if type(found) is not bool:
            raise ValueError(f"{self.theirs} is {found!r}, neither true nor false")
        return dict(self.ours) if found else {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {self.theirs: all(getattr(config, name) == value for name, value in self.ours.items())}


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


@dataclass(frozen=True)
class Scales:
    """Factors on embeddings, attention, the residual stream and logits, and bounds, which must be positive numbers."""

    theirs: Mapping[str, str]
    """Our names, and theirs."""
    divides: tuple[str, ...] = ()
    """Our names of those that the family divides by."""

    def read(self, file: File) -> dict[str, Any]:
        found = {}
        for ours, theirs in self.theirs.items():
            value = file[theirs]
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{theirs} is {value!r}, not a positive number")
            found[ours] = inverse(value) if ours in self.divides else float(value)
        return found

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        own = vars(config) | {"embedding_scale": config.embedding_factor, "attention_scale": config.attention_factor}
        return {
            theirs: inverse(own[ours]) if ours in self.divides else own[ours] for ours, theirs in self.theirs.items()
        }


def inverse(value: float) -> float:
    """1 / value; of the numbers beside it that have the same inverse, the one with the fewest digits.

    >>> 1 / (1 / 49.0), inverse(inverse(49.0))
    (49.00000000000001, 49.0)
    """
    found = 1 / value
    near = (found, math.nextafter(found, 0), math.nextafter(found, math.inf))
    return min((each for each in near if 1 / each == value), key=lambda each: len(repr(each)), default=found)


class Temperature:
    """Llama 4's factor on the queries of layers without positions, which grows with the position."""

    def read(self, file: File) -> dict[str, Any]:
        scale, tokens, is_on = file["attn_scale"], file["floor_scale"], file["attn_temperature_tuning"]
        if not is_on:
            return {}
        check_whole("floor_scale", tokens)
        if type(scale) is not float:
            raise ValueError(f"attn_scale is {scale!r}, not a number with a decimal point")
        return {"query_temperature": scale, "query_temperature_tokens": tokens}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        if config.query_temperature is None:
            return {"attn_temperature_tuning": False}
        scale, tokens = config.query_temperature, config.query_temperature_tokens
        return {"attn_temperature_tuning": True, "attn_scale": scale, "floor_scale": tokens}


@dataclass(frozen=True)
class GemmaScores:
    """The scale of attention by the number whose inverse root it is, and the caps of scores and logits."""

    caps_attention: bool
    """Whether transformers caps the scores of attention as the file says; in Gemma 3 it does not."""

    def read(self, file: File) -> dict[str, Any]:
        scalar, caps = file["query_pre_attn_scalar"], {}
        check_whole("query_pre_attn_scalar", scalar)
        if scalar < 1:
            raise ValueError(f"query_pre_attn_scalar is {scalar}, not a positive number")
        for ours, theirs in (("logit_softcap", "final_logit_softcapping"), ("attention_softcap", _SCORE_CAP)):
            caps[ours] = file.get(theirs)
            if caps[ours] is not None and type(caps[ours]) is not float:
                raise ValueError(f"{theirs} is {caps[ours]!r}, not a number with a decimal point")
        if not self.caps_attention:
            caps["attention_softcap"] = None
        return caps | {"attention_scale": None if scalar == file["head_dim"] else scalar**-0.5}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        scale = config.attention_factor
        return {
            "query_pre_attn_scalar": round(scale**-2),
            "final_logit_softcapping": config.logit_softcap,
            _SCORE_CAP: config.attention_softcap,
        }


@dataclass(frozen=True)
class Quantization:
    """The quantization of the stored weights, of which 4 bits of bitsandbytes can be decoded."""

    others: tuple[str, ...] = ()
    """Other methods of which the family's weights can be decoded."""

    def read(self, file: File) -> dict[str, Any]:
        found = file.get("quantization_config")
        if not found or found.get("quant_method") in self.others:
            return {}
        if not (found.get("quant_method", "bitsandbytes") == "bitsandbytes" and found.get("load_in_4bit")):
            method = found.get("quant_method", "bitsandbytes in 8 bits")
            known = ", ".join(("the 4 bits of bitsandbytes", *self.others))
            raise ValueError(f"its weights are quantized ({method}); supported are {known}")
        return {}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        return {}
