"""A larger vocabulary for a trained model."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from llmfast.kernels import NF4Linear, dequantize_nf4, quantize_nf4
from llmfast.models.decoder import Decoder


@torch.no_grad()
def grow_vocabulary(model: Decoder, known: int, wanted: int) -> None:
    """Give ``model``, in place, rows for the tokens from ``known`` up to ``wanted``.

    The new rows of the embedding table, and of an output head of its own, are the mean of those of the known tokens:
    the new tokens then begin about as likely as an average one, where random rows could drown all others (Hewitt 2021,
    "Initializing new word embeddings for pretrained language models"). The rows of the known tokens keep their values;
    only in a head in 4 bits may they change, by less than quantizing changed them, as its scales are shared.

    Args:
        model: with a table of plain or padded size; rows that only fill it up are used first.
        known: tokens that the model was trained with.
        wanted: tokens that it shall have.

    Raises:
        ValueError: fewer tokens than the model has.
    """
    if not 0 < known <= wanted:
        raise ValueError(f"a vocabulary of {known} tokens cannot become one of {wanted}")
    config = dataclasses.replace(model.config, vocab_size=max(model.config.vocab_size, wanted))
    tied = model.head.weight is model.embedding.weight
    table = _grown(model.embedding.weight, known, wanted, config.table_rows)
    if table is not model.embedding.weight:
        embedding = nn.Embedding(*table.shape, _weight=table)
        embedding.weight.requires_grad_(model.embedding.weight.requires_grad)
        model.embedding = embedding
    if tied:
        model.head = nn.Linear(*reversed(table.shape), bias=False, device="meta")
        model.head.weight = model.embedding.weight
    else:
        model.head = _grown_head(model.head, known, wanted, config.table_rows)
    model.config = config
    model.renew_buffers()


def _grown_head(head: nn.Module, known: int, wanted: int, rows: int) -> nn.Module:
    if isinstance(head, NF4Linear):
        layout = head.quantized.layout
        weight = _grown(dequantize_nf4(head.quantized), known, wanted, rows)
        return NF4Linear.from_tensor(quantize_nf4(weight, layout.block_size, layout.double_quant))
    weight = _grown(head.weight, known, wanted, rows)
    grown = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    grown.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    return grown


def _grown(table: Tensor, known: int, wanted: int, rows: int) -> Tensor:
    """The table (V, E) with ``rows`` rows, those of new tokens the mean of the known ones."""
    grown = table.new_zeros(max(rows, len(table)), table.shape[1])
    grown[: len(table)] = table
    if wanted > known:
        grown[known:wanted] = table[:known].double().mean(0).to(table.dtype)
    return grown
