"""flash_decode and attention_weights: equal to rows of flash_attention, whatever the cache's layout and filling."""

import pytest
import torch
from attention_cases import assert_rows_exact, eager_attention, steps_of
from kernel_testing import assert_matches, random_tensor
from llmfast.kernels import attention_weights, flash_attention, flash_decode

OPTIONS = [
    {},
    {"window": (100, -1)},
    {"softcap": 2.0},
    {"window": (7, -1), "softcap": 3.0, "sinks": True},
    {"causal": False},
]


def int32(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def with_sinks(options, heads, device):
    if options.get("sinks"):
        return options | {"sinks": random_tensor((heads,), device=device, seed=9)}
    return options


def rows(shape, device, dtype=torch.float32, seed=0):
    return random_tensor(shape, dtype, device, seed=seed)


def paged(cache, page, order):
    """(B, K, T, D) laid out in pages of random places, with NaN in those that nobody owns; and the page table."""
    B, K, T, D = cache.shape
    count = -(-T // page)
    padded = torch.nn.functional.pad(cache, (0, 0, 0, count * page - T))
    pages = torch.full((B * count + 3, page, K, D), float("nan"), dtype=cache.dtype, device=cache.device)
    table = order[: B * count].view(B, count)
    pages[table.flatten()] = padded.view(B, K, count, page, D).permute(0, 2, 3, 1, 4).flatten(0, 1)
    return pages.transpose(1, 2), table.to(torch.int32)


@pytest.mark.numeric
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("S", "dtype"), [(1, torch.float32), (3, torch.float16)])
def test_decode_is_the_last_rows_of_forward(device, options, S, dtype):
    H, K, T, D = 6, 2, 600, 24
    options = with_sinks(options, H, device)
    q, k, v = rows((2, H, S, D), device, dtype), *(rows((2, K, T, D), device, dtype, i) for i in (1, 2))
    lengths = [T, 37]
    k[1, :, 37:], v[1, :, 37:] = float("nan"), float("nan")  # Rows that are not filled may hold anything.
    out, lse = flash_decode(q, k, v, int32(lengths, device), **options, return_lse=True)
    for b, length in enumerate(lengths):
        entry = (q[b : b + 1], k[b : b + 1, :, :length], v[b : b + 1, :, :length])
        causal = {"causal": True} | options
        assert_rows_exact((out[b : b + 1], lse[b : b + 1]), entry, **causal)


@pytest.mark.parametrize("page", [16, 24, 256])
def test_shuffled_pages_give_the_bits_of_a_contiguous_cache(device, page):
    q, k, v = rows((2, 4, 1, 16), device), *(rows((2, 2, 520, 16), device, seed=i) for i in (1, 2))
    order = torch.randperm(2 * -(-520 // page), generator=torch.Generator().manual_seed(0)).to(device)
    (k_pages, table), (v_pages, _) = paged(k, page, order), paged(v, page, order)
    lengths = int32([520, 300], device)
    # The capacity decides on the splits, so it is made the same.
    pad = table.shape[1] * page - 520
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, pad)) for x in (k, v))
    contiguous = flash_decode(q, k, v, lengths, window=(290, -1))
    assert torch.equal(flash_decode(q, k_pages, v_pages, lengths, page_table=table, window=(290, -1)), contiguous)
    assert torch.equal(flash_decode(q, k, v, lengths, window=(290, -1)), contiguous)


@pytest.mark.numeric
@pytest.mark.parametrize("page", [None, 16])
def test_append_writes_behind_the_filled_rows_and_attends_to_them(device, page):
    k, v = (rows((2, 2, 64, 16), device, seed=i) for i in (1, 2))
    q, new_k, new_v = rows((2, 4, 3, 16), device), *(rows((2, 2, 3, 16), device, seed=i) for i in (3, 4))
    lengths = [40, 0]
    for b, n in enumerate(lengths):
        k[b, :, n:], v[b, :, n:] = float("nan"), float("nan")
    table = None
    if page:
        order = torch.arange(8, device=device).flip(0)
        (k_cache, table), (v_cache, _) = paged(k, page, order), paged(v, page, order)
    else:
        k_cache, v_cache = k.clone(), v.clone()
    given = int32(lengths, device)
    out = flash_decode(q, k_cache, v_cache, given, k_new=new_k, v_new=new_v, page_table=table)
    assert given.tolist() == lengths
    for b, n in enumerate(lengths):
        k[b, :, n : n + 3], v[b, :, n : n + 3] = new_k[b], new_v[b]
        entry = (q[b : b + 1], k[b : b + 1, :, : n + 3], v[b : b + 1, :, : n + 3])
        assert_rows_exact(out[b : b + 1], entry, causal=True)
    if not page:
        assert torch.equal(k_cache.nan_to_num(7.0), k.nan_to_num(7.0))


