"""Plain PyTorch definition of attention: the specification, the CPU path, and what tests compare with.

Shape letters: B batch, S query length, T key length, H query heads, K key/value heads, D head width, N packed
tokens.
"""

import torch
import torch.nn.functional as F

from ..frame.fixed_order import product, weighted_sum
from ..frame.invariance import is_batch_invariant
from ..frame.philox import philox

# S and T up to which PyTorch's CPU kernel takes as long in float32 as in 16 bits, or a third of it (16 × 4 heads,
# S = 128, D = 32, forward and backward: 3.9 ms and 11.9 ms; from S = 512 on 16 bits are the faster).
SHORT = 256


def attention(
    q,
    k,
    v,
    *,
    scale,
    left=None,
    right=None,
    softcap=None,
    sinks=None,
    dropout_p=0.0,
    seed=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    used_q=None,
    used_k=None,
    pad_k=None,
    alibi=None,
    block_mask=None,
    block_size=128,
):
    """Returns ``(out, lse)``; see ``llmfast.kernels.flash_attention``.

    A query at position p sees the keys p - left ... p + right (``None``: no bound), where p counts from the
    end: the last query of a sequence stands at its last key. float16 and bfloat16 are computed in float32.
    """
    packed = cu_seqlens_q is not None
    if packed:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (N, H, D) -> (1, H, N, D)
        bounds = (cu_seqlens_q, cu_seqlens_k, used_q, used_k, pad_k)
        mask, counts, *places = _packed_geometry(*bounds, q.shape[2], k.shape[2], left, right)
        rows, position, columns, sequence = places
        # What does not count may be anything, also NaN.
        q = q.masked_fill(~mask.any(1, keepdim=True), 0.0)
        k, v = (x.masked_fill(~mask.any(0)[:, None], 0.0) for x in (k, v))
    else:
        mask = visible(q.shape[2], k.shape[2], left, right, q.device)
        rows = torch.arange(q.shape[2], device=q.device)
        position = rows + k.shape[2] - q.shape[2]
        columns = torch.arange(k.shape[2], device=q.device)
        sequence = torch.arange(q.shape[0], device=q.device)[:, None]
    if block_mask is not None:
        mask = mask & in_blocks(block_mask, block_size, rows, columns)
    with torch.autocast(q.device.type, enabled=False):  # the products too are in float32
        bias = None
        if alibi is not None:  # (1 or B, H, N or 1, 1) times (S, T)
            slopes = alibi[sequence.clamp(max=len(alibi) - 1)].transpose(1, 2)[..., None]
            bias = -slopes * (position[:, None] - columns).abs()
        probabilities, lse = attention_probabilities(q, k, mask, scale=scale, softcap=softcap, sinks=sinks, bias=bias)
        if dropout_p > 0:
            heads = torch.arange(q.shape[1], device=q.device)[:, None, None]
            keep = dropout_keep(seed, dropout_p, sequence[:, None, :, None], heads, rows[:, None], columns)
            probabilities = probabilities * keep / (1 - dropout_p)
        values = _per_query_head(v, q.shape[1]).to(probabilities.dtype)
        out = _mix(probabilities, values).to(q.dtype)
    if packed:
        return out[0].transpose(0, 1), lse[0].masked_fill(~counts, float("-inf")).transpose(0, 1)
    return out, lse


def _mix(probabilities, values):
    return weighted_sum(probabilities, values) if is_batch_invariant() else probabilities @ values


def _invariant_softmax(scores, mask, sinks):
    """``attention_probabilities`` of float64 scores, summed over the keys from the first to the last."""
    scores = scores.masked_fill(~mask, float("-inf"))
    top = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.new_full((*scores.shape[:3], 1), float("-inf"))
    sink = None if sinks is None else sinks.to(scores.dtype)[:, None, None]
    top = top if sink is None else torch.maximum(top, sink)
    base = top.masked_fill(top == float("-inf"), 0.0).detach()
    p = (scores - base).exp()
    total = weighted_sum(p, p.new_ones(*p.shape[:2], p.shape[-1], 1))
    total = total if sink is None else total + (sink - base).exp()
    return p / total.masked_fill(total == 0, 1.0), (base + total.log()).squeeze(-1)


