"""``linear_cross_entropy`` by tiles: matrix products whose logits stay in registers.

Forward, each program computes tiles of ``hidden @ weightᵀ`` and keeps of each token the running log-sum-exp
only (the scheme of cut cross-entropy: Wijmans et al. 2024, arXiv:2411.09009). Backward goes through the
vocabulary in chunks: the logits of one chunk are computed again, their gradient D (N, C) is written in the
dtype of ``hidden`` to a workspace, and ``D @ weight`` and ``Dᵀ @ hidden`` are one matrix product each. The
gradient of the weight is thereby a single float32 sum over all tokens, rounded once, and every number has one
program that writes it: two runs agree bit by bit. The gradient of ``hidden`` is summed over the chunks in
float32.

Four matrix products in all, 8·N·V·E operations. The tokens that count are moved to the front first, and how
many these are stays on the device: programs of the others return at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..frame.launch import Chip, cdiv, run
from ..frame.rows import aligned
from .counted_tokens import counted_first
from .launch import TileLaunch, chunk_columns, hidden_launch, logits_launch, splits_of, weight_launch
from .linear_call import LinearCrossEntropyCall
from .linear_tile_kernels import (
    bias_gradient,
    combine_statistics,
    hidden_gradient,
    tile_gradients,
    tile_statistics,
    weight_gradient,
)
from .objective import objective


class Compacted(NamedTuple):
    """The tokens, those that count first."""

    hidden: Tensor  # (N, E)
    target: Tensor  # (N,)
    order: Tensor  # (N,) where each came from
    count: Tensor  # (1,) how many count


def compact(hidden: Tensor, target: Tensor, ignore_index: int) -> Compacted:
    order, count = counted_first(target, ignore_index)
    return Compacted(hidden.index_select(0, order), target.index_select(0, order), order, count)


def operands(hidden: Tensor, weight: Tensor, tile: TileLaunch) -> tuple[Any, Any]:
    """As the products that make logits take them: by descriptor where the tile says so."""
    if not tile.tma:
        return hidden, weight
    from triton.tools.tensor_descriptor import TensorDescriptor

    blocks = ((hidden, [tile.rows, tile.depth]), (weight, [tile.columns, tile.depth]))
    return tuple(TensorDescriptor.from_tensor(matrix, block) for matrix, block in blocks)


def forward(call: LinearCrossEntropyCall) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's loss, log-sum-exp and, if asked for (else empty), whether the target is predicted; (N,) float32."""
    (tokens, width), vocabulary = call.hidden.shape, call.weight.shape[0]
    loss, lse, correct = call.allocate()
    if not tokens:
        return loss, lse, correct
    target_logit = torch.empty_like(lse)
    chip = Chip.of(call.hidden.device)
    tile = logits_launch(chip, call.heavy)
    chosen = objective(*call.objective)
    smooth = chosen.label_smoothing is not None
    few = compact(call.hidden, call.target, call.ignore_index)
    splits = splits_of(tokens, vocabulary, tile, chip)
    statistics = loss.new_empty((3 if smooth else 2, splits, tokens))
    largest = place = None
    if call.predicts:
        largest, place = loss.new_empty((splits, tokens)), few.target.new_empty((splits, tokens), dtype=torch.int32)
    run(
        tile_statistics,
        (cdiv(tokens, tile.rows) * splits,),
        call.hidden,
        *operands(few.hidden, aligned(call.weight), tile),
        *(call.bias, few.target, chosen.weight, few.count),
        *(statistics, target_logit, largest, place, tokens, vocabulary, width),
        *(splits, cdiv(cdiv(vocabulary, tile.columns), splits), chosen.softcap),
        **{"SMOOTH": smooth, "TMA": tile.tma, **tile.options()},
    )
    run(
        combine_statistics,
        (cdiv(tokens, 128),),
        call.hidden,
        *(statistics, target_logit, largest, place, few.target, few.order, chosen.weight, chosen.weight_sum),
        *(loss, lse, correct if call.predicts else None),
        *(tokens, vocabulary, splits, chosen.ignore_index, chosen.label_smoothing, chosen.z_loss),
        BLOCK=128,
        num_warps=4,
    )
    return loss, lse, correct


def backward(
    call: LinearCrossEntropyCall,
    lse: Tensor,
    grad_loss: Tensor,
    grad_lse: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of hidden, weight and bias, each where it is wanted."""
    (tokens, width), vocabulary = call.hidden.shape, call.weight.shape[0]
    grad_hidden, grad_weight, grad_bias = (
        torch.zeros_like(p, memory_format=torch.contiguous_format) if want else None
        for p, want in zip(call[:3], wanted, strict=True)
    )
    if not tokens:
        return [grad_hidden, grad_weight, grad_bias]
    weight, like = aligned(call.weight), call.hidden
    chip = Chip.of(like.device)
    tile = logits_launch(chip, call.heavy)
    for_hidden, for_weight = hidden_launch(chip), weight_launch(chip)
    chosen = objective(*call.objective)
    few = compact(call.hidden, call.target, call.ignore_index)
    lse, grad_loss, grad_lse = (None if t is None else t.index_select(0, few.order) for t in (lse, grad_loss, grad_lse))
    logit_operands = operands(few.hidden, weight, tile)
    columns = chunk_columns(tokens, vocabulary, width, like.itemsize, tile)
    blocks = cdiv(tokens, tile.rows)
    hidden_tiles = cdiv(tokens, for_hidden.rows) * cdiv(width, for_hidden.columns)
    weight_tiles = cdiv(columns, for_weight.rows) * cdiv(width, for_weight.columns)
    gradients = like.new_empty((blocks * tile.rows, columns))
    sums = like.new_empty((tokens, width), dtype=torch.float32) if columns < vocabulary else None
    live = None
    if call.gradient_filter is not None:
        live = like.new_empty((blocks, columns // tile.columns), dtype=torch.int32)
    for start in range(0, vocabulary, columns):
        part = (vocabulary, width, start, columns)
        run(
            tile_gradients,
            (blocks * (columns // tile.columns),),
            like,
            *(grad_loss, grad_lse, *logit_operands, call.bias, few.target, chosen.weight),
            *(chosen.weight_sum, lse, few.count, gradients, live, tokens, *part, chosen.ignore_index),
            *(chosen.label_smoothing, chosen.z_loss, chosen.softcap, call.gradient_filter),
            TMA=tile.tma,
            **tile.options(),
        )
        if grad_hidden is not None:
            ends = {"LIVE": tile.columns, "FIRST": start == 0, "LAST": start + columns >= vocabulary}
            inputs = (gradients, live, weight, few.order, few.count, sums, grad_hidden, tokens, *part)
            run(hidden_gradient, (hidden_tiles,), like, *inputs, **ends, **for_hidden.options())
        if grad_weight is not None:
            inputs = (gradients, live, few.hidden, few.count, grad_weight, *part)
            live_tile = {"LIVE_ROWS": tile.rows, "LIVE": tile.columns}
            run(weight_gradient, (weight_tiles,), like, *inputs, **live_tile, **for_weight.options())
        if grad_bias is not None:
            inputs = (gradients, few.count, grad_bias, vocabulary, start, columns)
            run(bias_gradient, (cdiv(columns, 64),), like, *inputs, ROWS=64, COLUMNS=64, num_warps=4)
    return [grad_hidden, grad_weight, grad_bias]
