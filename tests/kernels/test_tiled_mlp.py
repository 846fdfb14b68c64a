"""tiled_mlp: the layer's own result and gradients, in a fraction of its memory."""

import copy

import pytest
import torch
from llmfast.kernels import tiled_mlp
from torch import nn


def layer(dtype=torch.float32, dropout=0.0, out=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Dropout(dropout), nn.Linear(24, out)).to(dtype)


def gradients(module, function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize(("shape", "tiles"), [((2, 13, 8), 4), ((13, 8), None), ((3, 2, 5, 8), 9), ((2, 0, 8), 2)])
def test_it_is_the_layer(shape, tiles):
    module, x = layer(out=5), torch.randn(shape)
    found = gradients(module, lambda x: tiled_mlp(module, x, tiles), x)
    for mine, right in zip(found, gradients(module, module, x), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)


def test_gradients_of_parameters_are_rounded_once():
    """Trap: sums over 64 tiles in bfloat16."""
    module, x = layer(torch.bfloat16), torch.randn(512, 8).bfloat16()
    found = gradients(module, lambda x: tiled_mlp(module, x, 64), x)
    plain = gradients(module, module, x)
    wide = copy.deepcopy(module).double()
    exact = gradients(wide, wide, x.double())
    for mine, peer, right in list(zip(found, plain, exact, strict=True))[2:]:
        assert (mine - right).norm() <= 1.1 * (peer - right).norm() + 1e-6


def test_dropout_and_autocast_are_as_in_the_forward_pass():
    module, x = layer(dropout=0.5), torch.randn(2, 12, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tiled_mlp(module, x, 3)
    assert out.dtype == torch.bfloat16
    state = torch.get_rng_state()
    (grad,) = torch.autograd.grad(out.float().square().sum(), x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    pinned = torch.randn(2, 12, 8, requires_grad=True)
    torch.manual_seed(8)
    tiled = torch.autograd.grad(tiled_mlp(module, pinned, 3).square().sum(), pinned)[0]
    torch.manual_seed(8)
    parts = torch.cat([module(part) for part in pinned.chunk(3, dim=-2)], dim=-2)
    torch.testing.assert_close(tiled, torch.autograd.grad(parts.square().sum(), pinned)[0])
    assert grad.isfinite().all()


def test_frozen_parameters_and_inputs_get_no_gradient():
    module, x = layer(), torch.randn(9, 8)
    module[0].weight.requires_grad_(False)
    tiled_mlp(module, x, 2).sum().backward()
    assert module[0].weight.grad is None
    plain = copy.deepcopy(module)
    plain.zero_grad()
    plain(x).sum().backward()
    for mine, right in zip(module.parameters(), plain.parameters(), strict=True):
        if right.grad is not None:
            torch.testing.assert_close(mine.grad, right.grad)


def test_nothing_of_the_layer_is_kept():
    module, kept = layer(), []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        tiled_mlp(module, torch.randn(640, 8, requires_grad=True), 10)
    assert sum(kept) == 640 * 8 + sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("x", "tiles", "message"),
    [
        (torch.ones(8), None, r"x must be floating-point numbers \(\.\.\., S, E\)"),
        (torch.ones(2, 8, dtype=torch.int64), None, "x must be floating-point numbers"),
        (torch.ones(2, 8), 0, "tiles must be at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(x, tiles, message):
    with pytest.raises(ValueError, match=message):
        tiled_mlp(layer(), x, tiles)
