"""adamw_8bit_: codes of bitsandbytes, errors within their bound, training as with float32 moments."""

import pytest
import torch
from kernel_testing import random_tensor
from llmfast.kernels import adamw_, adamw_8bit_, backend
from llmfast.kernels.optimizers import adamw_reference as definition

SHAPES = [(5,), (1030,), (33, 32), (16, 16)]


def make(dtype=torch.float32, device="cpu", shapes=SHAPES):
    params = [random_tensor(shape, dtype, device, seed=i) for i, shape in enumerate(shapes)]
    codes = [[torch.zeros_like(p, dtype=torch.uint8) for p in params] for _ in range(2)]
    maxima = [[torch.zeros(-(-p.numel() // 256), device=device) for p in params] for _ in range(2)]
    return params, *codes, *maxima, [torch.zeros((), device=device) for _ in params]


def gradients(params, step):
    return [random_tensor(p.shape, p.dtype, p.device.type, seed=1000 * step + i) for i, p in enumerate(params)]


def update(state, number=1, **settings):
    params, *rest = state
    for step in range(number):
        adamw_8bit_(params, gradients(params, step), *rest, **{"lr": 0.01, "weight_decay": 0.1} | settings)
    return params


def numbers(signed):
    """Of all sizes from 1e-9 to 1, the codes themselves, and both sides of the middles between them."""
    table = definition.dynamic_code(signed)
    middles = (table[1:] + table[:-1]) / 2
    spread = random_tensor((8192,)).clamp(-3, 3) / 3 * torch.logspace(-9, 0, 8192)
    x = torch.cat([spread, table, middles * 1.0001, middles * 0.9999])
    x = x if signed else x.abs()
    blocks = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))][: len(x) // 255 * 255]
    return torch.cat([blocks.view(-1, 255), torch.ones(len(blocks) // 255, 1)], 1).flatten()


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_is_that_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    table = definition.dynamic_code(signed)
    assert torch.equal(table, functional.create_dynamic_map(signed=signed))
    x = 3 * numbers(signed)
    codes, largest = definition.encode(x, table)
    quantize = torch.ops.bitsandbytes.quantize_blockwise
    theirs, their_largest = quantize(x, table, 256)
    assert torch.equal(largest, their_largest)
    decoded = definition.decode(theirs, largest, table)
    assert torch.equal(decoded, torch.ops.bitsandbytes.dequantize_blockwise(theirs, largest, table, 256, torch.float32))
    # Theirs looks codes up in a coarser table, and misses the nearest where two are about as near, or tiny.
    ours = definition.decode(codes, largest, table)
    assert ((ours - x).abs() <= (decoded - x).abs() + 1e-6).all()
    usual = random_tensor((256 * 256,)) if signed else random_tensor((256 * 256,)).abs()
    assert (definition.encode(usual, table)[0] != quantize(usual, table, 256)[0]).sum() < 0.005 * len(usual)


@pytest.mark.parametrize("signed", [True, False])
def test_the_error_is_bounded(signed):
    x = numbers(signed)
    table = definition.dynamic_code(signed)
    codes, largest = definition.encode(x, table)
    error = (definition.decode(codes, largest, table) - x).abs()
    nearest = (x[:, None] - table).abs().amin(1)
    torch.testing.assert_close(error, nearest, rtol=0, atol=1e-7)
    assert error.max() <= 0.9 / (128 if signed else 256) + 1e-6


def test_kernels_code_as_the_definition(device):
    """One step from zero with betas of 0 stores the gradient itself, and its square."""
    x = numbers(signed=True)
    state = make(device=device, shapes=[x.shape])
    rest = state[1:]
    adamw_8bit_(state[0], [x.to(device)], *rest, lr=0.0, betas=(0.0, 0.0))
    for code, largest, value, signed in ((rest[0], rest[2], x, True), (rest[1], rest[3], x * x, False)):
        expected, expected_largest = definition.encode(value, definition.dynamic_code(signed))
        assert torch.equal(largest[0].cpu(), expected_largest)
        wrong = (code[0].cpu().int() - expected.int()).abs()
        assert wrong.max() <= 1
        assert wrong.sum() <= len(x) // 500  # on the edge between two codes, by a rounding


@pytest.mark.numeric
def test_kernels_and_definition_agree(device):
    for dtype, settings in (
        (torch.float32, {}),
        (torch.bfloat16, {"seed": 9}),
        (torch.float32, {"scale": torch.tensor(0.5, device=device), "maximize": True}),
    ):
        found = update(make(dtype, device), 2, **settings)
        with backend("reference"):
            expected = update(make(dtype, device), 2, **settings)
        for a, b in zip(found, expected, strict=True):
            # A moment on the edge between two codes may take the other one.
            apart = (a.float() - b.float()).abs() > 1e-5
            assert apart.sum() <= a.numel() // 200
            assert (a.float() - b.float()).abs().max() < 0.02


def test_it_trains_as_bitsandbytes():
    """The same update from the same state; then 100 steps that stay together."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = random_tensor((64, 80))
    parameter = torch.nn.Parameter(weight.clone())
    theirs = bitsandbytes.optim.AdamW8bit([parameter], lr=0.01, weight_decay=0.1)
    state = make(shapes=[weight.shape])
    state[0][0].copy_(weight)
    for step in range(100):
        grad = random_tensor(weight.shape, seed=step)
        parameter.grad = grad.clone()
        theirs.step()
        adamw_8bit_(state[0], [grad], *state[1:], lr=0.01, weight_decay=0.1)
        if step == 0:
            torch.testing.assert_close(state[0][0], parameter.detach(), rtol=1e-6, atol=1e-6)
    moved = (parameter.detach() - weight).norm()
    assert (state[0][0] - parameter.detach()).norm() < 0.05 * moved


def test_it_finds_the_minimum_as_with_float32_moments():
    target = random_tensor((40, 40))

    def distance(step_once):
        weight = torch.zeros_like(target)
        for _ in range(300):
            step_once(weight, weight - target)
        return (weight - target).norm().item()

    moments = [[torch.zeros_like(target)] for _ in range(2)]
    count = [torch.zeros(())]
    wide = distance(lambda w, g: adamw_([w], [g], *moments, count, lr=0.02, betas=(0.9, 0.99), weight_decay=0.0))
    _, *rest = make(shapes=[target.shape])
    narrow = distance(lambda w, g: adamw_8bit_([w], [g], *rest, lr=0.02, betas=(0.9, 0.99), weight_decay=0.0))
    assert wide < 0.05 * target.norm()
    assert narrow < 0.05 * target.norm()


def test_found_inf_leaves_everything(device):
    state = make(device=device)
    update(state)
    before = [[x.clone() for x in tensors] for tensors in state]
    update(state, found_inf=torch.ones((), device=device))
    for tensors, same in zip(state, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, same, strict=True))


def test_blocks_of_zeros_and_denormals(device):
    """Trap: 0 / 0 where a layer got no gradient, and 1 / 1e-40, which is infinite."""
    for value in (0.0, 1e-40):
        state = make(device=device, shapes=[(256,), (300,)])
        before = [p.clone() for p in state[0]]
        grads = [torch.full_like(p, value) for p in state[0]]
        adamw_8bit_(state[0], grads, *state[1:], lr=0.0, betas=(0.0, 0.0))
        assert all(torch.equal(a, b) for a, b in zip(state[0], before, strict=True))
        decoded = definition.decode(state[1][1].cpu(), state[3][1].cpu(), definition.dynamic_code(True))
        assert decoded.abs().max() <= 1e-40


def test_masters(device):
    params, *rest = make(torch.bfloat16, device)
    masters = [p.float() for p in params]
    before = [m.clone() for m in masters]
    adamw_8bit_(params, gradients(params, 0), *rest, lr=1e-4, masters=masters)
    for param, master, old in zip(params, masters, before, strict=True):
        assert not torch.equal(master, old)
        assert (param.float() - master).abs().max() <= master.abs().max() * 2**-7


def test_operator_is_well_formed(device):
    params, *rest = make(device=device, shapes=[(20,), (16,)])
    *state, steps = rest
    torch._foreach_add_(steps, 1)
    settings = (torch.tensor(0.1, device=device), 0.9, 0.99, 1e-8, 0.1, False, None, None, None, 0)
    torch.library.opcheck(
        torch.ops.llmfast.adamw_8bit.default,
        (params, gradients(params, 0), *state, [], steps, *settings),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_errors_name_the_argument():
    params, *rest = make(shapes=[(300,)])
    short = [rest[0], rest[1], [torch.zeros(1)], rest[3], rest[4]]
    with pytest.raises(ValueError, match=r"exp_avg_max\[0\] must be contiguous of shape \(2,\).*got \(1,\)"):
        adamw_8bit_(params, gradients(params, 0), *short, lr=0.1)
    wide = [[torch.zeros(300)], *rest[1:]]
    with pytest.raises(ValueError, match=r"exp_avg must be torch\.uint8, got torch\.float32"):
        adamw_8bit_(params, gradients(params, 0), *wide, lr=0.1)
