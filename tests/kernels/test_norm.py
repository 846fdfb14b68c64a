"""rms_norm and layer_norm: as exact as PyTorch's, for every shape, stride and dtype, forward and backward."""

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
    results,
    widths,
)
from llmfast.kernels import layer_norm, rms_norm


def torch_rms_norm(x, weight=None, residual=None, weight_offset=0.0):
    h = x if residual is None else x + residual
    scale = None if weight is None else (weight + weight_offset).to(h.dtype)
    y = F.rms_norm(h, h.shape[-1:], None if scale is None or scale.dim() > 1 else scale, 1e-6)
    y = y * scale if scale is not None and scale.dim() > 1 else y
    return y if residual is None else (y, h)


def torch_layer_norm(x, weight=None, bias=None, residual=None):
    h = x if residual is None else x + residual
    y = F.layer_norm(h, h.shape[-1:], weight, bias, 1e-5)
    return y if residual is None else (y, h)


def norm_inputs(shape, dtype, device, layout="contiguous", **present):
    made = {"x": random_tensor(shape, dtype, device, layout)}
    for seed, name in enumerate(("weight", "bias", "residual"), start=1):
        if present.get(name):
            wanted = shape if name == "residual" else shape[-1:]
            made[name] = random_tensor(wanted, dtype, device, seed=seed)
    return made


@settings(max_examples=15, deadline=None, derandomize=True)
@given(length=lengths, width=widths, dtype=dtypes, layout=layouts, grad_layout=layouts, residual=st.booleans())
def check_any_shape(device, length, width, dtype, layout, grad_layout, residual):
    rms = norm_inputs((length, 2, width), dtype, device, layout, weight=True, residual=residual)
    assert_matches(rms_norm, torch_rms_norm, rms, grad_layout)
    layer = norm_inputs((length, 2, width), dtype, device, layout, weight=True, bias=True, residual=residual)
    assert_matches(layer_norm, torch_layer_norm, layer, grad_layout)


@pytest.mark.numeric
def test_any_shape_stride_and_dtype(device):
    check_any_shape(device)


@pytest.mark.parametrize("width", [2049, 8193, 262144])
def test_rows_longer_than_one_program_holds(device, width):
    assert_matches(rms_norm, torch_rms_norm, norm_inputs((3, width), torch.float32, device, weight=True))
    everything = norm_inputs((3, width), torch.bfloat16, device, weight=True, bias=True, residual=True)
    assert_matches(layer_norm, torch_layer_norm, everything)


def test_per_head_weights_of_query_key_norm_on_a_slice_of_packed_projections(device):
    packed = random_tensor((2, 3, 7 * 16), torch.float32, device)
    heads = packed[..., 16 : 5 * 16].unflatten(-1, (4, 16))
    weight = random_tensor((4, 16), torch.float32, device, seed=1)
    assert_matches(rms_norm, torch_rms_norm, {"x": heads, "weight": weight})
    assert_matches(rms_norm, torch_rms_norm, {"x": heads.transpose(1, 2), "weight": weight[0]})


def test_weight_offset_of_gemma(device):
    def ours(x, weight):
        return rms_norm(x, weight, weight_offset=1.0)

    def peer(x, weight):
        return torch_rms_norm(x, weight, weight_offset=1.0)

    assert_matches(ours, peer, norm_inputs((5, 48), torch.float32, device, weight=True))


def test_without_parameters(device):
    assert_matches(rms_norm, torch_rms_norm, norm_inputs((5, 48), torch.float16, device))
    assert_matches(layer_norm, torch_layer_norm, norm_inputs((5, 48), torch.float16, device))


def test_layer_norm_with_a_bias_alone(device):
    assert_matches(layer_norm, torch_layer_norm, norm_inputs((5, 48), torch.float16, device, bias=True))


def test_layer_norm_of_numbers_with_a_mean_far_from_zero(device):
    """E[x²] − E[x]² cancels there."""
    for width in (256, 8193):
        x = 1000 + random_tensor((2, width), torch.float32, device)
        assert_matches(layer_norm, torch_layer_norm, {"x": x})


def test_residual_stream_wider_than_the_branch(device):
    x = random_tensor((4, 32), torch.bfloat16, device)
    inputs = {"x": x, "residual": random_tensor((4, 32), torch.float32, device, seed=1)}
    assert_matches(rms_norm, torch_rms_norm, inputs)


def test_only_the_new_residual_is_used(device):
    x, residual = (random_tensor((4, 32), device=device, seed=seed).requires_grad_() for seed in (0, 1))
    _, h = rms_norm(x, residual=residual)
    h.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(residual.grad, torch.ones_like(x))


def test_frozen_weight_gets_no_gradient(device):
    x = random_tensor((4, 32), device=device).requires_grad_()
    weight = random_tensor((32,), device=device, seed=1)
    rms_norm(x, weight).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


def test_two_runs_have_equal_bits(device):
    inputs = norm_inputs((37, 96), torch.bfloat16, device, weight=True, bias=True, residual=True)
    assert_same_bits(layer_norm, inputs)


def test_inputs_are_never_overwritten(device):
    inputs = norm_inputs((5, 64), torch.float32, device, weight=True, bias=True, residual=True)
    assert_keeps_inputs(layer_norm, inputs)


def test_second_backward_gives_the_same_gradient(device):
    x = random_tensor((5, 64), device=device).requires_grad_()
    y = rms_norm(x).square().sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_second_derivative_is_refused_in_words(device):
    x = random_tensor((5, 64), device=device).requires_grad_()
    (grad,) = torch.autograd.grad(rms_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


def test_offsets_past_two_to_the_31(device):
    rows = random_tensor((2, 64), torch.float16, device)
    assert torch.equal(rms_norm(far_apart(rows)), rms_norm(rows))


def test_torch_compile_takes_it_whole(device):
    inputs = norm_inputs((5, 64), torch.float32, device, weight=True, bias=True, residual=True)
    assert_compiles(layer_norm, inputs)


def test_operator_is_well_formed(device):
    made = norm_inputs((3, 16), torch.float32, device, weight=True, bias=True, residual=True)
    arguments = [made[name].requires_grad_() for name in ("x", "weight", "bias", "residual")]
    torch.library.opcheck(torch.ops.llmfast.norm.default, (*arguments, 1e-5, 0.0, True))
    torch.library.opcheck(torch.ops.llmfast.norm.default, (arguments[0], None, None, None, 1e-5, 0.0, False))


def test_autocast_keeps_the_dtype_of_x(device):
    inputs = norm_inputs((3, 16), torch.float32, device, weight=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = results(rms_norm, inputs)["output 0"]
    assert torch.equal(y, results(rms_norm, inputs)["output 0"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(3, dtype=torch.int64)}, "x must be a floating-point tensor, got torch.int64"),
        ({"x": torch.ones(2, 3), "weight": torch.ones(2)}, r"weight must have the shape.*got \(2,\)"),
        ({"x": torch.ones(2, 3), "residual": torch.ones(3)}, r"residual must have the shape of x"),
        ({"x": torch.tensor(1.0)}, "x must have at least one dimension"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(**arguments)
