"""int8_linear: as exact as decoding followed by PyTorch's product, by every kernel."""

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import (
    assert_as_exact_as,
    assert_compiles,
    assert_matches,
    assert_same_bits,
    random_tensor,
)
from llmfast.kernels import int8_linear, quantize_int8
from llmfast.kernels.int8.launch import strategy


def test_error_is_half_a_step_of_each_row_at_most():
    weight = torch.cat([random_tensor((30, 64)), torch.zeros(1, 64), 1e30 * random_tensor((1, 64))])
    codes, scale = quantize_int8(weight)
    assert codes.abs().amax(1).tolist() == [127] * 30 + [0, 127]
    assert ((codes * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


@pytest.mark.numeric
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "how"),
    [
        (0, 64, torch.float16, "few tokens"),
        (1, 576, torch.float16, "few tokens"),
        (16, 128, torch.float16, "few tokens"),
        (70, 1152, torch.float16, "tiles"),
        (3, 100, torch.float16, "workspace"),
        (3, 128, torch.float32, "workspace"),
    ],
)
def test_as_exact_as_pytorch_on_the_decoded_weight(device, tokens, width, dtype, how, layout):
    assert strategy(tokens, width, dtype) == how
    codes, scale = quantize_int8(random_tensor((40, width), torch.float32, device, seed=1) / width**0.5)
    inputs = {"x": random_tensor((tokens, width), dtype, device, layout)}
    inputs["bias"] = random_tensor((40,), dtype, device, seed=2)

    def peer(x, bias):
        return F.linear(x, (codes.to(torch.float64) * scale[:, None]).to(x.dtype), bias)

    def ours(x, bias):
        return int8_linear(x, codes, scale, bias)

    assert_matches(ours, peer, inputs)
    assert_same_bits(ours, inputs)


def test_compiles_and_is_well_formed(device):
    codes, scale = quantize_int8(random_tensor((8, 64), torch.float32, device))
    x, bias = random_tensor((2, 3, 64), torch.float16, device), random_tensor((8,), torch.float16, device)
    assert_compiles(lambda x, bias: int8_linear(x, codes, scale, bias), {"x": x, "bias": bias})
    arguments = (x[0].requires_grad_(), codes, scale, bias.requires_grad_(), True)
    torch.library.opcheck(torch.ops.llmfast.int8_linear.default, arguments)


def test_large_codes_do_not_overflow_float16(device):
    """The trap: codes multiplied before they are scaled reach 127 times the result."""
    codes, scale = quantize_int8(torch.full((40, 576), 0.01, device=device))
    x = torch.full((300, 576), 1000.0, dtype=torch.float16, device=device)
    weight = codes.double() * scale[:, None]
    for tokens in (1, 20, 300):
        exact = x[:tokens].double() @ weight.T
        found = int8_linear(x[:tokens], codes, scale)
        assert_as_exact_as("output", found, None, exact, lambda n=tokens: x[:n].double() @ weight.T)


def test_errors_name_the_argument():
    codes, scale = quantize_int8(torch.ones(8, 64))
    with pytest.raises(ValueError, match=r"codes must be torch.int8 \(N, K\).*\(8, 64\) for \(2, 32\)"):
        int8_linear(torch.ones(2, 32), codes, scale)
    with pytest.raises(ValueError, match=r"scale must have one element a row, \(8,\), got \(1,\)"):
        int8_linear(torch.ones(2, 64), codes, scale[:1])
    with pytest.raises(ValueError, match=r"weight must be \(N, K\), got \(8,\)"):
        quantize_int8(torch.ones(8))
