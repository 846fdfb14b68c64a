"""Muon: the update of torch.optim.Muon, state that moves both ways, resumed and repeated to the bit."""

import copy
import doctest

import pytest
import torch

from llmfast.training.optimizers import muon
from llmfast.training.optimizers.muon import Muon

pytestmark = pytest.mark.numeric

SHAPES = [(24, 8), (8, 8), (8, 20), (24, 8), (8, 20)]


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def set_gradients(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def train(optimizer, steps):
    (group,) = optimizer.param_groups
    for step in steps:
        set_gradients(group["params"], step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in group["params"]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.8},
        {"lr": 0.05, "nesterov": False},
        {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw"},
        {"lr": 0.05, "adjust_lr_fn": "original", "ns_steps": 3, "ns_coefficients": (3.0, -4.0, 2.0)},
        {"lr": torch.tensor(0.05)},
    ],
)
def test_the_updates_of_torch_muon(settings):
    """Both iterate in bfloat16: against float64, ours is off by no more than twice what theirs is."""
    found = train(Muon(parameters(), **settings), range(3))
    expected = train(torch.optim.Muon(parameters(), **settings), range(3))
    exact = train(Muon(parameters(dtype=torch.float64), **settings), range(3))
    for start, ours, theirs, best in zip(parameters(), found, expected, exact, strict=True):
        change = (best - start).norm()
        error = (theirs - best).norm()
        assert 0 < error < 0.1 * change
        assert (ours - best).norm() <= 2 * error


def test_state_moves_to_torch_and_back():
    """The momentum is the same to the bit, and with it the next update."""
    ours, theirs = Muon(parameters(), lr=0.05), torch.optim.Muon(parameters(), lr=0.05)
    train(ours, range(3))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    back = Muon(parameters(), lr=0.1)
    back.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for a, b in zip(ours.param_groups[0]["params"], back.param_groups[0]["params"], strict=True):
        b.data.copy_(a.data)
    for a, b in zip(train(ours, [3]), train(back, [3]), strict=True):
        assert torch.equal(a, b)


def test_two_runs_have_equal_bits_and_so_does_a_resumed_one(tmp_path):
    whole = train(Muon(parameters(), lr=0.05), range(6))
    first = Muon(parameters(), lr=0.05)
    values = train(first, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = parameters()
    for parameter, value in zip(resumed, values, strict=True):
        parameter.data.copy_(value)
    second = Muon(resumed, lr=0.05)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for a, b in zip(whole, train(second, range(3, 6)), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_gradient_stays_and_gets_no_state():
    optimizer = Muon(parameters(), lr=0.05)
    group = optimizer.param_groups[0]["params"]
    set_gradients(group, 0)
    group[1].grad = None
    before = group[1].detach().clone()
    optimizer.step()
    assert torch.equal(group[1], before)
    assert group[1] not in optimizer.state


def test_gradients_are_not_overwritten():
    optimizer = Muon(parameters(), lr=0.05, nesterov=False)
    group = optimizer.param_groups[0]["params"]
    set_gradients(group, 0)
    before = [parameter.grad.clone() for parameter in group]
    optimizer.step()
    for parameter, gradient in zip(group, before, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_many_matrices_in_small_stacks_are_the_same(monkeypatch):
    whole = train(Muon(parameters(), lr=0.05), range(2))
    monkeypatch.setattr("llmfast.training.optimizers.muon.STACK_ELEMENTS", 200)
    for a, b in zip(whole, train(Muon(parameters(), lr=0.05), range(2)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.01, atol=0.01)


def test_bfloat16_parameters():
    optimizer = Muon(parameters(dtype=torch.bfloat16), lr=0.05)
    for before, after in zip(parameters(dtype=torch.bfloat16), train(optimizer, range(2)), strict=True):
        assert after.dtype == torch.bfloat16
        assert not torch.equal(before, after)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="2D"):
        Muon([torch.nn.Parameter(torch.ones(3))])


def test_the_closure_is_called_with_gradients():
    (weight,) = (torch.nn.Parameter(torch.ones(2, 3)),)
    optimizer = Muon([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0


def test_the_example_holds():
    assert doctest.testmod(muon) == (0, 6)
