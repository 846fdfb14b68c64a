"""AdamW and AdamW8bit: state that moves to and from torch and bitsandbytes, resumed and repeated to the bit."""

import copy
import doctest

import pytest
import torch

from llmfast.training.optimizers import adamw, adamw_8bit
from llmfast.training.optimizers.adamw import AdamW
from llmfast.training.optimizers.adamw_8bit import AdamW8bit

SHAPES = [(64, 80), (7,), (33, 5)]
SETTINGS = {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.1}


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def set_gradients(optimizer, step):
    generator = torch.Generator().manual_seed(100 + step)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def train(optimizer, steps):
    for step in steps:
        set_gradients(optimizer, step)
        optimizer.step()
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def moved(optimizer, build):
    """Another optimizer, on parameters of the same values, that loaded this one's state."""
    copies = [torch.nn.Parameter(p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    other = build(copies)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


def assert_equal(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("build", [AdamW, AdamW8bit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest", "masters"])
def test_repeated_and_resumed_to_the_bit(build, dtype, rounding, tmp_path):
    """Trap: float32 moments that ``load_state_dict`` rounds to the dtype of bfloat16 parameters."""
    whole = train(build(parameters(dtype), **SETTINGS, rounding=rounding), range(6))
    first = build(parameters(dtype), **SETTINGS, rounding=rounding)
    train(first, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = build([torch.nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]], lr=1.0)
    resumed.rounding = rounding
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_equal(train(resumed, range(3, 6)), whole)


def test_in_float32_on_a_cpu_it_is_torch_to_the_bit():
    assert_equal(
        train(AdamW(parameters(), **SETTINGS), range(5)),
        train(torch.optim.AdamW(parameters(), **SETTINGS, fused=True), range(5)),
    )


@pytest.mark.parametrize("fused", [True, False])
def test_state_moves_to_torch_and_back(fused):
    def torch_adamw(copies):
        return torch.optim.AdamW(copies, fused=fused)

    ours = AdamW(parameters(), **SETTINGS)
    train(ours, range(3))
    theirs = moved(ours, torch_adamw)
    back = moved(theirs, AdamW)
    assert back.param_groups[0]["lr"] == SETTINGS["lr"]
    expected = train(ours, [3])
    assert_equal(train(back, [3]), expected)
    assert_equal(train(theirs, [3]), expected)
    plain = torch_adamw(parameters())
    train(plain, range(2))
    theirs_to_ours = moved(plain, AdamW)
    for a, b in zip(train(theirs_to_ours, [2]), train(plain, [2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_state_moves_to_bitsandbytes_and_back():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    ours = AdamW8bit(parameters(), **SETTINGS)
    train(ours, range(3))
    theirs = moved(ours, bitsandbytes.optim.AdamW8bit)
    back = moved(theirs, AdamW8bit)
    assert back.param_groups[0]["lr"] == SETTINGS["lr"]
    expected = train(ours, [3])
    assert_equal(train(back, [3]), expected)
    for a, b in zip(train(theirs, [3]), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    theirs_to_ours = moved(theirs, AdamW8bit)
    for a, b in zip(train(theirs_to_ours, [4]), train(theirs, [4]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_codes_of_another_table_are_refused():
    saved = AdamW8bit(parameters(), **SETTINGS)
    train(saved, range(1))
    state = copy.deepcopy(saved.state_dict())
    state["state"][0]["qmap1"] = state["state"][0]["qmap1"].flip(0)
    with pytest.raises(ValueError, match="qmap1 is not bitsandbytes' dynamic map"):
        AdamW8bit(parameters()).load_state_dict(state)


def test_the_state_of_another_optimizer_is_refused():
    """Trap: an optimizer that loads nothing of it, and says so at the next step or never."""
    for ours, other in ((AdamW, AdamW8bit), (AdamW8bit, AdamW), (AdamW, torch.optim.RMSprop)):
        trained = other(parameters())
        train(trained, range(1))
        with pytest.raises(ValueError, match=r"the state has .*step.* and is not an AdamW"):
            ours(parameters()).load_state_dict(trained.state_dict())


def test_8_bit_state_is_a_quarter_and_small_parameters_keep_float32():
    optimizer = AdamW8bit(parameters(), **SETTINGS)
    train(optimizer, range(1))
    large, small, _ = optimizer.param_groups[0]["params"]
    taken = sum(value.nbytes for value in optimizer.state[large].values())
    assert taken < 0.26 * 8 * large.numel()
    assert optimizer.state[small]["state1"].dtype == torch.float32


@pytest.mark.parametrize("build", [AdamW, AdamW8bit])
def test_clipping_is_that_of_clip_grad_norm(build):
    whole, apart = build(parameters(), **SETTINGS, clip_norm=0.5), build(parameters(), **SETTINGS)
    for step in range(3):
        set_gradients(whole, step)
        set_gradients(apart, step)
        torch.nn.utils.clip_grad_norm_(apart.param_groups[0]["params"], 0.5)
        whole.step()
        apart.step()
    for a, b in zip(whole.param_groups[0]["params"], apart.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [AdamW, AdamW8bit])
def test_the_gradient_scaler_leaves_its_work_to_the_step(build):
    """Scaled losses give the same update; a gradient that is not finite gives none, and halves the scale."""
    scaled, plain = build(parameters(), **SETTINGS), build(parameters(), **SETTINGS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # makes its state
    set_gradients(plain, 0)
    set_gradients(scaled, 0)
    for parameter in scaled.param_groups[0]["params"]:
        parameter.grad *= 1024
    plain.step()
    scaler.step(scaled)
    scaler.update()
    for a, b in zip(scaled.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    before = [p.detach().clone() for p in scaled.param_groups[0]["params"]]
    set_gradients(scaled, 1)
    scaled.param_groups[0]["params"][1].grad[0] = float("inf")
    scaler.step(scaled)
    scaler.update()
    assert_equal([p.detach() for p in scaled.param_groups[0]["params"]], before)
    assert scaler.get_scale() == 512.0
    assert all(state["step"] == 1 for state in scaled.state.values())


@pytest.mark.parametrize("build", [AdamW, AdamW8bit])
def test_groups_of_mixed_dtypes_and_missing_gradients(build):
    wide, narrow = parameters(), parameters(torch.bfloat16)
    groups = [
        {"params": [wide[0], narrow[0], wide[1]], "lr": 0.5, "weight_decay": 0.0},
        {"params": [narrow[1]], "lr": 0.0},
    ]
    optimizer = build(groups, **SETTINGS)
    set_gradients(optimizer, 0)
    wide[1].grad = None
    before = [p.detach().clone() for group in groups for p in group["params"]]
    optimizer.step()
    now = (wide[0], narrow[0], wide[1], narrow[1])
    changed = [not torch.equal(p, old) for p, old in zip(now, before, strict=True)]
    assert changed == [True, True, False, False]
    assert wide[1] not in optimizer.state


@pytest.mark.parametrize("build", [AdamW, AdamW8bit])
def test_the_closure_is_called_with_gradients(build):
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = build([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0


def test_settings_are_checked():
    for build in (AdamW, AdamW8bit):
        with pytest.raises(ValueError, match="rounding is one of stochastic, nearest, masters, got 'up'"):
            build(parameters(), rounding="up")
        with pytest.raises(ValueError, match="-1"):
            build(parameters(), lr=-1)
    with pytest.raises(ValueError, match="betas"):
        AdamW8bit(parameters(), betas=(0.9, 1.0))
    optimizer = AdamW(parameters())
    optimizer.param_groups[0]["amsgrad"] = True
    set_gradients(optimizer, 0)
    with pytest.raises(ValueError, match="amsgrad is not supported"):
        optimizer.step()


@pytest.mark.parametrize("module", [adamw, adamw_8bit])
def test_the_examples_hold(module):
    result = doctest.testmod(module)
    assert result.attempted >= 5
    assert result.failed == 0
