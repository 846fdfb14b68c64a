"""adapter_config.json of PEFT ↔ ``LoraConfig``."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from llmfast.integrations.peft.naming import FamilyNaming, Naming, shortest
from llmfast.models.adapters.config import ALL_LINEAR, LoraConfig, matches
from llmfast.models.adapters.targets import HEADS, Target, modules_of

# What is read here or below.
_READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "bias", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights", "ensure_weight_tying",
}  # fmt: skip
# What changes nothing about what an adapter computes.
_HARMLESS = {
    "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "runtime_config", "fan_in_fan_out", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_core", "megatron_config", "qalora_group_size", "layers_pattern",
}  # fmt: skip
# Starts after which the weights of the base are as they were.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "loftq")


def read_config(tree: dict[str, Any], naming: Naming) -> LoraConfig:
    """The adapter that an adapter_config.json describes, for the model of ``naming``.

    Raises:
        ValueError: it is no LoRA adapter, or has a setting that is not supported.
    """
    if tree.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {tree.get('peft_type')!r}; supported is LORA")
    for name, value in tree.items():
        if name not in _READ | _HARMLESS and value:
            raise ValueError(f"{name} is {value!r}, which is not supported")
    start = tree.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights is {start!r}, which changes the weights of the base: save it in peft with "
            "path_initial_model_for_weight_conversion, which makes a plain adapter of it"
        )
    found = LoraConfig(
        rank=tree.get("r", 8),
        alpha=float(tree.get("lora_alpha", 8)),
        rank_stabilized=tree.get("use_rslora", False),
        dropout=tree.get("lora_dropout", 0.0),
        target_modules=_patterns(tree.get("target_modules")),
        exclude_modules=_patterns(tree.get("exclude_modules")),
        rank_pattern=tree.get("rank_pattern") or {},
        alpha_pattern={name: float(value) for name, value in (tree.get("alpha_pattern") or {}).items()},
        bias=tree.get("bias", "none"),
        dora=tree.get("use_dora", False),
        modules_to_save=tuple(f".*{re.escape(name)}" for name in tree.get("modules_to_save") or ()),
        keep_tied=tree.get("ensure_weight_tying", False),
    )
    return _in_our_names(found, naming) if isinstance(naming, FamilyNaming) else found


def write_config(
    config: LoraConfig, updates: dict[str, Target], saved: list[str], naming: Naming, base: str | None
) -> dict[str, Any]:
    """The content of the adapter_config.json of an adapter.

    Args:
        config: the adapter.
        updates: the target of each layer that gets an update, by the layer's name in the files.
        saved: the modules that are trained in full, by their names in the files.
        naming: how the files call layers.
        base: what to name as the base model.
    """
    # The start of PiSSA is subtracted by as many rows and columns more (PEFT converts it in the same way).
    more, longer = (2, math.sqrt(2) if config.rank_stabilized else 2) if config.init == "pissa" else (1, 1)
    ranks = {name: more * config.rank_of(target.name) for name, target in updates.items()}
    alphas = {name: longer * config.alpha_of(target.name) for name, target in updates.items()}
    every = [*naming.targets] if isinstance(naming, FamilyNaming) else [name for name, _ in modules_of(naming.model)]
    rank, alpha = more * config.rank, longer * config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if isinstance(naming, FamilyNaming) else None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": config.dropout,
        "target_modules": shortest([*updates], every),
        "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {name: _plain(each) for name, each in alphas.items() if each != alpha},
        "bias": config.bias,
        "use_rslora": config.rank_stabilized,
        "use_dora": config.dora,
        "modules_to_save": saved or None,
        "ensure_weight_tying": bool(saved) and config.keep_tied,
        "fan_in_fan_out": naming.transposed,
        "init_lora_weights": True,
    }


def _patterns(value: list[str] | str | None) -> tuple[str, ...]:
    """Names and ends of names, or one regular expression of whole names."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (ALL_LINEAR,) if value.lower() == ALL_LINEAR else (f"^(?:{value})",)
    return tuple(re.escape(each) for each in sorted(value))


def _in_our_names(config: LoraConfig, naming: FamilyNaming) -> LoraConfig:
    """A configuration whose patterns match names of the files, as one for our names."""
    their_saved = [name for names in naming.modules.values() for name in names]
    saved = [name for name in their_saved if any(matches(pattern, name) for pattern in config.modules_to_save)]
    chosen = {name: target for name, target in naming.targets.items() if _is_chosen(config, name, saved)}
    every = [target.name for target in naming.targets.values()]
    names = shortest([target.name for target in chosen.values()], every)
    ranks = {target.name: config.rank_of(name) for name, target in chosen.items()}
    alphas = {target.name: config.alpha_of(name) for name, target in chosen.items()}
    return dataclasses.replace(
        config,
        target_modules=tuple(map(re.escape, names)),
        exclude_modules=(),
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != config.rank},
        alpha_pattern={re.escape(name): alpha for name, alpha in alphas.items() if alpha != config.alpha},
        modules_to_save=tuple(map(re.escape, naming.ours(saved))),
    )


def _is_chosen(config: LoraConfig, name: str, saved: list[str]) -> bool:
    if name in saved or any(matches(pattern, name) for pattern in config.exclude_modules):
        return False
    if any(matches(pattern, name) for pattern in config.target_modules if pattern != ALL_LINEAR):
        return True
    is_end = name.rpartition(".")[2] in (*HEADS, "embed_tokens", "wte", "wpe")
    return ALL_LINEAR in config.target_modules and not is_end


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number
