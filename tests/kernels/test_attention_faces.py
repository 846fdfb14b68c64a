"""The names other code calls: flash-attn's functions, PyTorch's SDPA, and transformers' attention implementation."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attention_cases import assert_rows_exact
from kernel_testing import assert_as_exact_as, require_interpreter
from llmfast.kernels import (
    backend,
    flash_attention,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    rope,
    sdpa,
)
from torch.nn.attention.bias import causal_lower_right, causal_upper_left


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 9, 4, 16, generator=torch.Generator().manual_seed(0))  # (B, S, H, D) three times


def ours(q, k, v, **options):
    return flash_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options)


def test_flash_attn_functions_have_its_layout_and_returns(qkv):
    expected, lse = ours(*qkv, causal=True, scale=0.3, window=(4, -1), softcap=5.0, return_lse=True)
    options = {"causal": True, "softmax_scale": 0.3, "window_size": (4, -1), "softcap": 5.0}
    out, found_lse, probabilities = flash_attn_func(*qkv, **options, return_attn_probs=True)
    assert torch.equal(out, expected.transpose(1, 2))
    assert torch.equal(found_lse, lse)
    assert probabilities is None
    assert torch.equal(flash_attn_func(*qkv, 0.0, 0.3, True, (4, -1), 5.0), out)  # In flash-attn's order.
    assert torch.equal(flash_attn_qkvpacked_func(torch.stack(tuple(qkv), dim=2), **options), out)
    assert torch.equal(flash_attn_kvpacked_func(qkv[0], torch.stack(tuple(qkv[1:]), dim=2), **options), out)


def test_flash_attn_varlen(qkv):
    q, k, v = (x.flatten(0, 1) for x in qkv)
    cu = torch.tensor([0, 9, 18], dtype=torch.int32)
    out, lse, _ = flash_attn_varlen_func(q, k, v, cu, cu, 9, 9, causal=True, return_attn_probs=True)
    found = (out.view(2, 9, 4, 16).transpose(1, 2), lse.view(4, 2, 9).transpose(0, 1))
    assert_rows_exact(found, [x.transpose(1, 2) for x in qkv], causal=True)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_flash_attn_with_kvcache(qkv, indexed, rotary):
    q, k, v = qkv
    cos, sin = (torch.randn(32, 8, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    filled = 6
    turn = (lambda x: rope(x, cos=cos[:9], sin=sin[:9], interleaved=True)) if rotary else (lambda x: x)
    index = torch.tensor([2, 0], dtype=torch.int32) if indexed else None
    caches = [torch.zeros(3 if indexed else 2, 12, 4, 16) for _ in range(2)]
    for cache, x in zip(caches, (turn(k), v), strict=True):
        cache[[2, 0] if indexed else [0, 1], :filled] = x[:, :filled]
    out, lse = flash_attn_with_kvcache(
        q[:, filled:],
        *caches,
        k[:, filled:],
        v[:, filled:],
        rotary_cos=cos if rotary else None,
        rotary_sin=sin if rotary else None,
        cache_seqlens=filled,
        cache_batch_idx=index,
        causal=True,
        return_softmax_lse=True,
    )
    inputs = (turn(q)[:, filled:], turn(k), v)
    assert_rows_exact((out.transpose(1, 2), lse), [x.transpose(1, 2) for x in inputs], causal=True)


@pytest.mark.parametrize("lengths", [(9, 9), (5, 9), (9, 5)])
@pytest.mark.parametrize("kind", ["plain", "is_causal", "upper left", "lower right", "scale"])
def test_sdpa_is_pytorchs(lengths, kind):
    S, T = lengths
    if kind == "lower right" and S > T:
        pytest.skip("PyTorch gives NaN for rows that see nothing here")
    q, k, v = torch.randn(2, 4, S, 16), *torch.randn(2, 2, 2, T, 16)
    bias = {"upper left": causal_upper_left, "lower right": causal_lower_right}.get(kind)
    options = {"scale": 0.2} if kind == "scale" else {}
    dense = (
        None if bias is None else torch.tril(torch.ones(S, T, dtype=torch.bool), T - S if kind == "lower right" else 0)
    )

    def peer(q, k, v):
        how = {"is_causal": kind == "is_causal", "enable_gqa": True}
        return F.scaled_dot_product_attention(q, k, v, dense, **how, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = bias(S, T) if bias else None
        found = sdpa(q, k, v, mask, is_causal=kind == "is_causal", enable_gqa=True, **options)
    algorithm = partial(peer, *(x.double() for x in (q, k, v)))
    assert_as_exact_as("out", found, peer(q, k, v), algorithm(), algorithm)


def test_sdpa_leaves_masks_to_pytorch_and_says_so_once(monkeypatch):
    monkeypatch.setattr("llmfast.kernels.attention.compat._said", set())
    q = torch.randn(1, 2, 5, 16)
    mask = torch.randn(5, 5)
    with pytest.warns(UserWarning, match="an attn_mask tensor"):
        found = sdpa(q, q, q, mask)
    assert torch.equal(found, F.scaled_dot_product_attention(q, q, q, mask))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdpa(q, q, q, mask)


def tiny_model(kind, implementation, **config):
    transformers = pytest.importorskip("transformers")
    from llmfast.integrations.transformers_attention import register

    register()
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "attn_implementation": implementation,
    }
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{kind}Config")(**sizes | config)
    return getattr(transformers, f"{kind}ForCausalLM")(configuration)


PADDED = torch.tensor([[0, 0, 0] + [1] * 9, [1] * 12])


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(("kind", "config"), [("Llama", {}), ("Mistral", {"sliding_window": 4})])
def test_transformers_train_to_the_same_loss(kind, config, padding):
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = {"none": None, "left": PADDED, "right": PADDED.flip(1)}[padding]
    labels = tokens if mask is None else tokens.masked_fill(mask == 0, -100)
    if padding == "left":
        labels[0, 3] = -100  # What a padding token predicts is nobody's business.

    def second_loss(implementation, dtype=torch.float32):
        model = tiny_model(kind, implementation, **config).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(2):
            loss = model(tokens, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.detach()

    exact = partial(second_loss, "sdpa", torch.float64)
    assert_as_exact_as("loss", second_loss("llmfast"), second_loss("eager"), exact(), exact)


def heads_last(function):
    """transformers' attention interface over a function of (B, S, H, D)."""

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        return function(*(x.transpose(1, 2) for x in (query, key, value)), scaling), None

    return attend


