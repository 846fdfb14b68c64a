"""The attention probabilities of chosen heads and rows, for looking at."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..frame.autocast import autocast
from . import reference
from .block_mask import BlockMask, check_block_mask, tensor_of
from .checks import check_options, check_qkv, slopes_by_sequence, widened, window_bounds


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    lse: Tensor | None = None,
    heads: Sequence[int] | Tensor | None = None,
    rows: Sequence[int] | Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_mask: Tensor | BlockMask | None = None,
    block_size: int = 128,
) -> Tensor:
    """Probabilities p[i, j] of ``flash_attention``, without computing those of other heads and rows.

    Args:
        q: (B, H, S, D); k: (B, K, T, D), as for ``flash_attention``.
        lse: (B, H, S), what ``flash_attention(..., return_lse=True)`` returned: p = exp(s - lse) then. Without
            it the chosen rows are normalized here; the result is the same but for rounding.
        heads, rows: Sequences or tensors of indices into H and S, negative ones from the end; all if left
            out.
        causal, scale, window, softcap, sinks, alibi_slopes, block_mask, block_size: as for ``flash_attention``. Rows
            sum to 1 less what the sink takes.

    Returns:
        (B, heads, rows, T) float32 (float64 for float64 inputs), before dropout, differentiable. Memory is
        proportional to the result.

    Raises:
        ValueError: for shapes, dtypes or options that ``flash_attention`` refuses, or an index out of range.

    >>> import torch
    >>> q, k = torch.randn(1, 8, 100, 64), torch.randn(1, 2, 100, 64)
    >>> attention_weights(q, k, heads=[0, 7], rows=[-1], causal=True).shape
    torch.Size([1, 2, 1, 100])
    """
    q, k = autocast(q, k)
    if q.shape[-1:] == k.shape[-1:]:
        q, k, _, scale = widened(q, k, k, scale)
    check_qkv(q, k, k)
    check_options(q, scale, softcap, sinks, 0.0)
    if block_mask is not None:
        block_size = check_block_mask(block_mask, block_size, q, k, packed=False)
    B, H, S, _ = q.shape
    alibi = slopes_by_sequence(alibi_slopes, q, B)
    if lse is not None and lse.shape != (B, H, S):
        raise ValueError(f"lse has q's batch, heads and length {(B, H, S)}; got {tuple(lse.shape)}")
    heads, rows = indices("heads", heads, H, q.device), indices("rows", rows, S, q.device)
    chosen = q[:, heads][:, :, rows]
    keys = k[:, heads // (H // k.shape[1])]
    position = rows[:, None] + k.shape[2] - S
    columns = torch.arange(k.shape[2], device=q.device)
    mask = reference.within(position, columns, *window_bounds(causal, window))
    seen = tensor_of(block_mask)
    if seen is not None:
        of_heads = seen[:, heads] if seen.shape[1] > 1 else seen
        mask = mask & reference.in_blocks(of_heads, block_size, rows, columns)
    bias = None if alibi is None else -alibi[:, heads, None, None] * (position - columns).abs()
    if lse is None:
        sinks = None if sinks is None else sinks[heads]
        options = {"scale": scale, "softcap": softcap, "sinks": sinks, "bias": bias}
        return reference.attention_probabilities(chosen, keys, mask, **options)[0]
    scores = reference.attention_scores(chosen, keys, scale=scale, softcap=softcap)
    scores = scores if bias is None else scores + bias
    chosen_lse = lse[:, heads][:, :, rows].to(scores.dtype)
    # Rows that see nothing have lse -inf; where the mask hides a key, s - lse may overflow before it is
    # dropped.
    difference = torch.where(mask, scores - chosen_lse[..., None], float("-inf"))
    return torch.exp(difference)


def indices(name: str, chosen: Sequence[int] | Tensor | None, count: int, device: torch.device) -> Tensor:
    """Non-negative indices on the device."""
    if chosen is None:
        return torch.arange(count, device=device)
    chosen = torch.as_tensor(chosen)
    if chosen.numel() == 0:  # of a list, in the default floating dtype
        chosen = chosen.long()
    if chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool or chosen.dim() != 1:
        raise ValueError(f"{name} is a sequence of integers; got {chosen.dtype} of shape {tuple(chosen.shape)}")
    chosen = chosen.long()
    if chosen.device.type != "cpu":  # Not read: that would wait for the device.
        return chosen % count
    if not ((chosen >= -count) & (chosen < count)).all():
        raise ValueError(f"{name} is a sequence of indices from {-count} to {count - 1}; got {chosen.tolist()}")
    return (chosen % count).to(device)
