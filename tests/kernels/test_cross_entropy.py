"""cross_entropy: as exact as PyTorch's for every shape, stride, dtype and option, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
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
from llmfast.kernels import backend, cross_entropy

OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 4.0}
BLOCK = 4096  # columns that a program takes at a time


def wide(x):
    return x.double() if x.dtype == torch.float64 else x.float()


def targets(shape, classes, device, ignored=True):
    target = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(7))
    if ignored:
        target.view(-1)[1::3] = -100
    return target.to(device)


def torch_cross_entropy(logits, target, **options):
    """PyTorch's own, in the dtype of the logits; where every target is ignored, 0."""
    loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), **options)
    if options.get("reduction") == "none":
        return wide(loss).view(target.shape)
    return wide(loss) if (target != -100).any() else wide(logits).sum() * 0


def formula(logits, target, class_weight, label_smoothing, z_loss, softcap):
    """The docstring's formula with lse, in the dtype of the logits."""
    z = softcap * torch.tanh(logits / softcap)
    lse = z.logsumexp(-1)
    valid = target != -100
    t = torch.where(valid, target, 0)
    w = torch.where(valid, class_weight[t], 0)
    smooth = ((lse.unsqueeze(-1) - z) * class_weight).sum(-1) / z.shape[-1]
    nll = lse - z.gather(-1, t.unsqueeze(-1)).squeeze(-1)
    loss = (1 - label_smoothing) * w * nll + label_smoothing * smooth + z_loss * w * lse**2
    return wide(torch.where(valid, loss, 0).sum() / w.sum()), wide(torch.where(valid, lse, 0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    length=lengths,
    classes=widths,
    dtype=dtypes,
    layout=layouts,
    grad_layout=layouts,
    reduction=st.sampled_from(["mean", "sum", "none"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
)
def check_any_shape(device, length, classes, dtype, layout, grad_layout, reduction, label_smoothing, weighted):
    assume(classes > 1 or not label_smoothing)  # a gradient of 0 out of terms that are not: a test of its own
    logits = random_tensor((length, 2, classes), dtype, device, layout)
    target = targets((length, 2), classes, device)
    weight = random_tensor((classes,), dtype, device, seed=2).abs() if weighted else None

    def run(function):
        def call(logits):
            w = None if weight is None else weight.to(logits.dtype)
            options = {"weight": w, "reduction": reduction, "label_smoothing": label_smoothing}
            return function(logits, target, **options)

        return call

    assert_matches(run(cross_entropy), run(torch_cross_entropy), {"logits": logits}, grad_layout)


@pytest.mark.numeric
def test_any_shape_stride_dtype_and_reduction(device):
    check_any_shape(device)


def test_one_class_has_a_gradient_of_the_size_of_a_rounding(device):
    logits = random_tensor((8, 1), device=device).requires_grad_()
    target = torch.zeros(8, dtype=torch.int64, device=device)
    cross_entropy(logits, target, reduction="sum", label_smoothing=0.1).backward()
    assert logits.grad.abs().max() <= torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(BLOCK + 77, torch.float32), (BLOCK + 77, torch.bfloat16), (262144, torch.bfloat16)],
)
def test_every_option_and_vocabularies_longer_than_a_block(device, classes, dtype):
    logits = 3 * random_tensor((5, classes), dtype, device)
    target = targets((5,), classes, device)
    weight = random_tensor((classes,), device=device, seed=2).abs()

    def ours(logits):
        return cross_entropy(logits, target, weight=weight, return_lse=True, **OPTIONS)

    def peer(logits):
        return formula(logits, target, weight.to(logits.dtype), **OPTIONS)

    assert_matches(ours, peer, {"logits": logits})


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_one_row_without_other_dimensions(device, path):
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    target = torch.tensor(3, device=device)
    expected = F.cross_entropy(logits, target)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    with backend(path):
        loss = cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_reference_path_keeps_float64():
    logits = random_tensor((4, 50), torch.float64).requires_grad_()
    target = targets((4,), 50, "cpu")
    weight = random_tensor((50,), torch.float64, seed=2).abs()
    with backend("reference"):
        found = cross_entropy(logits, target, weight=weight, return_lse=True, **OPTIONS)
    expected = formula(logits, target, weight, **OPTIONS)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy(x, target, weight=weight, return_lse=True, **OPTIONS), logits
    )