def attention_probabilities(q, k, mask, *, scale, softcap=None, sinks=None, bias=None):
    """softmax(cap(q kᵀ · scale) + bias) over the keys in ``mask``, and its log-denominator: (B, H, S, T), (B, H, S)."""
    scores = attention_scores(q, k, scale=scale, softcap=softcap)
    if bias is not None:
        scores = scores + bias
    if is_batch_invariant():
        probabilities, lse = _invariant_softmax(scores, mask, sinks)
        return probabilities, lse.to(torch.promote_types(q.dtype, torch.float32))
    # A finite fill, and zeros afterwards: -inf would turn rows that see nothing, and their gradients, into NaN.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    sees_something = mask.any(dim=-1).expand(scores.shape[:3])
    if sinks is not None:
        sees_something = sees_something | (sinks > float("-inf"))[:, None]
    lse = scores.logsumexp(dim=-1) if scores.shape[-1] else scores.new_zeros(scores.shape[:3])
    lse = lse.masked_fill(~sees_something, float("-inf"))
    return scores.softmax(dim=-1)[..., : mask.shape[-1]] * mask, lse


def attention_scores(q, k, *, scale, softcap=None):
    """cap(q kᵀ · scale): (B, H, S, T), in float32 at least."""
    compute = torch.promote_types(q.dtype, torch.float32)
    if is_batch_invariant():
        scores = product(q, _per_query_head(k, q.shape[1])) * scale
        return scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = q.to(compute) @ _per_query_head(k, q.shape[1]).to(compute).transpose(-1, -2) * scale
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def plain_attention(q, k, v, *, scale, left=None, right=None):
    """``attention(...)[0]`` by PyTorch's fused CPU kernel, which keeps no S × T matrix of scores."""
    if max(q.shape[2], k.shape[2]) <= SHORT and q.dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(q.device.type, enabled=False):
            return _fused(*(x.float() for x in (q, k, v)), scale, left, right).to(q.dtype)
    return _fused(q, k, v, scale, left, right)


def _fused(q, k, v, scale, left, right):
    S, T = q.shape[2], k.shape[2]
    options = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    bounded = left is not None or (right is not None and S > 1) or (right or 0) < 0
    if bounded and left is None and right == 0 and S == T:
        options["is_causal"] = True
    elif bounded:  # Without bounds, and for one query that ends at the last key, every key is seen.
        options["attn_mask"] = visible(S, T, left, right, q.device)
    return F.scaled_dot_product_attention(q, k, v, **options)


def visible(S, T, left, right, device):
    """Boolean (S, T): which keys each query sees; the last query stands at the last key."""
    return within(torch.arange(T - S, T, device=device)[:, None], torch.arange(T, device=device), left, right)


def within(position, key, left, right):
    """Where position - left <= key <= position + right; a bound that is ``None`` does not exist."""
    seen = torch.ones_like(position >= key)
    if left is not None:
        seen = seen & (key >= position - left)
    if right is not None:
        seen = seen & (key <= position + right)
    return seen


