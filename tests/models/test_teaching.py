"""The plainly written attention is that of the kernels and of the decoder."""

import doctest

import pytest
import torch
from llmfast.kernels import flash_attention

from llmfast.models import teaching
from llmfast.models.attention import Attention, Places
from llmfast.models.config import DecoderConfig
from llmfast.models.rotary import rotary_table


def test_the_examples_are_true():
    assert doctest.testmod(teaching).failed == 0


@pytest.mark.parametrize("causal", [False, True])
def test_many_heads_equal_the_kernel(causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, heads * 8, dtype=torch.float64) for heads in (4, 2, 2))
    by_head = (each.view(2, 9, -1, 8).transpose(1, 2) for each in (q, k, v))
    expected = flash_attention(*by_head, causal=causal).transpose(1, 2).reshape(2, 9, 32)
    mask = teaching.causal_mask(9) if causal else None
    torch.testing.assert_close(teaching.multi_head_attention(q, k, v, 4, mask), expected)


@pytest.mark.parametrize("rope_base", [None, 10_000.0])
def test_the_layer_equals_the_decoder_s(rope_base):
    """One trap here: columns of the fused product belong to heads in another order than those of three products."""
    torch.manual_seed(0)
    config = DecoderConfig(width=32, heads=4, kv_heads=2, context=9, biases="all")
    ours = Attention(config, 0).double()
    plain = teaching.CausalSelfAttention(32, 4, kv_heads=2, bias=True).double()
    for kind in ("weight", "bias"):
        parts = getattr(ours.qkv, kind).data.split([32, 16, 16])
        for layer, part in zip((plain.query, plain.key, plain.value), parts, strict=True):
            getattr(layer, kind).data = part
    plain.out = ours.out
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    tables = tuple(table.double() for table in rotary_table(config, 9))
    places = Places(tables if rope_base else None)
    torch.testing.assert_close(plain(x, rope_base), ours(x, places), rtol=1e-6, atol=1e-6)
