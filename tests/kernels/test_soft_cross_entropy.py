"""cross_entropy with probabilities as targets: as exact as PyTorch's, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import (
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    random_tensor,
)
from llmfast.kernels import backend, cross_entropy

BLOCK = 2048  # columns that a program takes at a time


def wide(x):
    return x.double() if x.dtype == torch.float64 else x.float()


def probabilities(shape, device, seed=7):
    target = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(-1)
    target.view(-1, shape[-1])[0] = 0  # one class alone
    target.view(-1, shape[-1])[0, 1] = 1
    return target.to(device)


def torch_cross_entropy(logits, target, **options):
    loss = F.cross_entropy(logits.flatten(0, -2), target.to(logits.dtype).flatten(0, -2), **options)
    return wide(loss.view(target.shape[:-1]) if options.get("reduction") == "none" else loss)


@pytest.mark.numeric
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("classes", "dtype", "smoothing", "weighted"),
    [(30, torch.float32, 0.0, False), (77, torch.float16, 0.1, True), (2 * BLOCK + 3, torch.bfloat16, 0.0, True)],
)
def test_as_exact_as_torch(device, reduction, classes, dtype, smoothing, weighted):
    logits = random_tensor((3, 2, classes), dtype, device)
    target = probabilities((3, 2, classes), device)
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(2)).to(device) if weighted else None

    def run(function):
        def call(logits):
            own = None if weight is None else weight.to(logits.dtype)
            return function(logits, target, weight=own, reduction=reduction, label_smoothing=smoothing)

        return call

    assert_matches(run(cross_entropy), run(torch_cross_entropy), {"logits": logits}, "every_second")


def test_every_option(device):
    logits, target = 3 * random_tensor((5, 90), device=device), probabilities((5, 90), device)

    def ours(logits):
        return cross_entropy(logits, target, z_loss=0.1, softcap=4.0, label_smoothing=0.2, return_lse=True)

    def peer(logits):
        z = 4.0 * torch.tanh(logits / 4.0)
        lse = z.logsumexp(-1)
        q = 0.8 * target.to(z.dtype) + 0.2 / 90
        return wide(((q * (lse[:, None] - z)).sum(-1) + 0.1 * lse**2).mean()), wide(lse)

    assert_matches(ours, peer, {"logits": logits})


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_one_hot_targets_are_integer_targets(device, path):
    logits, index = random_tensor((6, 33), device=device), torch.arange(6, device=device)
    with backend(path):
        for reduction in ("mean", "none"):
            options = {"reduction": reduction, "z_loss": 0.1, "return_z_loss": True, "return_lse": True}
            hard = cross_entropy(logits, index, **options)
            soft = cross_entropy(logits, F.one_hot(index, 33).float(), **options)
            for mine, right in zip(soft, hard, strict=True):
                torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_classes_masked_with_minus_infinity_have_no_probability(device, path):
    """Trap: 0 · −inf."""
    logits, target = random_tensor((4, 40), device=device), probabilities((4, 40), device)
    logits[:, 20:], target[:, 20:] = float("-inf"), 0
    logits.requires_grad_()
    with backend(path):
        loss = cross_entropy(logits, target)
        loss.backward()
    kept = cross_entropy(logits.detach()[:, :20], target[:, :20])
    torch.testing.assert_close(loss, kept)
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, 20:].any()


def test_float64_gradients_are_exact():
    logits, target = random_tensor((3, 20), torch.float64).requires_grad_(), probabilities((3, 20), "cpu").double()
    with backend("reference"):
        options = {"z_loss": 0.1, "softcap": 3.0, "label_smoothing": 0.1, "return_lse": True}
        assert torch.autograd.gradcheck(lambda x: cross_entropy(x, target, **options), logits)


def test_no_tokens_give_zero(device):
    logits = torch.empty(0, 9, device=device, requires_grad=True)
    loss = cross_entropy(logits, torch.empty(0, 9, device=device))
    loss.backward()
    assert loss == 0


def test_inputs_stay_runs_repeat_and_compile_takes_it_whole(device):
    logits, target = random_tensor((5, 70), torch.float16, device), probabilities((5, 70), device)
    before = target.clone()

    def call(logits):
        return cross_entropy(logits[:, ::2], target[:, ::2], z_loss=0.1)

    assert_keeps_inputs(call, {"logits": logits})
    assert_same_bits(call, {"logits": logits})
    assert_compiles(call, {"logits": logits})
    assert torch.equal(target, before)


def test_operator_is_well_formed(device):
    logits, target = random_tensor((4, 20), device=device).requires_grad_(), probabilities((4, 20), device)
    operator = torch.ops.llmfast.soft_cross_entropy.default
    torch.library.opcheck(operator, (logits, target, torch.rand(20, device=device), 0.1, 1e-4, 30.0))
    torch.library.opcheck(operator, (logits, target, None, 0.0, 0.0, None))


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (torch.ones(2), {}, r"integer class indices of shape \(2,\), got torch.float32"),
        (torch.ones(2, 3, requires_grad=True), {}, "target gets no gradient"),
        (torch.ones(2, 3), {"ignore_index": 1}, "ignore_index is of integer targets"),
        (torch.ones(2, 3), {"return_token_accuracy": True}, "return_token_accuracy is of integer targets"),
    ],
)
def test_errors_name_the_argument(target, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(torch.ones(2, 3), target, **options)
