"""Attention weights of chosen layers and heads, of a decoder or of a model of transformers, some rows at a time.

The weights of a long prompt do not fit in memory (16,384 tokens: 1 GiB for each head), so they are computed in blocks
of rows, and whoever reads them keeps only what it needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmfast.kernels import attention_weights
from llmfast.models.cache import Scores
from llmfast.models.decoder import Decoder
from llmfast.models.evaluating import evaluating
from llmfast.visualization.structure import batch_of, chosen, shape_of

BLOCK_ELEMENTS = 2**21
"""Most weights of a block: 8 MiB in float32."""


class Rows(NamedTuple):
    """The attention weights of some rows of one layer."""

    layer: int
    first_row: int
    first_key: int
    """The key of column 0; the rows give no weight to those before it, nor to those after the last column."""
    weights: Tensor
    """(heads, rows, keys), in the order in which the heads were chosen."""


@torch.no_grad()
def attention_rows(
    model: nn.Module, tokens: Sequence[int], *, layers: Sequence[int] = (), heads: Sequence[int] = ()
) -> Iterator[Rows]:
    """The attention weights of a prompt, layer by layer, some rows at a time.

    Of a ``Decoder``, memory is proportional to the prompt's length. A model of transformers computes all weights
    itself (``output_attentions``), whose memory is proportional to the square of the length.

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers. Dropout is off meanwhile.
        tokens: the prompt.
        layers, heads: which ones, counted from 0; all if left out.

    Raises:
        ValueError: no tokens, more than the context, or a layer or head that does not exist.
    """
    shape = shape_of(model)
    layers, heads = chosen("layers", layers, shape.layers), chosen("heads", heads, shape.heads)
    batch = batch_of(model, tokens)
    with evaluating(model):
        rows = _rows_of_decoder if isinstance(model, Decoder) else _rows_of_transformers
        yield from rows(model, batch, layers, heads)


def _rows_of_decoder(model: Decoder, tokens: Tensor, layers: list[int], heads: list[int]) -> Iterator[Rows]:
    x, places = model.embed(tokens)
    for layer, block in enumerate(model.blocks[: max(layers) + 1]):
        if layer in layers:
            q, k, _ = block.attention.queries_keys_values(block.attention_norm(x), places)
            attention = block.attention
            yield from _blocks(layer, q.transpose(1, 2), k.transpose(1, 2), heads, attention.scores, attention.chunk)
        if layer < max(layers):
            x, _ = block(x, places)


def _blocks(layer: int, q: Tensor, k: Tensor, heads: list[int], scores: Scores, chunk: int | None) -> Iterator[Rows]:
    """Weights of causal attention, of q (1, H, S, D) over k (1, K, S, D), or over those of its chunk."""
    S = q.shape[2]
    size = max(1, BLOCK_ELEMENTS // (len(heads) * S))
    firsts = {*range(0, S, size), *range(0, S, chunk or S)}
    for first, last in itertools.pairwise(sorted({*firsts, S})):
        key = 0 if scores.window is None else max(0, first - scores.window[0])
        key = key if chunk is None else first // chunk * chunk
        # Attention among these tokens alone: the rows see none before and none after them.
        weights = attention_weights(
            q[:, :, key:last],
            k[:, :, key:last],
            heads=heads,
            rows=range(first - key, last - key),
            causal=True,
            **scores._asdict(),
        )
        yield Rows(layer, first, key, weights[0])


def _rows_of_transformers(model: Any, tokens: Tensor, layers: list[int], heads: list[int]) -> Iterator[Rows]:
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others return no weights
    try:
        found = model(tokens, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(implementation)
    if not found or len(found) <= max(layers):
        raise ValueError(f"{type(model).__name__} returns no attention weights for each of its layers")
    for layer in sorted(layers):
        yield Rows(layer, 0, 0, found[layer][0, heads].float())
