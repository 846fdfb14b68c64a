"""linear: as exact as PyTorch's, and each row's bits its own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import (
    assert_as_exact_as,
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    interpret_products_as_tensor_cores_do,
    layouts,
    random_tensor,
)
from llmfast.kernels import backend, linear
from llmfast.kernels.frame.fixed_order import exact_product, tree_sum, weighted_sum


def inputs_of(rows, width, columns, dtype, device, layout="contiguous", bias=True):
    made = {
        "x": random_tensor((rows, width), dtype, device, layout),
        "weight": random_tensor((columns, width), dtype, device, layout, seed=1) / max(width, 1) ** 0.5,
    }
    return made | ({"bias": random_tensor((columns,), dtype, device, seed=2)} if bias else {})


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 3, 130]),
    width=st.sampled_from([1, 7, 64, 100, 192]),
    columns=st.sampled_from([1, 33, 130]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    layout=layouts,
    grad_layout=layouts,
    bias=st.booleans(),
)
def check_any_shape(device, rows, width, columns, dtype, layout, grad_layout, bias):
    assert_matches(linear, F.linear, inputs_of(rows, width, columns, dtype, device, layout, bias), grad_layout)


@pytest.mark.numeric
def test_any_shape_stride_and_dtype(device):
    check_any_shape(device)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_definition_in_every_dtype(dtype):
    assert_matches(linear, F.linear, inputs_of(9, 300, 20, dtype, "cpu"))


def test_definition_at_the_ends_of_the_range():
    """A row's exponent is taken out before rounding: neither large, small nor mixed rows lose digits."""
    x = torch.tensor([[2.0**120, -(2.0**120)], [2.0**-140, 3 * 2.0**-140], [0.0, 0.0], [1.0, 2.0**-30]])
    weight = torch.tensor([[1.0, 0.5], [2.0**-20, -1.0]])
    exact = x.double() @ weight.double().T
    assert_as_exact_as("linear", linear(x, weight), None, exact, lambda: 0.0)
    tiny = torch.tensor([[1e-310, 2e-310]], dtype=torch.float64)
    assert torch.equal(linear(tiny, torch.ones(1, 2, dtype=torch.float64)), torch.zeros(1, 1, dtype=torch.float64))


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(odd):
    x, weight = random_tensor((3, 8)), random_tensor((4, 8), seed=1)
    clean = linear(x, weight)
    x[1, 2] = odd
    found = linear(x, weight)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_sums_of_the_definition_are_the_same_in_any_order():
    """The trap: a sum in float64 that rounds has other bits when its terms come in another order."""
    a, b = random_tensor((5, 999)), random_tensor((7, 999), seed=1)
    order = torch.randperm(999, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact_product(a, b), exact_product(a[:, order], b[:, order]))
    plain = a.double() @ b.double().T
    assert not torch.equal(plain, a.double()[:, order].flip(1) @ b.double()[:, order].flip(1).T)


def test_sums_in_a_fixed_order_take_no_notice_of_zeros_behind():
    x = random_tensor((3, 37), torch.float64)
    for more in (1, 27, 28, 200):
        assert torch.equal(tree_sum(F.pad(x, (0, more))), tree_sum(x))
    values = random_tensor((37, 4), torch.float64, seed=1)
    assert torch.equal(weighted_sum(F.pad(x, (0, 9)), F.pad(values, (0, 0, 0, 9))), weighted_sum(x, values))


@pytest.mark.parametrize("path", ["triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_have_the_same_bits_in_every_batch(device, path, dtype, monkeypatch):
    interpret_products_as_tensor_cores_do(monkeypatch)
    inputs = inputs_of(150, 200, 40, dtype, device)
    x = inputs.pop("x")
    with backend(path):
        whole = linear(x, **inputs)
        for rows in (slice(0, 1), slice(149, 150), slice(3, 20), slice(60, 150), slice(0, 150, 7)):
            assert torch.equal(linear(x[rows], **inputs), whole[rows])
        gradients = [
            torch.autograd.grad(linear(part := x[rows].clone().requires_grad_(), **inputs).sum(), part)[0]
            for rows in (slice(0, 150), slice(7, 8))
        ]
    assert torch.equal(gradients[0][7:8], gradients[1])


def test_two_runs_have_equal_bits_and_inputs_stay(device):
    inputs = inputs_of(9, 100, 20, torch.float16, device)
    assert_same_bits(linear, inputs)
    assert_keeps_inputs(linear, inputs)


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_torch_compile_takes_it_whole(device, path):
    with backend(path):
        assert_compiles(linear, inputs_of(5, 64, 20, torch.float32, device))


def test_operator_is_well_formed(device):
    x, weight, bias = (tensor.requires_grad_() for tensor in inputs_of(5, 64, 20, torch.float32, device).values())
    torch.library.opcheck(torch.ops.llmfast.linear.default, (x, weight, bias, True))
    torch.library.opcheck(torch.ops.llmfast.linear.default, (x, weight, None, False))


def test_autocast_computes_in_its_dtype():
    inputs = inputs_of(3, 64, 8, torch.float32, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(**inputs)
    assert torch.equal(y, linear(**{name: tensor.bfloat16() for name, tensor in inputs.items()}))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_have_the_same_bits_on_a_gpu(dtype):
    inputs = inputs_of(1000, 4096, 1024, dtype, "cuda")
    x = inputs.pop("x")
    whole = linear(x, **inputs)
    for rows in (slice(0, 1), slice(999, 1000), slice(3, 20), slice(100, 229)):
        assert torch.equal(linear(x[rows], **inputs), whole[rows])
    assert_matches(linear, F.linear, {"x": x, **inputs})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 5)}, r"weight must be \(N, K\) for x \(..., K\), got \(3, 4\) for \(2, 5\)"),
        ({"x": torch.ones(2, 4, dtype=torch.int64)}, "x must be a floating-point tensor"),
        ({"bias": torch.ones(4)}, r"bias must have one element a row of weight, \(3,\), got \(4,\)"),
        ({"weight": torch.ones(3, 4).double()}, "weight must have the dtype of x"),
    ],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        linear(**{"x": torch.ones(2, 4), "weight": torch.ones(3, 4), "bias": torch.ones(3)} | change)