@pytest.mark.parametrize("path", ["triton", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_targets_ignored_gives_zero_and_no_nan(device, path, reduction):
    logits = random_tensor((3, 20), device=device).requires_grad_()
    with backend(path):
        loss = cross_entropy(logits, torch.full((3,), -100, device=device), reduction=reduction)
    loss.sum().backward()
    assert not loss.any()
    assert not logits.grad.any()


def test_target_gradient_does_not_cancel(device):
    """p − 1 at the target, computed in bfloat16, would be 0 or 2⁻⁸; it is 2e-4."""
    logits = torch.zeros(1, 256, device=device, dtype=torch.bfloat16)
    logits[0, 3] = 14.0
    logits.requires_grad_()
    cross_entropy(logits, torch.tensor([3], device=device)).backward()
    exact = torch.softmax(logits.detach().double(), -1)[0, 3] - 1
    assert abs(logits.grad[0, 3].double() / exact - 1) < 2**-8


def test_gradient_of_each_tokens_loss(device):
    """reduction="none": every token's gradient has its own factor, also where the factor is expanded."""
    logits = random_tensor((4, 30), device=device)
    target = targets((4,), 30, device, ignored=False)

    def ours(logits):
        return cross_entropy(logits, target, reduction="none")

    def peer(logits):
        return F.cross_entropy(logits, target, reduction="none")

    for grad_layout in ("contiguous", "expanded", "every_second"):
        assert_matches(ours, peer, {"logits": logits}, grad_layout)


def test_next_token_slice_is_read_where_it_lies(device):
    logits = random_tensor((2, 6, 40), device=device)
    target = targets((2, 5), 40, device)

    def ours(logits):
        return cross_entropy(logits[:, :-1], target)

    def peer(logits):
        return torch_cross_entropy(logits[:, :-1], target)

    assert_matches(ours, peer, {"logits": logits})


def test_classes_masked_with_minus_infinity(device):
    logits = random_tensor((3, BLOCK + 64), device=device)
    logits[:, : BLOCK + 8] = float("-inf")
    target = torch.full((3,), BLOCK + 10, device=device)

    def ours(logits):
        return cross_entropy(logits, target)

    def peer(logits):
        return F.cross_entropy(logits, target)

    assert_matches(ours, peer, {"logits": logits})


def test_ignored_rows_may_hold_anything(device):
    logits = random_tensor((2, 30), device=device)
    logits[1] = float("nan")
    logits.requires_grad_()
    loss, lse = cross_entropy(logits, torch.tensor([4, -100], device=device), return_lse=True)
    loss.backward()
    assert loss.isfinite()
    assert lse[1] == 0
    assert not logits.grad[1].any()


def test_target_outside_the_vocabulary_is_not_silent(device):
    loss = cross_entropy(torch.zeros(2, 30, device=device), torch.tensor([30, 1], device=device), reduction="none")
    assert loss[0].isnan()
    assert loss[1].isfinite()


def test_offsets_past_two_to_the_31(device):
    rows = random_tensor((2, 64), torch.float16, device)
    target = targets((2,), 64, device, ignored=False)
    assert torch.equal(cross_entropy(far_apart(rows), target), cross_entropy(rows, target))


@pytest.mark.gpu
def test_more_than_two_to_the_31_logits():
    """The gradient is contiguous: the last rows of 2³¹ logits and more lie where 32 bits do not reach."""
    rows, classes = 16400, 131072
    logits = torch.empty(rows, classes, device="cuda", dtype=torch.float16).normal_().requires_grad_()
    target = torch.randint(0, classes, (rows,), device="cuda")
    loss = cross_entropy(logits, target, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    last = logits.detach()[-2:].clone().requires_grad_()
    expected = cross_entropy(last, target[-2:], reduction="none")
    assert torch.equal(loss[-2:], expected)
    assert torch.equal(grad[-2:], torch.autograd.grad(expected.sum(), last)[0])


def test_logits_are_never_overwritten(device):
    target = targets((5,), 40, device)
    assert_keeps_inputs(lambda logits: cross_entropy(logits, target), {"logits": random_tensor((5, 40), device=device)})


def test_second_backward_gives_the_same_gradient(device):
    logits = random_tensor((5, 40), device=device).requires_grad_()
    loss = cross_entropy(logits, targets((5,), 40, device))
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_two_runs_have_equal_bits(device):
    target = targets((37,), 300, device)
    assert_same_bits(
        lambda logits: cross_entropy(logits, target),
        {"logits": random_tensor((37, 300), torch.bfloat16, device)},
    )


def test_micro_batches_summed_over_all_targets_equal_the_whole_batch(device):
    """Gradient accumulation: sums divided by the targets of the whole batch, not means of means."""
    logits, target = random_tensor((12, 40), device=device), targets((12,), 40, device)
    whole = results(lambda logits: cross_entropy(logits, target), {"logits": logits})["output 0"]
    parts = sum(cross_entropy(logits[i : i + 4], target[i : i + 4], reduction="sum") for i in range(0, 12, 4))
    torch.testing.assert_close(parts / (target != -100).sum(), whole)


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_torch_compile_takes_it_whole(device, path):
    target = targets((5,), 40, device)
    with backend(path):
        assert_compiles(
            lambda logits: cross_entropy(logits, target, return_lse=True),
            {"logits": random_tensor((5, 40), device=device)},
        )


def test_operator_is_well_formed(device):
    logits = random_tensor((4, 20), device=device).requires_grad_()
    target, weight = targets((4,), 20, device), torch.rand(20, device=device)
    operator = torch.ops.llmfast.cross_entropy.default
    torch.library.opcheck(operator, (logits, target, weight, "mean", True, -100, 0.1, 1e-4, 30.0))
    torch.library.opcheck(operator, (logits, target, None, "none", False, -100, 0.0, 0.0, None))


def test_autocast_keeps_the_gradient_in_the_dtype_of_the_logits(device):
    logits = random_tensor((4, 20), torch.bfloat16, device).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = cross_entropy(logits, targets((4,), 20, device))
    loss.backward()
    assert (loss.dtype, logits.grad.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.gpu
def test_captures_into_a_cuda_graph():
    logits = torch.randn(64, 1000, device="cuda", requires_grad=True)
    target = torch.randint(0, 1000, (64,), device="cuda")
    torch.autograd.grad(cross_entropy(logits, target), logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (captured,) = torch.autograd.grad(cross_entropy(logits, target), logits)
    with torch.no_grad():
        logits.mul_(2)
    graph.replay()
    (expected,) = torch.autograd.grad(cross_entropy(logits, target), logits)
    assert torch.equal(captured, expected)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(2), {}, r"target must hold .* integer class indices of shape \(2,\)"),
        (torch.ones(2, 3), torch.ones(3, dtype=torch.long), {}, r"target must hold .* of shape \(3,\)"),
        (torch.ones(2, 0), torch.ones(2, dtype=torch.long), {}, "at least one class"),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.long), {"reduction": "avg"}, "reduction must be one of"),
        (
            torch.ones(2, 3),
            torch.ones(2, dtype=torch.long),
            {"weight": torch.ones(2)},
            r"weight must .*\(3,\)",
        ),
        (
            torch.ones(2, 3),
            torch.ones(2, dtype=torch.long),
            {"label_smoothing": 2.0},
            "between 0 and 1, got 2",
        ),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.long), {"softcap": 0.0}, "softcap must be positive"),
    ],
)
def test_errors_name_the_argument(logits, target, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, target, **options)
