"""What users of flash-attn rely on beside causality and windows: ALiBi, padding within packed sequences, pages."""

import math

import pytest
import torch
from kernel_testing import require_interpreter
from llmfast.kernels import (
    backend,
    flash_attention,
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    flash_decode,
)

HEADS, GROUPS, WIDTH = 4, 2, 16


def head_slopes():
    return torch.tensor([0.5, 0.25, 0.0, 1.5])


def numbers(*shape, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu").to(torch.get_default_device())


@pytest.fixture(params=["reference", "triton", pytest.param("cuda", marks=pytest.mark.gpu)], autouse=True)
def path(request):
    """The definition, the kernels in the interpreter, and on a GPU, where all tensors of the test are made then."""
    on_gpu = request.param == "cuda"
    if not on_gpu:
        require_interpreter()
    with backend("triton" if on_gpu else request.param), torch.device("cuda" if on_gpu else "cpu"):
        yield request.param


def formula(q, k, v, slopes, causal=False, left=None, softcap=None, sinks=None):
    """out and lse of (H, S, D) queries and (K, T, D) keys, score by score."""
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], dim=0) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    S, T = scores.shape[1:]
    distance = torch.arange(S)[:, None] + T - S - torch.arange(T)
    scores = scores - slopes[:, None, None] * distance.abs()
    hidden = torch.zeros(S, T, dtype=torch.bool)
    hidden = hidden | (distance < 0) if causal else hidden
    hidden = hidden if left is None else hidden | (distance > left)
    blind = hidden.all(-1)  # Such rows give 0, and no gradient.
    scores = scores.masked_fill(hidden & ~blind[:, None], float("-inf"))
    with_sink = scores if sinks is None else torch.cat([scores, sinks[:, None, None].expand(-1, S, 1)], -1)
    return with_sink.softmax(-1)[..., :T] @ v * ~blind[:, None], with_sink.logsumexp(-1)


def assert_same_gradients(ours, right, tensors):
    """Results and gradients through all of them."""
    found = []
    for function in (ours, right):
        leaves = [x.clone().requires_grad_() for x in tensors]
        results = function(*leaves)
        weights = [numbers(*x.shape, seed=9 + i) for i, x in enumerate(results)]
        grads = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, results, strict=True)), leaves)
        found.append([*(x.detach() for x in results), *grads])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "by_sequence", "S", "T"),
    [
        ({}, False, 40, 70),
        ({"causal": True}, True, 40, 40),
        ({"causal": True, "left": 9, "softcap": 3.0}, True, 37, 70),
        ({"sinks": True}, False, 40, 40),
    ],
    ids=["full", "causal", "window and cap", "sinks"],
)
def test_alibi(options, by_sequence, S, T):
    """Traps: distances from the first query and not the last; a cap's derivative at the biased score; the slope of a
    key's head and not of a query's; a bias that is left out of tiles without a mask."""
    q, k, v = numbers(2, HEADS, S, WIDTH), numbers(2, GROUPS, T, WIDTH, seed=1), numbers(2, GROUPS, T, WIDTH, seed=2)
    slopes = torch.stack([head_slopes(), head_slopes().flip(0)]) if by_sequence else head_slopes()
    own = dict(options)
    tensors = [q, k, v, *([numbers(HEADS, seed=3)] if own.pop("sinks", False) else [])]
    window = None if own.get("left") is None else (own["left"], -1)

    def ours(q, k, v, sinks=None):
        given = {"causal": own.get("causal", False), "softcap": own.get("softcap"), "window": window, "sinks": sinks}
        return flash_attention(q, k, v, alibi_slopes=slopes, return_lse=True, **given)

    def right(q, k, v, sinks=None):
        each = [formula(q[b], k[b], v[b], slopes.expand(2, HEADS)[b], **own, sinks=sinks) for b in range(2)]
        return tuple(torch.stack(x) for x in zip(*each, strict=True))

    assert_same_gradients(ours, right, tensors)


def packed_case():
    """Sequences of 5, 0, 40 and 9 queries with 12, 3, 60 and 9 keys, of which some count."""
    cu_q = torch.tensor([0, 5, 5, 45, 54], dtype=torch.int32)
    cu_k = torch.tensor([0, 12, 15, 75, 84], dtype=torch.int32)
    used_q = torch.tensor([5, 0, 33, 2], dtype=torch.int32)
    used_k = torch.tensor([10, 3, 50, 9], dtype=torch.int32)
    pad_k = torch.tensor([3, 0, 4, 7], dtype=torch.int32)
    rows = numbers(56, HEADS, WIDTH), numbers(86, GROUPS, WIDTH, seed=1), numbers(86, GROUPS, WIDTH, seed=2)
    return rows, cu_q, cu_k, used_q, used_k, pad_k


