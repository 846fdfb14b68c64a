"""The model that a finetuning run trains: weights to start from, in 4 bits if wished, with adapters, frozen in part."""

from __future__ import annotations

import torch
from torch import nn

from llmfast.finetuning.config import FinetuningConfig
from llmfast.integrations.opening import Start
from llmfast.models.adapters.config import matches
from llmfast.models.adapters.inject import add_adapter
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.quantize import quantize_decoder
from llmfast.models.size import flops_by_part
from llmfast.models.vocabulary import grow_vocabulary
from llmfast.training.optimizers.build import is_matrix_of_block
from llmfast.training.optimizers.registry import OPTIMIZERS


def finetuned_decoder(
    config: FinetuningConfig, start: Start | None, model: DecoderConfig, *, tokens: tuple[int, int] | None = None
) -> Decoder:
    """The decoder of a run, as it starts: that of ``start``, or one with random weights; with adapters if asked for.

    Args:
        config: ``adapter``, ``lora`` and the seed are used; ``freeze_parameters`` applies ``freeze`` to what a task
            builds around the decoder.
        start: the weights; None for random ones.
        model: settings of the decoder.
        tokens: how many tokens ``start`` was trained with, and how many the model shall have; the same if None.

    Raises:
        ValueError: what ``add_adapter`` refuses.
    """
    generator = torch.Generator().manual_seed(config.training.seed)
    decoder = (
        Decoder(model, generator=generator)
        if start is None
        else start.decoder(model, keep_4_bits=config.adapter == "qlora")
    )
    if tokens is not None:
        grow_vocabulary(decoder, *tokens)
    if config.adapter == "qlora":
        quantize_decoder(decoder)
    if config.adapter != "none":
        add_adapter(decoder, config.lora, generator=generator)
    return decoder


def headless_flops(config: FinetuningConfig, model: DecoderConfig, context: int) -> float:
    """Floating-point operations of a training step per token, in a decoder without its output head.

    They are those of a forward pass; twice that for the gradients of an adapter, which go through frozen weights; three
    times that where weights have gradients.
    """
    flops = sum(count for part, count in flops_by_part(model, context).items() if part != "head")
    if config.adapter != "none":
        return flops * 2 / 3
    return flops / 3 if config.keeps_base else flops


def finetuning_memory(config: FinetuningConfig, model: DecoderConfig) -> dict[str, float]:
    """Bytes of the weights, gradients and optimizer state of a run, which no batch size changes.

    They are counted on a model without storage, so that the estimate comes before anything is loaded.
    """
    with torch.device("meta"):
        decoder = Decoder(model)
        if config.adapter == "qlora":
            quantize_decoder(decoder, progress=False)
        if config.adapter != "none":
            add_adapter(decoder, config.lora)
    trained = {
        name: parameter
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad and not any(is_frozen_by(pattern, f"decoder.{name}") for pattern in config.freeze)
    }
    choice = OPTIMIZERS[config.training.optimizer]
    state = 0.0
    for name, parameter in trained.items():
        is_matrix = parameter.ndim == 2 and is_matrix_of_block(name, parameter)
        of_matrix = choice.matrix_state_bytes if is_matrix else None
        state += parameter.numel() * (choice.state_bytes if of_matrix is None else of_matrix)
    return {
        "weights": float(sum(parameter.nbytes for parameter in decoder.parameters())),
        "gradients": float(sum(parameter.nbytes for parameter in trained.values())),
        "optimizer": state,
    }


def freeze_parameters(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freeze the parameters whose names, or the names of a module around them, a pattern matches.

    Raises:
        ValueError: a pattern that fits nothing.
    """
    for pattern in patterns:
        found = [parameter for name, parameter in model.named_parameters() if is_frozen_by(pattern, name)]
        if not found:
            raise ValueError(f"freeze has {pattern!r}, but no module or parameter is called so")
        for parameter in found:
            parameter.requires_grad_(False)


def is_frozen_by(pattern: str, name: str) -> bool:
    """Whether a pattern matches a parameter's name, or that of a module around it.

    >>> [is_frozen_by("blocks.0", name) for name in ("decoder.blocks.0.attention.out.weight", "blocks.10.norm.weight")]
    [True, False]
    """
    parts = name.split(".")
    return any(matches(pattern, ".".join(parts[:end])) for end in range(1, len(parts) + 1))
