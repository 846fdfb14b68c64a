"""Where the parts of a language model are: of a ``Decoder``, or of a decoder-only model of transformers, plain or
patched. Everything that looks inside a model finds its way through these functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmfast.models.decoder import Decoder

# The linear layer that joins the heads' results, inside of a layer: "attention.out" here, "self_attn.o_proj" in Llama,
# "attn.c_proj" in GPT-2, "self_attention.dense" in Falcon.
_HEADS_OUTPUT = re.compile(r"(self_|^|\.)(attn|attention)\.(.*\.)?(out|o_proj|out_proj|c_proj|dense|wo)")


class Shape(NamedTuple):
    """How many layers and heads a model has, and how long its sequences may be."""

    layers: int
    heads: int
    context: int | None


def shape_of(model: nn.Module) -> Shape:
    """The layers, heads and context of a ``Decoder`` or a decoder-only model of transformers.

    Raises:
        ValueError: the model's configuration does not name them.
    """
    config: Any = getattr(model, "config", None)
    if isinstance(model, Decoder):
        return Shape(config.layers, config.heads, config.context)
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    if layers is None or heads is None or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is neither a Decoder nor a decoder-only model of transformers")
    return Shape(layers, heads, getattr(config, "max_position_embeddings", None))


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers (blocks) of a model, in the order in which they are computed.

    Raises:
        ValueError: as ``shape_of``; or the model has no list of so many layers.
    """
    count = shape_of(model).layers
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    # A list inside of a layer, such as that of its experts, may be as long: the outermost is the model's.
    for _, module in sorted(lists, key=lambda each: each[0].count(".")):
        if len(module) == count:
            return list(module)
    raise ValueError(f"{type(model).__name__} has no list of its {count} layers")


def heads_outputs_of(model: nn.Module) -> list[nn.Module]:
    """Of each layer, the linear layer whose input is the heads' results laid end to end, (B, S, H · D).

    Raises:
        ValueError: as ``layers_of``; or a layer where there is no such module, or more than one.
    """
    found = []
    for number, layer in enumerate(layers_of(model)):
        matching = [module for name, module in layer.named_modules() if _HEADS_OUTPUT.fullmatch(name)]
        if len(matching) != 1:
            raise ValueError(f"{type(model).__name__}: it is not known where the heads of layer {number} end")
        found += matching
    return found


def embedding_of(model: nn.Module) -> nn.Module:
    """The module that turns token ids into embeddings."""
    return model.embedding if isinstance(model, Decoder) else model.get_input_embeddings()


def head_of(model: nn.Module) -> nn.Module:
    """The module that turns the last hidden states into logits."""
    return model.head if isinstance(model, Decoder) else model.get_output_embeddings()


def logits_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Logits (B, S, V) of token ids (B, S), in float32 or the model's float64."""
    logits = model(batch) if isinstance(model, Decoder) else model(input_ids=batch, use_cache=False).logits
    return logits if logits.dtype == torch.float64 else logits.float()


def chosen(name: str, indices: Sequence[int], count: int) -> list[int]:
    """The indices from 0 that were chosen, each once and in their order; all where none were.

    Raises:
        ValueError: one is not from 0 to ``count`` − 1.
    """
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"{name}: the model has no {name.removesuffix('s')} {index}; choose from 0 to {count - 1}")
    return list(dict.fromkeys(indices)) or list(range(count))


def batch_of(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """A prompt as a batch of one row, (1, S), on the device of the model.

    Raises:
        ValueError: no tokens, or more than the context.
    """
    context = shape_of(model).context
    if not len(tokens):
        raise ValueError("the prompt has no tokens: give a text")
    if context is not None and len(tokens) > context:
        raise ValueError(f"the prompt has {len(tokens):,} tokens; the model's context is {context:,}")
    return torch.as_tensor(tokens, device=embedding_of(model).weight.device)[None]
