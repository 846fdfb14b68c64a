"""adamw_: as exact as PyTorch's over a thousand steps, unbiased where it rounds, in few launches of any tensors."""

import doctest
import importlib
from functools import cache

import pytest
import torch
from kernel_testing import assert_as_exact_as, random_tensor, require_interpreter
from llmfast.kernels import adamw_, adamw_8bit_, backend
from llmfast.kernels.optimizers import adamw_reference as definition
from llmfast.kernels.optimizers.adamw_ops import TENSORS, launches
from roundings import rounding_error

SHAPES = [(3,), (1030,), (33, 32), (4, 16), ()]


def drawn(shape, dtype, device, layout="contiguous", *, seed):
    """Random numbers; in float64 those of float32, of which it computes the exact result."""
    narrow = torch.float32 if dtype == torch.float64 else dtype
    return random_tensor(shape, narrow, device, layout, seed=seed).to(dtype)


def make(dtype=torch.float32, device="cpu", shapes=SHAPES, layout="contiguous"):
    params = [drawn(shape, dtype, device, layout, seed=i) for i, shape in enumerate(shapes)]
    wide = torch.promote_types(dtype, torch.float32)
    moments = [[torch.zeros_like(p, dtype=wide) for p in params] for _ in range(2)]
    return params, *moments, [torch.zeros((), device=device) for _ in params]


def gradients(params, step):
    return [drawn(p.shape, p.dtype, p.device.type, seed=1000 * step + i) for i, p in enumerate(params)]


def update(params, means, squares, steps, number=1, grads=None, **settings):
    for step in range(number):
        given = gradients(params, step) if grads is None else grads
        adamw_(params, given, means, squares, steps, **{"lr": 0.01, "weight_decay": 0.1} | settings)
    return params


def torch_adamw(params, number, **settings):
    params = [torch.nn.Parameter(p.clone()) for p in params]
    optimizer = torch.optim.AdamW(params, **{"lr": 0.01, "weight_decay": 0.1} | settings)
    for step in range(number):
        for parameter, gradient in zip(params, gradients(params, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [p.detach() for p in params]


def assert_close_to_exact(found, theirs, algorithm):
    """``algorithm`` gives the tensors in float64."""
    exact = algorithm()
    errors = cache(lambda: rounding_error(lambda: dict(enumerate(algorithm())), dict(enumerate(exact)), torch.float32))
    for i, (a, b, best) in enumerate(zip(found, theirs, exact, strict=True)):
        assert_as_exact_as(f"tensor {i}", a, b, best, lambda i=i: errors()[i])


@pytest.mark.numeric
@pytest.mark.parametrize("settings", [{}, {"betas": (0.8, 0.99), "eps": 1e-4}, {"maximize": True}])
def test_a_thousand_steps_are_as_exact_as_pytorch(settings):
    """Without a fused update of PyTorch's: ``scale`` asks for ours."""
    shapes = [(3,), (5, 4)]
    theirs = torch_adamw(make(shapes=shapes)[0], 1000, **settings)
    for more in ({"scale": torch.tensor(1.0)}, {}):
        assert_close_to_exact(
            update(*make(shapes=shapes), 1000, **more, **settings),
            theirs,
            lambda: torch_adamw([p.double() for p in make(shapes=shapes)[0]], 1000, **settings),
        )


@pytest.mark.numeric
def test_kernels_are_as_exact_as_pytorch(device):
    """The first steps, where 1 - beta cancels, and late ones."""
    for start in (0, 50_000):

        def after_four_steps(path, dtype=torch.float32, start=start):
            *state, steps = make(dtype, device)
            for step in steps:
                step.fill_(start)
            with backend(path):
                update(*state, steps, 4)
            assert all(step == start + 4 for step in steps)
            return [tensor for tensors in state for tensor in tensors]

        found, theirs = after_four_steps("triton"), after_four_steps("reference")
        assert_close_to_exact(found, theirs, lambda: after_four_steps("reference", torch.float64))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "every_second", "offset"])
