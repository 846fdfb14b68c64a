"""swiglu, geglu and gelu: as exact as PyTorch's, for every shape, stride and dtype, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import (
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    dtypes,
    far_apart,
    layouts,
    lengths,
    random_tensor,
    widths,
)
from llmfast.kernels import geglu, gelu, swiglu

approximations = st.sampled_from(["none", "tanh"])


def torch_swiglu(gate, up=None):
    gate, up = gate.chunk(2, -1) if up is None else (gate, up)
    return F.silu(gate) * up


def torch_geglu(gate, up=None, approximate="none"):
    gate, up = gate.chunk(2, -1) if up is None else (gate, up)
    return F.gelu(gate, approximate=approximate) * up


def torch_gelu(x, bias=None, approximate="none"):
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    length=lengths,
    width=widths,
    dtype=dtypes,
    layout=layouts,
    grad_layout=layouts,
    packed=st.booleans(),
    approximate=approximations,
)
def check_gated(device, length, width, dtype, layout, grad_layout, packed, approximate):
    if packed:
        inputs = {"gate": random_tensor((length, 2, 2 * width), dtype, device, layout)}
    else:
        inputs = {"gate": random_tensor((length, 2, width), dtype, device, layout)}
        inputs["up"] = random_tensor((length, 2, width), dtype, device, seed=1)
    assert_matches(swiglu, torch_swiglu, inputs, grad_layout)
    assert_matches(
        lambda **tensors: geglu(**tensors, approximate=approximate),
        lambda **tensors: torch_geglu(**tensors, approximate=approximate),
        inputs,
        grad_layout,
    )


def test_gated_of_any_shape_stride_and_dtype(device):
    check_gated(device)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    length=lengths,
    width=widths,
    dtype=dtypes,
    layout=layouts,
    grad_layout=layouts,
    biased=st.booleans(),
    approximate=approximations,
)
def check_gelu(device, length, width, dtype, layout, grad_layout, biased, approximate):
    inputs = {"x": random_tensor((length, 2, width), dtype, device, layout)}
    if biased:
        inputs["bias"] = random_tensor((width,), dtype, device, seed=1)
    assert_matches(
        lambda **tensors: gelu(**tensors, approximate=approximate),
        lambda **tensors: torch_gelu(**tensors, approximate=approximate),
        inputs,
        grad_layout,
    )


@pytest.mark.numeric
def test_gelu_of_any_shape_stride_and_dtype(device):
    check_gelu(device)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_very_large_inputs_neither_overflow_nor_lose_their_gradient(device, approximate):
    gate = torch.tensor([-3e38, -1e4, -90.0, -0.0, 0.0, 90.0, 1e4, 60000.0], device=device).requires_grad_()
    up = torch.ones_like(gate)
    for y in (swiglu(gate, up), geglu(gate, up, approximate=approximate)):
        (grad,) = torch.autograd.grad(y.sum(), gate)
        assert y.tolist() == [0.0, 0.0, pytest.approx(0.0, abs=1e-30), 0.0, 0.0, 90.0, 1e4, 60000.0]
        assert grad.tolist() == pytest.approx([0, 0, 0, 0.5, 0.5, 1, 1, 1], abs=1e-6)


def test_two_runs_have_equal_bits(device):
    x = random_tensor((37, 2, 96), torch.bfloat16, device)
    assert_same_bits(gelu, {"x": x, "bias": random_tensor((96,), torch.bfloat16, device)})
    assert_same_bits(swiglu, {"gate": x})


def test_saved_inputs_are_never_overwritten(device):
    x = random_tensor((5, 64), device=device)
    assert_keeps_inputs(swiglu, {"gate": x})
    assert_keeps_inputs(geglu, {"gate": x, "up": x})
    assert_keeps_inputs(gelu, {"x": x, "bias": x[0]})


def test_second_backward_gives_the_same_gradient(device):
    gate = random_tensor((5, 64), device=device).requires_grad_()
    y = swiglu(gate).sum()
    first, second = (torch.autograd.grad(y, gate, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_expanded_bias_gradient_is_the_sum_over_every_row(device):
    x = torch.zeros(70, 8, device=device)
    bias = torch.zeros(8, device=device, requires_grad=True)
    gelu(x, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((8,), 35.0, device=device))  # 70 · gelu'(0)


def test_mixed_dtypes_are_promoted(device):
    gate = random_tensor((3, 8), torch.bfloat16, device)
    up = random_tensor((3, 8), torch.float32, device, seed=1)
    assert swiglu(gate, up).dtype == torch.float32


def test_offsets_past_two_to_the_31(device):
    rows = random_tensor((2, 64), torch.float16, device)
    assert torch.equal(swiglu(far_apart(rows)), swiglu(rows))
    assert torch.equal(gelu(far_apart(rows)), gelu(rows))


def test_torch_compile_takes_it_whole(device):
    x = random_tensor((5, 64), device=device)
    assert_compiles(lambda x, bias: swiglu(gelu(x, bias)), {"x": x, "bias": x[0]})


def test_operators_are_well_formed(device):
    x = random_tensor((3, 16), device=device).requires_grad_()
    torch.library.opcheck(torch.ops.llmfast.gated.default, (x, None, "silu"))
    torch.library.opcheck(torch.ops.llmfast.gelu.default, (x, x[0].detach().requires_grad_(), "gelu_tanh"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swiglu(torch.ones(3, dtype=torch.int64)), "gate must be a floating-point tensor"),
        (lambda: swiglu(torch.ones(2, 3)), r"packed gate must have an even last dimension.*got \(2, 3\)"),
        (lambda: swiglu(torch.ones(2, 4), torch.ones(2, 2)), r"up must have the shape of gate \(2, 4\)"),
        (lambda: geglu(torch.ones(2), approximate="sigmoid"), "approximate must be one of .*'sigmoid'"),
        (lambda: gelu(torch.ones(2, 4), torch.ones(3)), r"bias must have the shape \(4,\), got \(3,\)"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
