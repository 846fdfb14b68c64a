"""config.json of transformers ↔ DecoderConfig, by the descriptions of families.

``from_config`` and ``to_config`` are inverse to each other. A configuration that a family's file cannot express is
refused: the file is written, read back and compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from llmfast.config import to_dict
from llmfast.integrations.huggingface.families import DECODERS
from llmfast.integrations.huggingface.family import Family
from llmfast.integrations.huggingface.rope_settings import SCALING, SCALING_KEYS
from llmfast.models.config import DecoderConfig
from llmfast.models.rewriting import with_scales_in_weights

# Settings of training and of the layout of tables, which do not change what a model computes.
_NOT_WRITTEN = {"embedding_init", "matrix_init", "vocab_multiple", "dropout"}
_EXPERTS_NOT_WRITTEN = {"bias_rate", "z_loss_weight", "auxiliary_weight"}


def from_config(file: dict[str, Any]) -> tuple[Family, DecoderConfig]:
    """The family and the decoder that a config.json describes.

    Raises:
        ValueError: a family that is not supported, or a setting that the decoder does not have.
    """
    kind = file.get("model_type")
    if kind not in DECODERS:
        raise ValueError(f"its model_type is {kind!r}; supported are {', '.join(DECODERS)}")
    return DECODERS[kind], DECODERS[kind].read(file)


def to_config(config: DecoderConfig, kind: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family ``kind``, or the one that fits ``config``, and the content of its config.json.

    Raises:
        ValueError: the family is unknown, or cannot express all of ``config``.
    """
    kind = kind or family_of(config)
    if kind not in DECODERS:
        raise ValueError(f"{kind!r} is not a supported family; there are {', '.join(DECODERS)}")
    family = DECODERS[kind]
    file = family.write(config)
    lost = _differences(config, family.read(file))
    if lost:
        raise ValueError(f"a {kind} folder cannot say {', '.join(lost)}")
    return family, file


def families_of(config: DecoderConfig) -> list[str]:
    """The families that can express all of ``config``."""
    return [kind for kind, family in DECODERS.items() if _lost(config, family) == 0]


def can_say(config: DecoderConfig, kind: str | None = None) -> bool:
    """Whether the family, or one of them all, can express all of ``config``."""
    return kind in families_of(config) if kind is not None else bool(families_of(config))


def as_said(config: DecoderConfig, kind: str | None = None) -> DecoderConfig:
    """The configuration, or where the family (or each of them all) lacks a setting of it, one of the same model by
    other weights (``llmfast.models.rewriting``); the configuration itself if there is none that fits."""
    scaled = with_scales_in_weights(config)
    if config.embedding_factor != 1:
        scaled = dataclasses.replace(scaled, embedding_scale=None, scale_embedding=False, tie_embeddings=False)
    for each in (config, scaled):
        offsets = [each.norm_weight_offset, *({0.0, 1.0} - {each.norm_weight_offset} if each.norm == "rms" else ())]
        orders = [each.rope_interleaved, *([not each.rope_interleaved] if each.positions == "rope" else ())]
        for offset, order in itertools.product(offsets, orders):
            changed = dataclasses.replace(each, norm_weight_offset=offset, rope_interleaved=order)
            if can_say(changed, kind):
                return changed
    return config


def family_of(config: DecoderConfig) -> str:
    """The first family that can say all of ``config``, or else one of those that can say the most of it."""

    return min(DECODERS, key=lambda kind: _lost(config, DECODERS[kind]))


def _lost(config: DecoderConfig, family: Family) -> int:
    """How many settings the family cannot express."""
    try:
        return len(_differences(config, family.read(family.write(config))))
    except ValueError:
        return len(dataclasses.fields(config))


def _differences(wanted: DecoderConfig, written: DecoderConfig) -> list[str]:
    """Settings that would change what the model computes."""
    ours, theirs = (_comparable(each) for each in (wanted, written))
    return [f"model.{name} {ours[name]!r}" for name in ours if ours[name] != theirs.get(name)]


def _comparable(config: DecoderConfig) -> dict[str, Any]:
    """Settings by name, those of layers spelled out layer by layer, without what has no effect."""
    flat = {name: value for name, value in to_dict(config).items() if name not in _NOT_WRITTEN}
    flat["window_pattern"] = [(config.window_of(layer), config.chunk_of(layer)) for layer in range(config.layers)]
    flat["window"] = flat["attention_chunk"] = None
    flat["rope_pattern"] = [config.rotation_of(layer) != "none" for layer in range(config.layers)]
    if not any(config.rotation_of(layer) == "window" for layer in range(config.layers)):
        flat["window_rope_base"] = None
    flat["norm_bias"] = config.norm == "layer" and config.norm_bias
    flat["qk_norm_over"] = config.qk_norm_over if config.qk_norm else None
    flat["attention_scale"] = config.attention_factor
    flat["embedding_scale"], flat["scale_embedding"] = config.embedding_factor, None
    if config.activation != "clamped_swiglu":
        flat["swiglu_limit"] = flat["swiglu_alpha"] = None
    if config.query_temperature is None or all(flat["rope_pattern"]):
        flat["query_temperature"] = flat["query_temperature_tokens"] = None
    experts = flat.pop("experts")
    has = [config.has_experts(layer) for layer in range(config.layers)]
    if any(has):
        experts |= {"pattern": has, "width": config.expert_width}
        flat |= {f"experts.{name}": value for name, value in experts.items() if name not in _EXPERTS_NOT_WRITTEN}
        flat["ff_width"] = None if all(has) else config.ff_width
    else:
        flat["experts.pattern"] = has
    scaling = flat.pop("rope_scaling")
    used = {SCALING[each] for each in SCALING_KEYS.get(scaling["kind"], ())} | {"kind"}
    flat |= {f"rope_scaling.{name}": value if name in used else None for name, value in scaling.items()}
    if scaling["kind"] != "none":
        flat["rope_scaling.original_context"] = config.original_context
    if scaling["kind"] == "dynamic":  # the file has no bound on the sequence
        flat["context"] = None
    return flat
