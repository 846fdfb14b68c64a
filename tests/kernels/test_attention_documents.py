"""Documents laid end to end on a CPU, each attended to by itself: equal to the definition, which masks all with all."""

import pytest
import torch
from llmfast.kernels import flash_attention
from llmfast.kernels.attention import reference as definition

BOUNDS = [0, 0, 5, 130, 130, 420, 430]  # empty documents, one longer than SHORT, and rows behind the last
ROWS = 440


def documents(dtype, heads, kv_heads, width):
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, heads, width), (ROWS, kv_heads, width), (ROWS, kv_heads, width))
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return (
        tensors,
        torch.tensor(BOUNDS, dtype=torch.int32),
        torch.randn(shapes[0], generator=generator).to(dtype),
    )


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
    tensors, cu_seqlens, d_out = documents(dtype, 4, 2, 24)
    out = flash_attention(*tensors, cu_seqlens_q=cu_seqlens, **options)
    gradients = torch.autograd.grad(out, tensors, d_out)

    exact = [x.detach().double().requires_grad_() for x in tensors]
    scale = options.get("scale", 24**-0.5)
    expected, _ = definition.attention(
        *exact, scale=scale, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, **bounds
    )
    expected_gradients = torch.autograd.grad(expected, exact, d_out.double())
    tolerance = 16 * torch.finfo(dtype).eps
    for found, wanted in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        assert found.dtype == dtype
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error < tolerance
    assert not out[BOUNDS[-1] :].any()
    assert all(not gradient[BOUNDS[-1] :].any() for gradient in gradients)


def test_compiles_whole_and_under_autocast():
    """The boundaries are read on the way, which a compiler must not trace."""
    tensors, cu_seqlens, _ = documents(torch.float32, 2, 1, 16)

    def attend(q, k, v):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return flash_attention(
                q.bfloat16(), k.bfloat16(), v.bfloat16(), cu_seqlens_q=cu_seqlens, causal=True
            )

    compiled = torch.compile(attend, fullgraph=True)(*tensors)
    plain = attend(*tensors)
    assert plain.dtype == torch.bfloat16
    torch.testing.assert_close(compiled, plain, rtol=0, atol=0)
    gradients = [torch.autograd.grad(out.float().square().sum(), tensors) for out in (compiled, plain)]
    torch.testing.assert_close(*gradients)


def test_checked_as_an_operator():
    tensors, cu_seqlens, _ = documents(torch.float32, 2, 1, 8)
    torch.library.opcheck(torch.ops.llmfast.documents_attention.default, (*tensors, cu_seqlens, 0.3, 2, 0))