def test_rows_past_the_end_of_the_cache_are_dropped(device):
    cache = torch.zeros(2, 1, 1, 8, 16, device=device)
    guard = cache.clone()
    new = rows((1, 1, 4, 16), device)
    flash_decode(rows((1, 1, 1, 16), device), cache[0], cache[1], int32([6], device), k_new=new, v_new=new)
    guard[:, 0, 0, 6:] = new[0, 0, :2]
    assert torch.equal(cache, guard)


def test_decoding_step_by_step_compiles_whole(device):
    def step(q, k_cache, v_cache, lengths, new):
        return flash_decode(q, k_cache, v_cache, lengths, k_new=new, v_new=new)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    caches = [torch.zeros(2, 1, 2, 16, 16, device=device) for _ in range(2)]
    lengths = int32([0], device)
    for i in range(3):
        q, new = rows((1, 4, 1, 16), device, seed=i), rows((1, 2, 1, 16), device, seed=10 + i)
        eager = step(q, *caches[0], lengths, new)
        assert torch.equal(compiled(q, *caches[1], lengths, new), eager)
        lengths += 1
    assert torch.equal(*caches)


def test_what_decode_refuses():
    q, cache, lengths = torch.zeros(2, 4, 1, 16), torch.zeros(2, 2, 8, 16), torch.zeros(2, dtype=torch.int32)
    refused = [
        ((q, cache[:1], cache[:1], lengths), {}, "page_table"),
        ((q, cache, cache, lengths.long()), {}, "cache_seqlens is one int32"),
        ((q, cache, cache[..., :8], lengths), {}, "caches are"),
        ((q, cache.half(), cache, lengths), {}, "k_cache has four dimensions"),
        ((q, cache, cache, lengths), {"k_new": cache}, "v_new is"),
        ((q, cache, cache, lengths), {"page_table": lengths}, "page_table is int32"),
        ((q.clone().requires_grad_(), cache, cache, lengths), {}, "no gradient"),
    ]
    for arguments, options, message in refused:
        with pytest.raises(ValueError, match=message):
            flash_decode(*arguments, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"causal": True, "window": (3, 0), "softcap": 2.0, "sinks": True}],
    ids=str,
)
@pytest.mark.parametrize("from_lse", [False, True])
def test_weights_of_chosen_heads_and_rows(options, from_lse):
    options = with_sinks(options, 6, "cpu")
    q, k = rows((2, 6, 9, 16), "cpu").double(), rows((2, 2, 7, 16), "cpu", seed=1).double()
    identity = torch.eye(7, dtype=torch.float64).expand(2, 2, 7, 7)
    wide = torch.nn.functional.pad(identity, (0, 9))  # Values that are unit vectors give back the probabilities.
    out, lse = flash_attention(q, k, wide, **options, return_lse=True)
    chosen = attention_weights(q, k, heads=[5, 0], rows=[-1, 2, 0], lse=lse if from_lse else None, **options)
    torch.testing.assert_close(chosen, out[:, [5, 0]][:, :, [8, 2, 0], :7])
    everything = attention_weights(q, k, **options)
    torch.testing.assert_close(everything, out[..., :7])


def test_weights_refuse_an_index_out_of_range():
    q = torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match="rows is a sequence of indices from -3 to 2"):
        attention_weights(q, q, rows=[3])


@pytest.mark.numeric
def test_short_queries_take_the_split_cache(device):
    """One query against many keys: the kernel that splits them gives forward its result, and backward its lse."""
    q, k, v = rows((1, 4, 1, 16), device), *(rows((1, 2, 700, 16), device, seed=i) for i in (1, 2))
    assert_matches(
        lambda **x: flash_attention(**x, causal=True, return_lse=True),
        lambda **x: eager_attention(**x, causal=True),
        {"q": q, "k": k, "v": v},
        algorithm=steps_of(torch.float32, causal=True),
    )


def test_a_group_of_short_queries_is_packed(device):
    """20 queries of each of 8 heads fill two tiles, where a forward tile a head would stand three quarters empty."""
    q, k, v = rows((1, 8, 20, 16), device), *(rows((1, 1, 520, 16), device, seed=i) for i in (1, 2))
    out, lse = flash_attention(q, k, v, causal=True, return_lse=True)
    assert_rows_exact((out, lse), (q, k, v), causal=True)
