"""Documents laid end to end on a CPU, each attended to by itself: equal to the definition, which masks all with all."""

import pytest
import torch
from kernel_testing import assert_matches, results
from llmfast.kernels import flash_attention
from llmfast.kernels.attention import reference as definition

BOUNDS = [0, 0, 5, 130, 130, 420, 430]  # empty documents, one longer than SHORT, and rows behind the last
ROWS = 440


def documents(dtype, heads, kv_heads, width):
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, heads, width), (ROWS, kv_heads, width), (ROWS, kv_heads, width))
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for name, shape in zip("qkv", shapes, strict=True)
    }
    return tensors, torch.tensor(BOUNDS, dtype=torch.int32)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({"causal": True}, {"right": 0}),
        ({"causal": True, "window": (3, 0)}, {"left": 3, "right": 0}),
        ({"window": (2, 7)}, {"left": 2, "right": 7}),
        ({}, {}),
        ({"causal": True, "scale": -0.3}, {"right": 0}),
    ],
)
def test_equals_the_definition(dtype, options, bounds):
    """Values and gradients, grouped heads added up, rows of no document 0."""
    tensors, cu_seqlens = documents(dtype, 4, 2, 24)
    scale = options.get("scale", 24**-0.5)

    def ours(q, k, v):
        return flash_attention(q, k, v, cu_seqlens_q=cu_seqlens, **options)

    def peer(q, k, v):
        whole = {"scale": scale, "cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
        return definition.attention(q, k, v, **whole, **bounds)[0]

    if dtype == torch.float64:
        for found, expected in zip(results(ours, tensors).values(), results(peer, tensors).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    else:
        assert_matches(ours, peer, tensors)
    assert not any(value[BOUNDS[-1] :].any() for value in results(ours, tensors).values())


def test_compiles_whole_and_under_autocast():
    """The boundaries are read on the way, which a compiler must not trace."""
    tensors, cu_seqlens = documents(torch.float32, 2, 1, 16)

    def attend(q, k, v):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return flash_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), cu_seqlens_q=cu_seqlens, causal=True)

    compiled = torch.compile(attend, fullgraph=True)(**tensors)
    plain = attend(**tensors)
    assert plain.dtype == torch.bfloat16
    assert torch.equal(compiled, plain)
    found = [torch.autograd.grad(out.float().square().sum(), tensors.values()) for out in (compiled, plain)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_checked_as_an_operator():
    tensors, cu_seqlens = documents(torch.float32, 2, 1, 8)
    torch.library.opcheck(torch.ops.llmfast.documents_attention.default, (*tensors.values(), cu_seqlens, 0.3, 2, 0))
