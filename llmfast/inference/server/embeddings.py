"""Embeddings of texts: hidden states of the model, of length 1."""

from __future__ import annotations

import base64
from typing import Literal

import torch
from torch import Tensor

from llmfast.inference.engine import Engine
from llmfast.models.adapters.switch import use_adapter


@torch.no_grad()
def embed(engine: Engine, tokens: list[int], pooling: Literal["mean", "last"], adapter: str | None) -> Tensor:
    """The last hidden states of a text (what the head reads), their mean or that of the last token, scaled to length 1.

    Args:
        engine: that is not within a step.
        tokens: of the text.
        pooling: which states.
        adapter: of the model.

    Returns:
        (E,) float32, on the CPU.

    Raises:
        ValueError: a text that is empty or too long, or an engine that does not run in PyTorch.
    """
    model = getattr(engine.runner, "model", None)
    if model is None:
        raise ValueError(
            "model: the decoder for CPUs gives no hidden states; embeddings need the server to be started with "
            "--dtype float32"
        )
    context, vocab_size = engine.runner.context, engine.runner.vocab_size
    if not 1 <= len(tokens) <= context:
        raise ValueError(f"input has a text of {len(tokens)} tokens; the model takes 1 to {context}")
    if not all(0 <= token < vocab_size for token in tokens):
        raise ValueError(f"input has a token outside the model's 0 to {vocab_size - 1}")
    ids = torch.tensor([tokens], device=engine.runner.device)
    if adapter == engine.runner.default_adapter:
        states = model.hidden(ids).states
    else:
        with use_adapter(model, adapter):
            states = model.hidden(ids).states
    chosen = states[0, -1].float() if pooling == "last" else states[0].float().mean(0)
    return torch.nn.functional.normalize(chosen, dim=0).cpu()


def as_json(vector: Tensor, encoding: Literal["float", "base64"]) -> list[float] | str:
    """An embedding as numbers, or as the base64 of little-endian float32."""
    if encoding == "float":
        return vector.tolist()
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