@pytest.mark.parametrize(
    ("given", "causal"), [({"k"}, True), ({"pad"}, True), ({"q", "k", "pad"}, False), ({"q", "k", "pad"}, True)]
)
def test_only_tokens_that_count_are_seen(given, causal):
    """Traps: positions aligned at the end of the storage; padding that is read (it may be NaN); rows that do not count
    left unwritten."""
    (q, k, v), cu_q, cu_k, used_q, used_k, pad_k = packed_case()
    slopes = torch.stack([head_slopes() * (i + 1) for i in range(4)])
    used_q = used_q if "q" in given else cu_q.diff()
    used_k = used_k if "k" in given else cu_k.diff()
    pad_k = pad_k if "pad" in given else torch.zeros_like(used_k)
    for b in range(4):
        k[cu_k[b] : cu_k[b] + pad_k[b]] = float("nan")
        k[cu_k[b] + used_k[b] : cu_k[b + 1]] = float("nan")
        q[cu_q[b] + used_q[b] : cu_q[b + 1]] = float("nan")

    def ours(q, k, v):
        return flash_attention(
            q,
            k,
            v,
            causal=causal,
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            seqused_q=used_q if "q" in given else None,
            seqused_k=used_k if "k" in given else None,
            leftpad_k=pad_k if "pad" in given else None,
            alibi_slopes=slopes,
        )

    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = ours(*leaves)
    weights = numbers(*out.shape, seed=9)
    grads = torch.autograd.grad((out * weights).sum(), leaves)
    right = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = torch.zeros_like(out)
    for b in range(4):
        rows = slice(cu_q[b], cu_q[b] + used_q[b])
        keys = slice(cu_k[b] + pad_k[b], cu_k[b] + used_k[b])
        if used_q[b] and used_k[b] > pad_k[b]:
            parts = (x[here].transpose(0, 1) for x, here in zip(right, (rows, keys, keys), strict=True))
            found = formula(*parts, slopes[b], causal=causal)[0].transpose(0, 1)
            expected = torch.cat([expected[: rows.start], found, expected[rows.stop :]])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)
    wanted = torch.autograd.grad((expected * weights).sum(), right)
    for mine, exact in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("T", [64, 1100])
