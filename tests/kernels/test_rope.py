"""rope: as exact as plain PyTorch for every layout, and at positions where float32 angles are not."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import (
    assert_as_exact_as,
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    dtypes,
    layouts,
    lengths,
    random_tensor,
    results,
)
from llmfast.kernels import backend, rope


def turn(x, angle, interleaved):
    """The definition, pair by pair as a complex number, in the dtype of x."""
    half = angle.shape[-1]
    rotated, passed = x[..., : 2 * half], x[..., 2 * half :]
    pairs = rotated.unflatten(-1, (half, 2)) if interleaved else rotated.unflatten(-1, (2, half)).mT
    first, second = pairs.unbind(-1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat(((turned if interleaved else turned.mT).flatten(-2), passed), -1)


def torch_rope(q, k, positions=None, rotary_dim=None, interleaved=False, base=10000.0):
    rotary_dim = rotary_dim or q.shape[-1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    positions = torch.arange(q.shape[1], device=q.device) if positions is None else positions
    exponent = torch.arange(0, rotary_dim, 2, dtype=wide, device=q.device) / rotary_dim
    angle = positions[..., None, None].to(wide) * base**-exponent
    return turn(q, angle, interleaved), turn(k, angle, interleaved)


def table(length, half, device="cpu"):
    angle = torch.arange(length, dtype=torch.float64)[:, None] * 100.0 ** -(torch.arange(half) / half)
    return angle.cos().float().to(device), angle.sin().float().to(device)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    length=lengths,
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]),
    half=st.sampled_from([1, 3, 4, 8]),
    passed=st.sampled_from([0, 5]),
    dtype=dtypes,
    layout=layouts,
    grad_layout=layouts,
    interleaved=st.booleans(),
    given_positions=st.sampled_from(["none", "shared", "each"]),
)
def check_any_shape(device, length, heads, half, passed, dtype, layout, grad_layout, interleaved, given_positions):
    width = 2 * half + passed
    options = {"rotary_dim": 2 * half, "interleaved": interleaved}
    if given_positions != "none":
        shape = (length,) if given_positions == "shared" else (2, length)
        options["positions"] = torch.arange(7, 7 + torch.Size(shape).numel(), device=device).view(shape)
    inputs = {
        "q": random_tensor((2, length, heads[0], width), dtype, device, layout),
        "k": random_tensor((2, length, heads[1], width), dtype, device, seed=1),
    }
    assert_matches(
        lambda **tensors: rope(**tensors, **options),
        lambda **tensors: torch_rope(**tensors, **options),
        inputs,
        grad_layout,
    )


@pytest.mark.numeric
def test_any_shape_stride_and_dtype(device):
    check_any_shape(device)


@pytest.mark.parametrize("base", [1.0, 10000.0, 500000.0, 1e9])
def test_angles_are_exact_at_positions_past_a_million(device, base):
    """float32 angles are off by 0.06 radians there."""
    positions = torch.tensor([0, 1, 4095, 131072, 1048575, 2**31], device=device)
    ones = torch.ones(1, 6, 1, 64, device=device)
    q = rope(ones, positions=positions, base=base)
    exact, _ = torch_rope(ones.double(), ones.double(), positions, base=base)
    allowed = positions.cpu().double() * 2**-28 + 4e-7
    assert ((q.double() - exact).abs().amax((0, 2, 3)).cpu() <= allowed).all()


def test_negative_positions_turn_back(device):
    q = random_tensor((1, 3, 2, 8), device=device)
    there = rope(q, positions=torch.tensor([5, 100, 7000], device=device))
    back = rope(there, positions=torch.tensor([-5, -100, -7000], device=device))
    exact = q.double()
    assert_as_exact_as("q", back, None, exact, lambda: there_and_back(exact, torch.tensor([5, 100, 7000])))


def there_and_back(q, positions):
    there, _ = torch_rope(q, q, positions.to(q.device))
    return torch_rope(there, there, -positions.to(q.device))[0]


@pytest.mark.parametrize("interleaved", [False, True])
def test_precomputed_tables(device, interleaved):
    cos, sin = table(9, 4, device)
    q = random_tensor((2, 5, 3, 11), device=device)
    angle = torch.atan2(sin.double(), cos.double())
    positions = torch.tensor([8, 0, 3, 3, 1], device=device)
    at_places = rope(q, cos=cos, sin=sin, interleaved=interleaved)
    at_positions = rope(q, cos=cos, sin=sin, positions=positions, interleaved=interleaved)
    for found, angles in ((at_places, angle[:5, None]), (at_positions, angle[positions][:, None])):
        algorithm = partial(turn, q.double(), angles, interleaved)
        assert_as_exact_as("q", found, None, algorithm(), algorithm)


def test_position_outside_of_the_table_shows(device):
    cos, sin = table(4, 4, device)
    q = torch.ones(1, 2, 1, 8, device=device)
    out = rope(q, cos=cos, sin=sin, positions=torch.tensor([3, 4], device=device))
    assert out[0, 0].isfinite().all()
    assert out[0, 1].isnan().all()


def test_packed_sequences_equal_separate_ones(device):
    q, k = random_tensor((7, 4, 16), device=device), random_tensor((7, 2, 16), device=device, seed=1)
    positions = torch.tensor([0, 1, 2, 0, 1, 2, 3], device=device)
    packed = rope(q, k, positions=positions)
    for start, end in ((0, 3), (3, 7)):
        separate = rope(q[None, start:end], k[None, start:end])
        for whole, part in zip(packed, separate, strict=True):
            assert torch.equal(whole[start:end], part[0])


def test_scores_depend_on_the_distance_of_positions_alone(device):
    q, k = (random_tensor((1, 1, 1, 32), device=device, seed=seed) for seed in (0, 1))

    def score(q, k, function, positions):
        turned_q, turned_k = (
            function(x, x, positions=torch.tensor([position], device=device))[0]
            for x, position in zip((q, k), positions, strict=True)
        )
        return (turned_q * turned_k).sum()

    exact = score(q.double(), k.double(), torch_rope, (10, 0))
    for positions in ((10, 0), (1000, 990), (123_456, 123_446)):
        algorithm = partial(score, q.double(), k.double(), torch_rope, positions)
        assert_as_exact_as("score", score(q, k, rope, positions), None, exact, algorithm)


def test_only_one_output_is_used(device):
    inputs = {
        "q": random_tensor((1, 3, 2, 8), device=device),
        "k": random_tensor((1, 3, 1, 8), device=device),
    }
    both = results(rope, inputs)
    for index, name in enumerate(("q", "k")):
        leaves = {n: t.clone().requires_grad_() for n, t in inputs.items()}
        grad = random_tensor(inputs[name].shape, device=device, seed=100 + index)
        rope(**leaves)[index].backward(grad)
        assert torch.equal(leaves[name].grad, both[f"gradient of {name}"])


def test_second_derivative_exists(device):
    q = random_tensor((1, 3, 1, 4), torch.float32, device).requires_grad_()
    (grad,) = torch.autograd.grad(rope(q).pow(3).sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), q)

    def algorithm():
        x = q.detach().double().requires_grad_()
        (grad,) = torch.autograd.grad(torch_rope(x, x)[0].pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.sum(), x)[0]

    assert_as_exact_as("second derivative", second, None, algorithm(), algorithm)


def test_two_runs_have_equal_bits_and_inputs_are_never_overwritten(device):
    inputs = {"q": random_tensor((2, 5, 3, 16), torch.bfloat16, device)}
    inputs["k"] = inputs["q"][:, :, :1]
    assert_same_bits(rope, inputs)
    assert_keeps_inputs(rope, inputs)


def test_offsets_past_two_to_the_31(device):
    q = random_tensor((1, 2, 1, 8), torch.float16, device)
    storage = torch.empty(2**31 + 8, dtype=torch.float16, device=device)
    far = storage.as_strided((1, 2, 1, 8), (2**31, 2**31, 8, 1)).copy_(q)
    assert torch.equal(rope(far), rope(q))


def test_torch_compile_takes_it_whole(device):
    cos, sin = table(9, 4, device)
    inputs = {"q": random_tensor((2, 5, 3, 8), device=device)}
    assert_compiles(lambda q: rope(q, q[:, :, :1], cos=cos, sin=sin), inputs)


def test_operator_is_well_formed(device):
    q = random_tensor((1, 3, 2, 8), device=device).requires_grad_()
    arguments = (q, q, None, None, None, 10000.0, 8, [], False, False)
    torch.library.opcheck(torch.ops.llmfast.rope.default, arguments)
    positions = torch.arange(9, device=device).view(3, 3)
    torch.library.opcheck(
        torch.ops.llmfast.rope.default, (q, None, positions, *arguments[3:7], [1, 2, 1], False, False)
    )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("given", ["each", "shared", "packed", "tables"])
@pytest.mark.parametrize("path", ["triton", "reference"])
def test_sections_of_three_axes(device, path, given, interleaved):
    """Trap: sections that count columns and not pairs, or frequencies that begin again in each."""
    sections, half, width = (2, 5, 1), 8, 20
    q, k = random_tensor((2, 7, 3, width), device=device), random_tensor((2, 7, 2, width), device=device, seed=1)
    positions = torch.randint(0, 50, (3, 2, 7), generator=torch.Generator().manual_seed(2)).to(device)
    positions = positions[:, 0] if given == "shared" else positions
    options = {"rotary_dim": 2 * half, "interleaved": interleaved}
    if given == "tables":
        options |= dict(zip(("cos", "sin"), table(50, half, device), strict=True))
    axis = torch.tensor([0, 0, 1, 1, 1, 1, 1, 2], device=device)

    def ours(q, k):
        if given != "packed":
            return rope(q, k, positions=positions, sections=sections, **options)
        rows = rope(q.flatten(0, 1), k.flatten(0, 1), positions=positions.flatten(1), sections=sections, **options)
        return tuple(x.unflatten(0, (2, 7)) for x in rows)

    def peer(q, k):
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        place = positions.movedim(0, -1)[..., axis].to(wide)  # of each pair
        base = 100.0 if given == "tables" else 10000.0
        angle = place * base ** -(torch.arange(half, dtype=wide, device=device) / half)
        return tuple(turn(x, angle[..., None, :], interleaved) for x in (q, k))

    with backend(path):
        assert_matches(ours, peer, {"q": q, "k": k})


def test_text_turns_as_without_sections(device):
    q = random_tensor((2, 5, 3, 16), device=device)
    positions = torch.arange(5, device=device)
    found = rope(q, positions=positions.expand(3, 5), sections=(2, 3, 3))
    assert torch.equal(found, rope(q, positions=positions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sections": (1, 3)}, "sections must be three positive integers"),
        ({"sections": (1, 0, 3)}, "sections must be three positive integers"),
        ({"sections": (2, 2, 2)}, "sections must make up rotary_dim / 2 = 4 pairs"),
        ({"sections": (1, 2, 1), "positions": None}, "give positions, too"),
        ({"sections": (1, 2, 1), "positions": torch.arange(5)}, r"positions must be integers of shape \(3, 5\)"),
        ({}, r"positions must be integers of shape \(5,\)"),
    ],
)
def test_errors_of_sections(options, message):
    with pytest.raises(ValueError, match=message):
        rope(torch.ones(2, 5, 1, 8), **{"positions": torch.zeros(3, 5, dtype=torch.int64)} | options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": torch.ones(2, 3)}, r"q must be \(B, S, H, D\) or packed.*got \(2, 3\)"),
        ({"rotary_dim": 3}, "rotary_dim must be even and within the head width 8, got 3"),
        ({"rotary_dim": 10}, "rotary_dim must be even and within the head width 8, got 10"),
        ({"base": 0.5}, "base must be finite and at least 1, got 0.5"),
        ({"cos": torch.ones(3, 4)}, "sin is missing"),
        ({"cos": torch.ones(2, 4), "sin": torch.ones(2, 4)}, r"at least 3 positions.*got \(2, 4\)"),
        ({"positions": torch.ones(3)}, "positions must be integers"),
        ({"positions": torch.arange(4)}, r"positions must be integers of shape \(3,\) or \(1, 3\)"),
        ({"k": torch.ones(1, 2, 1, 8)}, "k must agree with q"),
        ({"k": torch.ones(1, 3, 1, 8).half()}, "k must have the dtype of q"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        rope(**{"q": torch.ones(1, 3, 2, 8), **arguments})
