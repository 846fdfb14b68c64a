"""newton_schulz: as exact as PyTorch's own iteration in Muon, of any stack, symmetric where it must be."""

import doctest
import importlib
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import DTYPES, assert_as_exact_as, far_apart, layouts, random_tensor
from llmfast.kernels import newton_schulz
from llmfast.kernels.frame.launch import Chip
from llmfast.kernels.optimizers import newton_schulz_reference as definition
from llmfast.kernels.optimizers.launch import product_launch
from roundings import rounding_error


def exact(x, steps=5):
    """The polynomial of the singular values, in float64."""
    u, s, vh = torch.linalg.svd(x.double().cpu(), full_matrices=False)
    s = s / torch.linalg.vector_norm(s, dim=-1, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s[..., None, :] @ vh).to(x.device)


def graded(shape, smallest, device="cpu"):
    """Matrices whose singular values fall from 1 to ``smallest``, as those of real gradients do."""
    u, _, vh = torch.linalg.svd(random_tensor(shape, torch.float64), full_matrices=False)
    s = torch.logspace(0, torch.tensor(smallest).log10(), u.shape[-1], dtype=torch.float64)
    return (u * s @ vh).to(device=device, dtype=torch.float32)


def check_update(found, x, peer=None, dtype=torch.float32):
    """An iteration in ``dtype`` is off by twice what the roundings of its products' operands and sums allow."""

    def error():
        steps = definition.newton_schulz
        stack = x.double().reshape(-1, *x.shape[-2:])
        coefficients = (3.4445, -4.7750, 2.0315)

        def update():
            return {"update": steps(stack, 5, coefficients, 1e-7, torch.float64).view(x.shape)}

        return rounding_error(update, {"update": exact(x)}, dtype)["update"]

    assert_as_exact_as("update", found, peer, exact(x), error)


@pytest.mark.numeric
@pytest.mark.parametrize("shape", [(3, 24, 70), (3, 70, 24), (32, 32), (2, 2, 33, 20)])
@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-6])
def test_the_polynomial_of_the_singular_values(shape, smallest):
    x = graded(shape, smallest)
    torch.testing.assert_close(newton_schulz(x.double()), exact(x), rtol=0, atol=1e-10)
    check_update(newton_schulz(x, dtype=torch.float32), x)


@pytest.mark.numeric
@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (64, 64)])
@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-6])
def test_in_bfloat16_as_exact_as_pytorch(shape, smallest):
    from torch.optim._muon import _zeropower_via_newtonschulz as peer

    x = graded(shape, smallest)
    ours = newton_schulz(x, dtype=torch.bfloat16)
    theirs = peer(x, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    check_update(ours, x, theirs.float(), torch.bfloat16)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([1, 3, 16, 63, 64, 65, 130]),
    depth=st.sampled_from([1, 7, 32, 70]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    layout=layouts,
    beta=st.booleans(),
)
def check_products(device, size, depth, dtype, layout, beta):
    if beta:  # of a symmetric matrix, as in the iteration
        x = random_tensor((2, size, size), torch.float32, device)
        x = (x + x.mT).to(dtype) / size**0.5
    else:
        x = random_tensor((2, size, depth), dtype, device, layout) / depth**0.5
    arguments = (2.0315, -4.7750) if beta else (1.0, 0.0)
    found = torch.ops.llmfast.symmetric_product(x, *arguments)
    block = product_launch(Chip.of(x.device), size, x.element_size()).block
    for low in range(block, size, block):  # Tiles off the diagonal are computed once and written twice.
        assert torch.equal(found[:, low:, :low], found[:, :low, low:].mT)
    peer = definition.symmetric_product(x, *arguments)
    algorithm = partial(definition.symmetric_product, x.double(), *arguments)
    assert_as_exact_as("product", found, peer, algorithm(), algorithm)


@pytest.mark.numeric
def test_symmetric_products_of_any_size_stride_and_dtype(device):
    check_products(device)


@pytest.mark.numeric
@pytest.mark.parametrize("shape", [(2, 130, 70), (70, 130), (1, 5), (2, 3, 9, 9)])
def test_kernel_and_definition_agree(device, shape):
    x = random_tensor(shape, device=device)
    check_update(newton_schulz(x, dtype=torch.float32), x)


def test_bfloat16_on_a_gpu(device):
    if device == "cpu":
        pytest.skip("tl.dot of bfloat16 is wrong in Triton's interpreter")
    x = random_tensor((3, 700, 1100), device=device)
    theirs = definition.newton_schulz(x, 5, (3.4445, -4.7750, 2.0315), 1e-7, torch.bfloat16)
    check_update(newton_schulz(x), x, theirs, torch.bfloat16)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_keeps_shape_dtype_and_input(dtype):
    x = random_tensor((2, 6, 4), dtype, layout="transposed")
    before = x.clone()
    assert newton_schulz(x).dtype == dtype
    assert newton_schulz(x).shape == x.shape
    assert torch.equal(x, before)


def test_a_matrix_alone_and_in_a_stack_are_the_same(device):
    x = random_tensor((3, 40, 24), device=device)
    check_update(newton_schulz(x, dtype=torch.float32), x)
    for one in x:
        check_update(newton_schulz(one, dtype=torch.float32), one)


def test_zeros_and_nothing():
    """Trap: 0 / 0 where a layer got no gradient."""
    assert torch.equal(newton_schulz(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        assert newton_schulz(torch.zeros(shape)).shape == shape


def test_two_runs_have_equal_bits(device):
    x = random_tensor((2, 70, 40), device=device)
    first, second = (newton_schulz(x, dtype=torch.float32) for _ in range(2))
    assert torch.equal(first, second)


def test_matrices_two_to_the_31_apart(device):
    rows = random_tensor((2, 64), torch.float16, device)
    apart = far_apart(rows).unsqueeze(1)
    assert torch.equal(
        torch.ops.llmfast.symmetric_product(apart, 1.0, 0.0),
        torch.ops.llmfast.symmetric_product(rows.unsqueeze(1), 1.0, 0.0),
    )


def test_torch_compile_takes_it_whole(device):
    x = random_tensor((2, 20, 12), device=device)
    torch._dynamo.reset()
    compiled = torch.compile(newton_schulz, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, dtype=torch.float32), newton_schulz(x, dtype=torch.float32))


def test_operator_is_well_formed(device):
    torch.library.opcheck(
        torch.ops.llmfast.symmetric_product.default, (random_tensor((2, 5, 7), device=device), 1.0, 0.0)
    )


def test_autocast_changes_nothing(device):
    x = random_tensor((20, 12), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = newton_schulz(x, dtype=torch.float32)
    assert torch.equal(inside, newton_schulz(x, dtype=torch.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, "x must be a floating-point tensor, got torch.int64"),
        ({"x": torch.ones(3)}, r"at least two dimensions, got shape \(3,\)"),
        ({"x": torch.ones(2, 2), "steps": 0}, "steps must be at least 1, got 0"),
        ({"x": torch.ones(2, 2), "dtype": torch.int8}, "floating-point dtype, got torch.int8"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        newton_schulz(**arguments)


def test_the_example_holds():
    module = importlib.import_module("llmfast.kernels.optimizers.newton_schulz")
    assert doctest.testmod(module) == (0, 3)