def test_any_strides(device, layout):
    """Trap: a parameter with gaps between its elements, or a gradient in another memory order."""
    shapes = [(6, 5), (33, 32)]
    expected = update(*make(device=device, shapes=shapes), 2)
    state = make(device=device, shapes=shapes, layout=layout)
    holders = list(state[0])
    update(*state, 2)
    for found, wanted in zip(holders, expected, strict=True):
        assert torch.equal(found, wanted)


def test_many_tensors_of_mixed_sizes(device):
    """More than a launch takes; empty ones, and ones of several programs, among them."""
    shapes = [(0,), *((16 * i,) for i in range(1, 20)), *((i,) for i in range(1, 20)), (5000,), (0, 3)]
    state = make(device=device, shapes=shapes)

    def by_reference(dtype=torch.float32):
        with backend("reference"):
            return update(*make(dtype, device, shapes), 1)

    assert_close_to_exact(update(*state, 1), by_reference(), lambda: by_reference(torch.float64))


def test_launches_cover_every_element_once():
    sizes = [0, 5, 16, 4096, 4097, *(32,) * 40]
    seen = []
    for members, firsts, programs, even in launches(sizes):
        assert len(members) == len(firsts) == TENSORS
        assert firsts == sorted(firsts)
        for program in range(programs):
            place = sum(program >= first for first in firsts) - 1
            assert (sizes[members[place]] % 16 == 0) == even
            seen.append((members[place], program - firsts[place]))
    expected = [(i, chunk) for i, size in enumerate(sizes) for chunk in range(-(-size // 4096))]
    assert sorted(seen) == expected


def test_scale_is_as_if_gradients_were_scaled_and_keeps_them(device):
    state, other = make(device=device), make(device=device)
    grads = gradients(state[0], 0)
    before = [g.clone() for g in grads]
    update(*state, grads=grads, scale=torch.tensor(0.25, device=device))
    update(*other, grads=[g * 0.25 for g in grads], scale=torch.tensor(1.0, device=device))
    for found, wanted in zip(state[0], other[0], strict=True):
        assert torch.equal(found, wanted)  # a power of two rounds nothing
    for gradient, same in zip(grads, before, strict=True):
        assert torch.equal(gradient, same)


def test_found_inf_leaves_everything(device):
    state = make(torch.bfloat16, device)
    before = [[x.clone() for x in tensors] for tensors in state]
    grads = [torch.full_like(p, float("nan")) for p in state[0]]
    update(*state, grads=grads, found_inf=torch.ones(1, device=device), seed=1)
    for tensors, same in zip(state, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, same, strict=True))
    update(*state, found_inf=torch.zeros(1, device=device), seed=1)
    assert all(step == 1 for step in state[-1])
    assert not torch.equal(state[0][1], before[0][1])


def test_learning_rate_as_a_tensor(device):
    found = update(*make(device=device), 2, lr=torch.tensor(0.03, device=device))
    for a, b in zip(found, update(*make(device=device), 2, lr=0.03), strict=True):
        assert torch.equal(a, b)


def test_masters_lose_nothing_to_rounding(device):
    """Trap: updates below half of bfloat16's last bit are lost, and training stands still."""
    params, means, squares, steps = make(torch.bfloat16, device)
    masters = [p.float() for p in params]
    wide = [p.clone() for p in masters]
    settings = {"lr": 1e-4, "scale": torch.tensor(1.0, device=device)}
    grads = gradients(params, 0)
    update(params, means, squares, steps, 20, grads=grads, masters=masters, **settings)
    moments = [[torch.zeros_like(p) for p in wide] for _ in range(2)]
    expected = update(
        wide, *moments, [torch.zeros_like(s) for s in steps], 20, grads=[g.float() for g in grads], **settings
    )
    for param, master, wanted in zip(params, masters, expected, strict=True):
        assert torch.equal(master, wanted)
        assert (param.float() - master).abs().max() <= master.abs().max() * 2**-7


def test_stochastic_rounding_is_the_same_on_every_path(device):
    """The random numbers are a function of seed, stream, step and place: reproducible to the bit."""
    found = update(*make(torch.bfloat16, device), 3, seed=2**60 + 3, stream=5)
    with backend("reference"):
        expected = update(*make(torch.bfloat16, device), 3, seed=2**60 + 3, stream=5)
        others = [
            update(*make(torch.bfloat16, device), 3, **other)
            for other in ({"seed": 3, "stream": 5}, {"seed": 2**60 + 3, "stream": 6})
        ]
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        # An update that the paths compute one float32 rounding apart may fall on the other side.
        assert (a != b).sum() <= a.numel() // 500
        if a.numel() > 100:
            assert all((a != other[i]).sum() > a.numel() // 10 for other in others)


def test_stochastic_rounding_is_unbiased():
    """200,000 numbers between the same two neighbours: the share rounded up is where they lie between them."""
    count = 200_000
    for share in (0.02, 0.25, 0.5, 0.9):
        x = torch.full((count,), 1 + share * 2**-7)
        settings = definition.Settings(None, 0, 0, 0, 0, False, None, None, seed=11, stream=0)
        found = definition.rounded(x, torch.bfloat16, torch.tensor(7.0), 3, settings).float()
        assert set(found.unique().tolist()) == {1.0, 1 + 2**-7}
        up = (found > 1).double().mean().item()
        assert abs(up - share) < 4 * (share * (1 - share) / count) ** 0.5 + 2**-16
    signed = definition.rounded(-x, torch.bfloat16, torch.tensor(7.0), 3, settings).float()
    assert torch.equal(signed, -found)


def test_stochastic_rounding_draws_anew_for_each_step_tensor_and_element():
    settings = definition.Settings(None, 0, 0, 0, 0, False, None, None, seed=11, stream=0)

    def bits(step, index):
        return definition.random_16_bits(8192, torch.tensor(float(step)), index, settings).double()

    draws = [bits(1, 0), bits(2, 0), bits(1, 1), bits(1, 0).roll(1), bits(1, 0).roll(1024)]
    correlation = torch.corrcoef(torch.stack(draws))
    assert (correlation - torch.eye(len(draws))).abs().max() < 5 / 8192**0.5


def test_stochastic_rounding_keeps_what_is_no_number(device):
    params = [torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0] * 4).bfloat16().to(device)]
    zeros = [[torch.zeros_like(params[0], dtype=torch.float32)] for _ in range(2)]
    before = params[0].clone()
    steps = [torch.zeros((), device=device)]
    adamw_(params, [torch.zeros_like(before)], *zeros, steps, lr=0.1, weight_decay=0.0, seed=1)
    assert torch.equal(params[0].nan_to_num(7.0), before.nan_to_num(7.0))


def test_small_updates_add_up_under_stochastic_rounding():
    """Trap: rounded to nearest, a weight of 1 never moves by 1e-3."""

    def train(**settings):
        params = [torch.ones(2000, dtype=torch.bfloat16)]
        state = [torch.zeros(2000)], [torch.zeros(2000)], [torch.zeros(())]
        for _ in range(50):
            adamw_(params, [torch.ones_like(params[0])], *state, lr=1e-3, weight_decay=0.0, **settings)
        return params[0].float().mean().item()

    assert train() == 1.0
    assert train(seed=0) == pytest.approx(0.95, abs=0.002)


def test_two_runs_have_equal_bits(device):
    first, second = (update(*make(torch.bfloat16, device), 2, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_tensor_past_two_to_the_31(device):
    """Its last element, in float16 pages that are never touched otherwise, would take 64-bit places."""
    if device == "cpu":
        require_interpreter()
        pytest.skip("half a million interpreted programs")
    size = 2**31 + 16
    params = [torch.zeros(size, dtype=torch.bfloat16, device=device)]
    grads = [torch.ones_like(params[0])]
    moments = [[torch.zeros(size, device=device)] for _ in range(2)]
    adamw_(params, grads, *moments, [torch.zeros((), device=device)], lr=0.5)
    assert (params[0] == -0.5).all()


def test_autograd_sees_that_parameters_changed(device):
    """Trap: in-place writes behind autograd's back give silently wrong gradients."""
    state = make(device=device, shapes=[(4,)])
    weight = state[0][0].requires_grad_()
    y = (weight * weight).sum()
    update(*state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_torch_compile_takes_it_whole(device):
    def step(params, grads, means, squares, steps):
        adamw_(params, grads, means, squares, steps, lr=0.01)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    state, other = make(device=device), make(device=device)
    grads = gradients(state[0], 0)
    compiled(state[0], grads, *state[1:])
    step(other[0], grads, *other[1:])
    for a, b in zip(state[0], other[0], strict=True):
        assert torch.equal(a, b)


def test_operator_is_well_formed(device):
    params, means, squares, steps = make(device=device, shapes=[(20,), (16,)])
    torch._foreach_add_(steps, 1)
    lr = torch.tensor(0.1, device=device)
    settings = (lr, 0.9, 0.99, 1e-8, 0.1, False, None, None, None, 0)
    torch.library.opcheck(
        torch.ops.llmfast.adamw.default,
        (params, gradients(params, 0), means, squares, [], steps, *settings),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("function", [adamw_, adamw_8bit_])
def test_captures_into_a_cuda_graph_and_does_not_synchronise(function):
    def fresh():
        params, means, squares, steps = make(torch.bfloat16, "cuda", shapes=[(300, 16), (7,)])
        if function is adamw_8bit_:
            codes = [[torch.zeros_like(p, dtype=torch.uint8) for p in params] for _ in range(2)]
            maxima = [[torch.zeros(-(-p.numel() // 256), device="cuda") for p in params] for _ in range(2)]
            return params, *codes, *maxima, steps
        return params, means, squares, steps

    settings = {"lr": torch.tensor(0.01, device="cuda"), "seed": 3}
    expected, state = fresh(), fresh()
    grads = gradients(state[0], 0)
    for _ in range(4):
        function(expected[0], grads, *expected[1:], **settings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(state[0], grads, *state[1:], **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(state[0], grads, *state[1:], **settings)
    for _ in range(3):
        graph.replay()
    for found, wanted in zip(state, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


WIDE = ([torch.ones(3)], [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3)], [torch.tensor(0.0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": []}, "grads must hold a tensor for each of 1 parameters, got 0"),
        ({"grads": [torch.ones(4)]}, r"grads\[0\] must have shape \(3,\), got \(4,\)"),
        ({"exp_avg": [torch.zeros(3).half()]}, "exp_avg must be torch.float32, got torch.float16"),
        ({"exp_avg_sq": [torch.zeros(6)[::2]]}, r"exp_avg_sq\[0\] must have the shape \(3,\) and strides"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"seed": 1}, "stochastic rounding, which is to bfloat16, got torch.float32"),
        ({"seed": 1, "masters": [torch.ones(3)]}, "do not need"),
    ],
)
def test_errors_name_the_argument(change, message):
    names = ("params", "grads", "exp_avg", "exp_avg_sq", "steps")
    scale = {"scale": torch.tensor(1.0)}  # not PyTorch's own update, which checks by itself
    with pytest.raises(ValueError, match=message):
        adamw_(**dict(zip(names, WIDE, strict=True)) | scale | {"lr": 0.1} | change)


def test_nothing_to_do():
    adamw_([], [], [], [], [], lr=0.1)
    adamw_8bit_([], [], [], [], [], [], [], lr=0.1)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_the_examples_hold(name):
    result = doctest.testmod(importlib.import_module(f"llmfast.kernels.optimizers.{name}"))
    assert result.attempted >= 4
    assert result.failed == 0