def packed(q, k, v, scale):
    B, S = q.shape[:2]
    cu = torch.arange(0, B * S + 1, S, dtype=torch.int32)
    rows = (x.flatten(0, 1) for x in (q, k, v))
    return flash_attn_varlen_func(*rows, cu, cu, S, S, softmax_scale=scale, causal=True).unflatten(0, (B, S))


def qkv_packed(q, k, v, scale):
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    return flash_attn_qkvpacked_func(torch.stack((q, k, v), 2), softmax_scale=scale, causal=True)


def by_sdpa(q, k, v, scale):
    inputs = (x.transpose(1, 2) for x in (q, k, v))
    return sdpa(*inputs, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)


# By names without "flash" or "sdpa", which transformers would take for its own.
FACES = {
    "dense": lambda q, k, v, scale: flash_attn_func(q, k, v, softmax_scale=scale, causal=True),
    "packed": packed,
    "stacked": qkv_packed,
    "torch's": by_sdpa,
}


@pytest.mark.parametrize("kernels", [False, True], ids=["definition", "kernels"])
def test_a_llama_trains_one_step_to_the_same_loss_through_each_face(kernels):
    if kernels:
        require_interpreter()
    transformers = pytest.importorskip("transformers")
    for name, function in FACES.items():
        transformers.AttentionInterface.register(name, heads_last(function))
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(4))

    def losses(implementation, dtype=torch.float32):
        model = tiny_model("Llama", implementation).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with backend("triton" if kernels else "reference"):
            before = model(tokens, labels=tokens).loss
            before.backward()
            optimizer.step()
            return torch.stack((before, model(tokens, labels=tokens).loss)).detach()

    eager, exact = losses("eager"), partial(losses, "sdpa", torch.float64)
    assert eager[1] < eager[0]
    for name in ("llmfast", *FACES):
        assert_as_exact_as(name, losses(name), eager, exact(), exact)


@pytest.mark.parametrize("padded", [False, True])
def test_transformers_generate_the_same_tokens(padded):
    tokens = torch.randint(1, 40, (2, 12), generator=torch.Generator().manual_seed(2))
    mask = PADDED if padded else torch.ones_like(tokens)
    eager, fast = (
        tiny_model("Llama", implementation)
        .eval()
        .generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for implementation in ("eager", "llmfast")
    )
    assert torch.equal(eager, fast)


def test_transformers_packed_positions_take_the_whole_mask():
    """Two sequences in one row, told apart by their positions alone."""
    tokens = torch.randint(40, (1, 12), generator=torch.Generator().manual_seed(3))
    positions = torch.tensor([[*range(5), *range(7)]])

    def logits(implementation, dtype=torch.float32):
        model = tiny_model("Llama", implementation).to(dtype)
        return model(tokens, position_ids=positions, use_cache=False).logits.detach()

    exact = partial(logits, "sdpa", torch.float64)
    assert_as_exact_as("logits", logits("llmfast"), logits("eager"), exact(), exact)
