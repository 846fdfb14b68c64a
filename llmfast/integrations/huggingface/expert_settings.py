"""Settings of a mixture of experts in a config.json; see ``settings``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmfast.integrations.huggingface.settings import File, joined
from llmfast.models.config import DecoderConfig, ExpertsConfig


@dataclass(frozen=True)
class LocalExperts:
    """Experts in every layer, as wide as the feed-forward (Mixtral)."""

    biases: bool = False
    """Whether they and their router have biases (GPT-OSS)."""

    def read(self, file: File) -> dict[str, Any]:
        experts = ExpertsConfig(file["num_local_experts"], file["num_experts_per_tok"], biases=self.biases)
        return {"experts": experts}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        experts = _experts_of(config)
        return {
            **_routing(experts),
            "num_local_experts": experts.count,
            "intermediate_size": config.expert_width,
        }


@dataclass(frozen=True)
class QwenExperts:
    """Experts in some layers, of a width of their own."""

    shared: bool
    """Whether there is an expert that every token passes, weighed by a gate."""

    def read(self, file: File) -> dict[str, Any]:
        dense, step = file.get("mlp_only_layers") or [], file["decoder_sparse_step"]
        count = (
            joined("num_experts", file.get("num_local_experts"), file.given.get("num_experts")) or file["num_experts"]
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
            **_routing(experts),
            "num_experts": experts.count,
            "moe_intermediate_size": config.expert_width,
            "mlp_only_layers": [layer for layer in range(config.layers) if not config.has_experts(layer)],
            "decoder_sparse_step": 1,
            "norm_topk_prob": experts.normalize,
        }
        return written | ({"shared_expert_intermediate_size": experts.shared_width} if self.shared else {})


class Llama4Experts:
    """Experts in some layers, as wide as the shared one; their scores multiply what enters them."""

    def read(self, file: File) -> dict[str, Any]:
        layers, step, chosen = file["num_hidden_layers"], file.get("interleave_moe_layer_step"), file.get("moe_layers")
        if chosen is None:
            chosen = range(step - 1, layers, step)
        width = file["intermediate_size"]
        experts = ExpertsConfig(
            file["num_local_experts"],
            file["num_experts_per_tok"],
            width=width,
            pattern="".join("de"[layer in chosen] for layer in range(layers)),
            score="sigmoid",
            normalize=False,
            shared_width=width,
            scale_input=True,
        )
        return {"experts": experts}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        experts = _experts_of(config)
        return {
            **_routing(experts),
            "num_local_experts": experts.count,
            "intermediate_size": config.expert_width,
            "moe_layers": [layer for layer in range(config.layers) if config.has_experts(layer)],
        }


def _experts_of(config: DecoderConfig) -> ExpertsConfig:
    if not config.experts.count:
        raise ValueError("this family has experts, and model.experts.count is 0")
    return config.experts


def _routing(experts: ExpertsConfig) -> dict[str, Any]:
    """What every family calls by the same names."""
    return {"num_experts_per_tok": experts.active, "router_aux_loss_coef": experts.auxiliary_weight}
