"""What the cross-entropy losses return beside the loss: the part of the z-loss, and how many tokens are predicted."""

import sys

import pytest
import torch
from kernel_testing import assert_compiles, random_tensor
from llmfast.kernels import backend, cross_entropy, linear_cross_entropy

LAUNCH = sys.modules["llmfast.kernels.losses.launch"]
FIGURES = {"return_z_loss": True, "return_token_accuracy": True}
# How the losses are reached: (path, dtype, method of linear_cross_entropy, or None for cross_entropy).
WAYS = {
    "definition": ("reference", torch.float32, None),
    "kernel": ("triton", torch.float32, None),
    "linear, definition": ("reference", torch.float32, "auto"),
    "linear, chunks": ("triton", torch.float32, "chunks"),
    "linear, tiles": ("triton", torch.float16, "tiles"),
}


@pytest.fixture(params=WAYS)
def way(request, device, monkeypatch):
    """``loss(hidden, weight, target, **options)`` by this way, and its dtype, also where logits are few."""
    path, dtype, method = WAYS[request.param]
    monkeypatch.setattr(LAUNCH, "FEW_LOGITS", -1)
    monkeypatch.setattr(LAUNCH, "FEW_ON_GPU", -1)

    def loss(hidden, weight, target, *, class_weight=None, **options):
        if method is None:
            return cross_entropy(hidden @ weight.T, target, weight=class_weight, **options)
        return linear_cross_entropy(hidden, weight, target, class_weight=class_weight, method=method, **options)

    with backend(path):
        yield loss, dtype


def problem(dtype, device, tokens=41, classes=300):
    """Whole numbers: the logits are exact in every dtype, and many of them are equal."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randint(-2, 3, (tokens, 64), generator=generator).to(dtype)
    weight = torch.randint(-1, 2, (classes, 64), generator=generator).to(dtype)
    predicted = (hidden @ weight.T).float().argmax(-1)
    target = torch.randint(0, classes, (tokens,), generator=generator)
    target[::2] = predicted[::2]
    target[::5] = -100
    return hidden.to(device), weight.to(device), target.to(device), predicted.to(device)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_both_are_what_the_logits_say(way, device, reduction, gradients):
    """Traps: an accuracy over ignored tokens or weighted by class; of equal logits any but the first; a z-loss that is
    reduced otherwise than the loss."""
    loss, dtype = way
    hidden, weight, target, predicted = problem(dtype, device)
    hidden.requires_grad_(gradients)
    class_weight = torch.rand(300, generator=torch.Generator().manual_seed(4)).to(device)
    options = {"class_weight": class_weight, "z_loss": 0.25, "reduction": reduction, "softcap": 2.0}
    plain = loss(hidden, weight, target, **options)
    found, part, accuracy = loss(hidden, weight, target, **options, **FIGURES)
    assert torch.equal(found, plain)
    without = loss(hidden, weight, target, **options | {"z_loss": 0.0})
    torch.testing.assert_close(part, (plain - without).detach(), rtol=1e-4, atol=1e-5)
    right, counts = (predicted == target).to(accuracy.dtype), (target != -100).to(accuracy.dtype)
    expected = right * counts if reduction == "none" else (right * counts).sum() / counts.sum()
    torch.testing.assert_close(accuracy, expected, rtol=1e-6, atol=0)
    assert 0 < accuracy.mean() < 1
    assert not part.requires_grad
    assert not accuracy.requires_grad


def test_equal_logits_predict_the_first_class(way, device):
    """Trap: "the target has the largest logit" is true of every token before training."""
    loss, dtype = way
    hidden = torch.ones(3, 64, dtype=dtype, device=device)
    target = torch.tensor([0, 1, 299], device=device)
    weight = torch.zeros(300, 64, dtype=dtype, device=device)
    _, accuracy = loss(hidden, weight, target, reduction="none", return_token_accuracy=True)
    assert accuracy.tolist() == [1, 0, 0]
    # Beyond what the cap's tanh tells apart.
    weight[200], weight[100] = 64.0, 32.0
    target = torch.tensor([100, 200, -100], device=device)
    _, accuracy = loss(hidden, weight, target, reduction="none", softcap=1.0, return_token_accuracy=True)
    assert accuracy.tolist() == [0, 1, 0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_no_token_counts_they_are_zero(way, device, reduction):
    loss, dtype = way
    hidden, weight, target, _ = problem(dtype, device, tokens=4)
    target[:] = -100
    figures = loss(hidden, weight, target, reduction=reduction, z_loss=0.1, return_lse=True, **FIGURES)
    assert [len(figures), *(each.sum().item() for each in figures)] == [4, 0, 0, 0, 0]


def test_gradients_are_those_of_the_loss_alone(way, device):
    loss, dtype = way
    hidden, weight, target, _ = problem(dtype, device)
    hidden = 0.1 * hidden
    hidden.requires_grad_()
    plain = torch.autograd.grad(loss(hidden, weight, target, z_loss=0.1), hidden)[0]
    found = torch.autograd.grad(loss(hidden, weight, target, z_loss=0.1, **FIGURES)[0], hidden)[0]
    assert torch.equal(found, plain)


def test_vocabularies_longer_than_a_block_predict_across_blocks(device):
    logits = random_tensor((7, 2 * 4096 + 3), torch.bfloat16, device)
    target = logits.float().argmax(-1)
    target[3] = (target[3] + 1) % 4096
    _, accuracy = cross_entropy(logits, target, reduction="none", return_token_accuracy=True)
    assert accuracy.tolist() == [1, 1, 1, 0, 1, 1, 1]


def test_torch_compile_takes_them_whole(device):
    hidden, weight, target, _ = problem(torch.float32, device, tokens=8)
    logits = (hidden @ weight.T).detach()
    assert_compiles(lambda logits: cross_entropy(logits, target, z_loss=0.1, **FIGURES)[0], {"logits": logits})