def in_blocks(block_mask, block_size, rows, columns):
    """Boolean (B or 1, H or 1, rows, columns): whether their blocks of ``block_mask`` see each other."""
    return block_mask[..., (rows // block_size)[:, None], columns // block_size]


def _packed_geometry(cu_seqlens_q, cu_seqlens_k, used_q, used_k, pad_k, n_q, n_k, left, right):
    """Mask, which queries count, and row, position and column within the sequence, and sequence of each query, for
    sequences laid end to end.

    Of a sequence the first ``used`` tokens count, less ``pad_k`` keys at the start, before the first column. Those that
    do not count, and tokens after the last boundary, which belong to no sequence, see nothing, and nobody sees them.
    """
    sequence_q, rows = _place(cu_seqlens_q, n_q)
    sequence_k, columns = _place(cu_seqlens_k, n_k)
    length_q, length_k = (
        F.pad(cu.diff() if used is None else torch.minimum(used, cu.diff()), (0, 1)).long()
        for cu, used in ((cu_seqlens_q, used_q), (cu_seqlens_k, used_k))
    )
    if pad_k is not None:
        pad = F.pad(pad_k, (0, 1)).long()
        length_k, columns = length_k - pad, columns - pad[sequence_k]
    position = rows + (length_k - length_q)[sequence_q]
    seen = within(position[:, None], columns, left, right)
    same = sequence_q[:, None] == sequence_k  # Tokens after the last boundary are of a sequence without any that count.
    counts = rows < length_q[sequence_q]
    counted_keys = (columns >= 0) & (columns < length_k[sequence_k])
    return seen & same & counts[:, None] & counted_keys, counts, rows, position, columns, sequence_q[None]


def _place(cu_seqlens, n):
    """(sequence, index within it) of n packed tokens; those after the last boundary form one more."""
    token = torch.arange(n, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens.long(), token, right=True) - 1
    return sequence, token - cu_seqlens.long()[sequence]


def _per_query_head(x, n_heads):
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def dropout_keep(seed, dropout_p, sequence, head, row, column):
    """True where dropout keeps a probability: Philox4x32 of the counter (column, row, head, sequence), keyed
    by seed.

    The random number depends on the place alone, not on tiles or packing, so every kernel draws the same
    mask.
    """
    return philox(seed, column, row, head, sequence)[0] >> 1 >= dropout_threshold(dropout_p)


def dropout_threshold(dropout_p):
    """The 31-bit integer below which a random number drops its element."""
    return min(round(dropout_p * 2**31), 2**31 - 1)


def append_to_cache(k_cache, v_cache, k_new, v_new, cache_seqlens, page_table):
    """Writes k_new and v_new behind the filled rows of the caches, in place; see
    ``llmfast.kernels.flash_decode``."""
    page_size = k_cache.shape[2]
    row = cache_seqlens.long()[:, None] + torch.arange(k_new.shape[2], device=k_new.device)  # (B, S_new)
    entry = torch.arange(k_new.shape[0], device=k_new.device)[:, None].expand_as(row)
    capacity = page_size * (1 if page_table is None else page_table.shape[1])
    kept = (row >= 0) & (row < capacity)
    entry, row = entry[kept], row[kept]
    page = entry if page_table is None else page_table.long()[entry, row // page_size]
    for cache, new in ((k_cache, k_new), (v_cache, v_new)):
        cache[page, :, row % page_size] = new.transpose(1, 2)[kept]


def decode(
    q, k_cache, v_cache, cache_seqlens, page_table, sinks, alibi, leftpad, new, scale, left, right, softcap
):  # fmt: skip
    """Attention to the filled rows of a cache; returns (out, lse)."""
    k, v = _entries(k_cache, page_table), _entries(v_cache, page_table)
    S, T = q.shape[2], k.shape[2]
    length = (cache_seqlens.long() + new).clamp(max=T)[:, None, None, None]
    key = torch.arange(T, device=q.device)
    filled = key < length  # (B, 1, 1, T)
    position = torch.arange(S, device=q.device)[:, None] + length - S
    if leftpad is not None:
        filled = filled & (key >= leftpad[:, None, None, None])
    mask = within(position, key, left, right) & filled
    bias = None if alibi is None else -alibi[:, :, None, None] * (position - key).abs()
    # Rows that are not filled may hold anything, NaN included.
    k, v = (x.masked_fill(~filled.transpose(-1, -2), 0.0) for x in (k, v))
    probabilities, lse = attention_probabilities(q, k, mask, scale=scale, softcap=softcap, sinks=sinks, bias=bias)
    return _mix(probabilities, _per_query_head(v, q.shape[1]).to(probabilities.dtype)).to(q.dtype), lse


def _entries(cache, page_table):
    """(pages, K, page size, D) -> (B, K, T, D)."""
    if page_table is None:
        return cache
    pages = cache[page_table.long().clamp(0, cache.shape[0] - 1)]  # (B, n, K, page size, D)
    return pages.transpose(1, 2).flatten(2, 3)
