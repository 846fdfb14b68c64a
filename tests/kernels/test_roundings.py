"""What roundings allow: right sums and products in any order pass, and those of wrong kernels do not."""

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import assert_as_exact_as, random_tensor
from roundings import RandomRounding, rounding_error

pytestmark = pytest.mark.numeric

DEPTHS = [7, 64, 1000]


def operands(depth, dtype=torch.float32):
    return random_tensor((20, depth), dtype, seed=1), random_tensor((depth, 30), dtype, seed=2)


def in_order(a, b, total=torch.float32):
    """The product a b, one term after another, with partial sums in ``total``."""
    result = torch.zeros((a.shape[0], b.shape[1]), dtype=total)
    for column, row in zip(a.T, b, strict=True):
        result = (result.float() + torch.outer(column.float(), row.float())).to(total)
    return result.float()


def in_lanes(a, b, lanes):
    """The product a b by ``lanes`` partial sums, as vector instructions make them."""
    return sum(in_order(a[:, lane::lanes], b[lane::lanes]) for lane in range(min(lanes, a.shape[1])))


def check_product(found, a, b):
    """Against a peer that is exact by luck: ``exact`` itself, rounded once."""
    exact = a.double() @ b.double()
    assert_as_exact_as("product", found, exact.float(), exact, lambda: a.double() @ b.double())


@pytest.mark.parametrize("depth", DEPTHS)
def test_sums_in_every_order_pass(depth):
    a, b = operands(depth)
    order = torch.randperm(depth, generator=torch.Generator().manual_seed(0))
    for found in (
        a @ b,
        in_order(a, b),
        in_order(a[:, order], b[order]),
        in_lanes(a, b, 4),
        in_lanes(a, b, 16),
    ):
        check_product(found, a, b)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda a, b: a[:, 1:] @ b[1:], id="a term is missing"),
        pytest.param(lambda a, b: a @ b * (1 + 2**-10), id="a scale is off by a thousandth"),
        pytest.param(lambda a, b: in_order(a, b, torch.bfloat16), id="sums in bfloat16"),
        pytest.param(lambda a, b: in_order(a, b, torch.float16), id="sums in float16"),
        pytest.param(lambda a, b: a.bfloat16().float() @ b.bfloat16().float(), id="operands in bfloat16"),
        pytest.param(lambda a, b: tf32(a) @ tf32(b), id="operands in TF32"),
        pytest.param(lambda a, b: (a @ b).index_fill(0, torch.tensor(3), float("nan")), id="NaN"),
    ],
)
def test_wrong_products_fail(depth, wrong):
    a, b = operands(depth)
    with pytest.raises(AssertionError, match="product: error"):
        check_product(wrong(a, b), a, b)


def tf32(x):
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def test_sums_of_float16_products_are_promised_in_float32():
    a, b = operands(1000, torch.float16)
    exact = a.double() @ b.double()

    def check(found):
        assert_as_exact_as("product", found, exact.half(), exact, lambda: a.double() @ b.double())

    check(in_order(a, b).half())
    with pytest.raises(AssertionError):
        check(in_order(a, b, torch.float16).half())


def test_only_computed_operands_are_rounded_to_16_bits():
    x = random_tensor((9, 50), torch.float16)
    w = random_tensor((50, 9), torch.float16, seed=1)
    exact = {
        "of inputs": x.double() @ w.double(),
        "of probabilities": x.double().softmax(-1) @ w.double(),
    }
    found = rounding_error(
        lambda: {
            "of inputs": x.double() @ w.double(),
            "of probabilities": x.double().softmax(-1) @ w.double(),
        },
        exact,
        torch.float16,
    )
    assert found["of inputs"] < 2**-14
    assert 2**-14 < found["of probabilities"] < 2**-10


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: x.softmax(-1),
        lambda x: x.logsumexp(-1),
        lambda x: F.cross_entropy(x, torch.arange(len(x)), reduction="none", label_smoothing=0.1),
        F.silu,
        F.gelu,
        torch.tanh,
        lambda x: F.linear(x, x, x[0, : len(x)]),
        lambda x: x.mean(-1),
        lambda x: torch.cat([x, x.exp()]).cumsum(0)[3:].clone().mul_(0.3),
    ],
)
def test_pytorch_itself_stays_inside_and_the_next_dtype_does_not(function):
    """Of every operator that the tests' definitions use: float32 keeps the bound, forward and backward, and a bound
    that is exceeded by a result of 16 bits is not an empty one."""
    x = random_tensor((16, 40)).requires_grad_()
    wide = x.detach().double().requires_grad_()

    def run(x):
        y = function(x)
        (gradient,) = torch.autograd.grad(y, x, random_tensor(y.shape, seed=9).to(y.dtype))
        return {"output": y.detach(), "gradient": gradient}

    exact = run(wide)
    allowed = rounding_error(lambda: run(wide), exact, torch.float32)
    for name, value in run(x).items():
        assert_as_exact_as(name, value, None, exact[name], lambda name=name: allowed[name])
    for name, value in run(x.detach().bfloat16().requires_grad_()).items():
        with pytest.raises(AssertionError, match="error"):
            assert_as_exact_as(name, value.float(), None, exact[name], lambda name=name: allowed[name])


def test_what_float32_holds_is_not_rounded():
    x = random_tensor((50, 60)).double()
    with RandomRounding():
        assert torch.equal(x.clone(), x)
        assert torch.equal(x * 0.5, x * 0.5)
        assert torch.equal(x.mT.contiguous().mT, x)
        assert not torch.equal(x / 3, x / 3)
    assert torch.equal(x / 3, x / 3)


def test_rounding_is_to_a_neighbor_and_right_on_average():
    with RandomRounding(seed=3):
        found = torch.full((100_000,), 2.0, dtype=torch.float64) / 3
    below, above = sorted(set(found.tolist()))
    assert 0 < above - below <= torch.finfo(torch.float32).eps
    assert abs(found.mean().item() - 2 / 3) < 4 * (above - below) / 100_000**0.5


def test_a_definition_that_differs_is_an_error():
    """An infinite or undefined bound would let everything pass."""
    exact = {"x": torch.tensor([1.0])}
    with pytest.raises(AssertionError, match="the algorithm and the definition differ"):
        rounding_error(lambda: {"x": torch.tensor([float("nan")])}, exact, torch.float32)