def test_decoding_with_alibi_and_padding(T):
    """1,100 rows are read in several parts."""
    q, k, v = numbers(2, HEADS, 2, WIDTH), numbers(2, GROUPS, T, WIDTH, seed=1), numbers(2, GROUPS, T, WIDTH, seed=2)
    filled, pad = torch.tensor([T, T // 2 + 1], dtype=torch.int32), torch.tensor([T // 3, 0], dtype=torch.int32)
    slopes = head_slopes() / 20
    k[0, :, : T // 3] = v[0, :, : T // 3] = float("nan")
    out, lse = flash_decode(q, k, v, filled, alibi_slopes=slopes, leftpad=pad, return_lse=True)
    for b in range(2):
        keys = slice(pad[b], filled[b])
        expected = formula(q[b], k[b, :, keys], v[b, :, keys], slopes, causal=True)
        for mine, right in zip((out[b], lse[b]), expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


def test_few_queries_of_many_keys_with_alibi():
    """They go to the decoding kernels."""
    q, k, v = (
        numbers(1, HEADS, 2, WIDTH),
        numbers(1, GROUPS, 600, WIDTH, seed=1),
        numbers(1, GROUPS, 600, WIDTH, seed=2),
    )
    out = flash_attention(q, k, v, causal=True, alibi_slopes=head_slopes())
    torch.testing.assert_close(out[0], formula(q[0], k[0], v[0], head_slopes(), causal=True)[0], rtol=1e-4, atol=1e-5)


def test_the_names_of_flash_attn():
    q, k, v = (numbers(2, 9, heads, WIDTH, seed=heads) for heads in (HEADS, GROUPS, GROUPS))
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected = flash_attention(*heads_first, causal=True, alibi_slopes=head_slopes()).transpose(1, 2)
    assert torch.equal(flash_attn_func(q, k, v, causal=True, alibi_slopes=head_slopes()), expected)
    cu = torch.tensor([0, 9, 18], dtype=torch.int32)
    rows = [x.flatten(0, 1) for x in (q, k, v)]
    found = flash_attn_varlen_func(*rows, cu, cu, 9, 9, causal=True, alibi_slopes=head_slopes())
    torch.testing.assert_close(found.view_as(expected), expected)
    lengths = torch.tensor([9, 9], dtype=torch.int32)
    found = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True, alibi_slopes=head_slopes())
    torch.testing.assert_close(found, expected)
    pad = torch.tensor([2, 0], dtype=torch.int32)
    found = flash_attn_with_kvcache(q[:, -1:], k, v, cache_seqlens=lengths, cache_leftpad=pad)
    alone = flash_attn_func(q[:1, -1:], k[:1, 2:], v[:1, 2:])
    torch.testing.assert_close(found[:1], alone)


def test_rotary_positions_count_from_the_padding():
    q, k, new = numbers(1, 1, 2, WIDTH), numbers(1, 12, 2, WIDTH, seed=1), numbers(1, 1, 2, WIDTH, seed=2)
    tables = [numbers(32, 8, seed=seed) for seed in (3, 4)]
    length, pad = torch.tensor([8], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    found = flash_attn_with_kvcache(q, k.clone(), k.clone(), new, new, *tables, length, cache_leftpad=pad, causal=True)
    shorter = k[:, 3:].clone()
    expected = flash_attn_with_kvcache(q, shorter, shorter.clone(), new, new, *tables, length - 3, causal=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("used", [None, [5, 9]])
def test_pages_of_packed_sequences(used):
    """Entries of the table past a sequence's end may be anything."""
    pages, size = numbers(5, 4, GROUPS, WIDTH, seed=1), 4
    values = numbers(5, size, GROUPS, WIDTH, seed=2)
    table = torch.tensor([[3, 0, 99], [4, 1, 3]], dtype=torch.int32)
    cu_q, cu_k = torch.tensor([0, 3, 10], dtype=torch.int32), torch.tensor([0, 7, 17], dtype=torch.int32)
    q = numbers(10, HEADS, WIDTH)
    given = None if used is None else torch.tensor(used, dtype=torch.int32)
    options = {"causal": True, "seqused_k": given}
    found = flash_attn_varlen_func(q, pages, values, cu_q, cu_k, 7, 10, block_table=table, **options)
    rows = ((table[0, :2], 7), (table[1], 10))
    k, v = (torch.cat([x[some.long()].flatten(0, 1)[:n] for some, n in rows]) for x in (pages, values))
    torch.testing.assert_close(found, flash_attn_varlen_func(q, k, v, cu_q, cu_k, 7, 10, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: {"alibi_slopes": torch.ones(3)}, r"alibi_slopes is one number a query head, \(4,\) or \(2, 4\)"),
        (lambda: {"alibi_slopes": torch.ones(4, dtype=torch.int32)}, "alibi_slopes is one number a query head"),
        (lambda: {"alibi_slopes": torch.ones(4, requires_grad=True)}, "alibi_slopes gets no gradient"),
        (lambda: {"seqused_k": torch.ones(2, dtype=torch.int32)}, "seqused_k is of packed sequences"),
        (lambda: {"leftpad_k": torch.ones(2, dtype=torch.int32)}, "leftpad_k is of packed sequences"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        flash_attention(*(numbers(2, HEADS, 5, WIDTH) for _ in range(3)), **options())


def test_what_is_not_computed_is_refused():
    q, cu = numbers(10, HEADS, WIDTH), torch.tensor([0, 5, 10], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"seqused_q is one int32 a sequence, \(2,\)"):
        flash_attention(q, q, q, cu_seqlens_q=cu, seqused_q=torch.ones(3, dtype=torch.int32))
    pages = numbers(2, 5, HEADS, WIDTH)
    table = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="block_table has no gradient"):
        flash_attn_varlen_func(q, pages.requires_grad_(), pages, cu, cu, 5, 5, block_table=table)
    with pytest.raises(ValueError, match="block_table is int32"):
        flash_attn_varlen_func(q, q, q, cu, cu, 5, 5, block_table=table)
    cache = pages.detach()
    with pytest.raises(ValueError, match="cache_leftpad is of contiguous caches"):
        flash_attn_with_kvcache(cache[:, :1], cache, cache, block_table=table, cache_leftpad=table[:, 0])
