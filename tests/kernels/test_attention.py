"""flash_attention: as exact as PyTorch's own ops, for every width, length and option, forward and backward."""

import pytest
import torch
from attention_cases import FEW, OPTIONS, Case, assert_exact, eager_attention, launches_of, pairwise, steps_of
from kernel_testing import (
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    random_tensor,
    results,
)
from llmfast.kernels import backend, flash_attention
from llmfast.kernels.frame.launch import CHIPS

LENGTHS = OPTIONS["S"]
PLAIN = Case(16, 65, 70, 2, True, None, None, False, 0.0, torch.float32, False)
EVERYTHING = Case(24, 65, 70, 2, True, (30, -1), 2.0, True, 0.3, torch.float32, True)


@pytest.mark.numeric
@pytest.mark.parametrize("case", pairwise(FEW), ids=str)
def test_every_pair_of_options(device, case):
    assert_exact(case, device)


@pytest.mark.numeric
@pytest.mark.parametrize(("S", "T"), [*zip(LENGTHS, LENGTHS[3:] + LENGTHS[:3], strict=True), (1000, 1000)], ids=str)
def test_every_length(device, S, T):
    causal = T >= S or S == 127
    assert_exact(Case(16, S, T, 1, causal, None, None, False, 0.0, torch.float16, False), device)


@pytest.mark.numeric
def test_eight_heads_on_one_key_head(device):
    assert_exact(Case(16, 7, 40, 8, True, None, None, True, 0.0, torch.float32, True), device)


@pytest.mark.gpu
@pytest.mark.parametrize("case", pairwise(OPTIONS), ids=str)
def test_every_pair_of_options_at_length(case):
    with backend("triton"):
        assert_exact(case, "cuda", batch=2, kv_heads=2)


@pytest.mark.parametrize("capability", [90, 120])
def test_the_tiles_of_other_chips(device, capability):
    """Tensor descriptors on 9.0 and 10.0; the interpreter takes the tiles of 8.0 elsewhere."""
    with launches_of(CHIPS[capability], device):
        assert_exact(Case(**vars(EVERYTHING) | {"dtype": torch.float16}), device)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (50, 9)}], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_a_persistent_grid_takes_each_tile_once(device, capability, options):
    """Two multiprocessors share three heads of three tiles each, in pairs; with many, each tile has its own program."""
    q, k, v = (random_tensor((1, 3, 300, 16), torch.float16, seed=i) for i in range(3))
    outs = []
    for multiprocessors in (2, 1000):
        with launches_of(CHIPS[capability]._replace(multiprocessors=multiprocessors), device):
            outs.append(flash_attention(q, k, v, **options, return_lse=True))
    for persistent, plain in zip(*outs, strict=True):
        assert torch.equal(persistent, plain)


def test_equal_bits_in_every_run(device):
    """The trap: a backward pass with atomic additions to dQ, deterministic in name."""
    inputs = EVERYTHING.inputs(device)
    assert_same_bits(lambda **tensors: flash_attention(**tensors, **EVERYTHING.options()), inputs)


def test_calls_that_differ_in_one_thing_are_launched_apart(device):
    """The trap: what a call launches is kept for calls like it, and one is not like it in something that counts."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, other = (torch.randn(2, 4, 4, 16, generator=generator).to(device) for _ in range(4))
    alike = {"q": q, "k": k, "v": v}
    cu_seqlens = torch.tensor([0, 3, 4], dtype=torch.int32, device=device)
    packed = {name: x[0].contiguous() for name, x in alike.items()} | {"cu_seqlens_q": cu_seqlens}
    mask = torch.tensor([True, False], device=device).repeat(4).view(2, 4, 1, 1)
    calls = [
        alike,
        *({**alike, name: x.transpose(1, 2).contiguous().transpose(1, 2)} for name, x in alike.items()),
        *({**alike, name: torch.stack((x, other), -2)[..., 0, :]} for name, x in alike.items()),
        {**alike, "q": q[:1], "k": k[:1], "v": v[:1]},
        {**alike, "q": q[:, :, :3]},
        {**alike, "k": k[:, :, :3], "v": v[:, :, :3]},
        {**alike, "k": k[:, :2], "v": v[:, :2]},
        {**alike, "causal": True},
        {**alike, "window": (1, 0)},
        {**alike, "window": (1, 1)},
        {**alike, "scale": 0.5},
        {**alike, "softcap": 2.0},
        {**alike, "softcap": 1.0},
        {**alike, "sinks": torch.zeros(4, device=device)},
        {**alike, "alibi_slopes": torch.full((4,), 0.5, device=device)},
        {**alike, "dropout_p": 0.5, "seed": 1},
        {**alike, "dropout_p": 0.3, "seed": 1},
        {**alike, "block_mask": mask},
        {name: x.half() for name, x in alike.items()},
        packed,
        {**packed, "cu_seqlens_q": torch.tensor([0, 1, 2, 4], dtype=torch.int32, device=device)},
        {**packed, "seqused_k": torch.tensor([1, 1], dtype=torch.int32, device=device)},
    ]
    for call in (*calls, *reversed(calls)):
        with backend("reference"):
            expected = flash_attention(**call)
        torch.testing.assert_close(flash_attention(**call), expected, atol=1e-3, rtol=1e-3)


def test_inputs_are_kept(device):
    assert_keeps_inputs(lambda **inputs: flash_attention(**inputs, causal=True), PLAIN.inputs(device))


def test_torch_compile_takes_it_whole(device):
    case = EVERYTHING
    assert_compiles(lambda **inputs: flash_attention(**inputs, **case.options()), case.inputs(device))


def test_rows_that_see_nothing(device):
    """More queries than keys: the first ones stand before the first key."""
    case = Case(16, 40, 7, 1, True, None, None, False, 0.0, torch.float32, False)
    inputs = {name: x.requires_grad_() for name, x in case.inputs(device).items()}
    out, lse = flash_attention(**inputs, causal=True, return_lse=True)
    assert (out[:, :, :33] == 0).all()
    assert (lse[:, :, :33] == float("-inf")).all()
    assert lse[:, :, 33:].isfinite().all()
    out.sum().backward()
    assert (inputs["q"].grad[:, :, :33] == 0).all()
    assert all(x.grad.isfinite().all() for x in inputs.values())


@pytest.mark.parametrize("shape", [(0, 5, 5), (1, 0, 5), (1, 5, 0)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_to_attend(device, shape, causal):
    B, S, T = shape
    q = torch.randn(B, 2, S, 16, device=device, requires_grad=True)
    k, v = (torch.randn(B, 1, T, 16, device=device, requires_grad=True) for _ in range(2))
    for choice in ("triton", "reference"):
        with backend(choice):
            out, lse = flash_attention(q, k, v, causal=causal, return_lse=True)
            plain = flash_attention(q, k, v, causal=causal)
        assert out.shape == q.shape
        assert torch.equal(plain, out)
        if T == 0:
            assert (out == 0).all()
            assert (lse == float("-inf")).all()
        gradients = torch.autograd.grad(out.sum(), (q, k, v))
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.numeric
@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scale_of_any_sign(device, scale):
    inputs = PLAIN.inputs(device)
    assert_matches(
        lambda **x: flash_attention(**x, scale=scale, return_lse=True),
        lambda **x: eager_attention(**x, scale=scale),
        inputs,
        algorithm=steps_of(torch.float32, scale=scale),
    )


LENGTHS_Q, LENGTHS_K = [40, 0, 1, 70, 9, 0], [40, 5, 30, 70, 0, 0]


def packed_inputs(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    n_q, n_k = sum(LENGTHS_Q) + 3, sum(LENGTHS_K) + 5  # Some tokens after the last sequence.
    q = torch.randn(n_q, 2, 16, generator=generator).to(device, dtype)
    k, v = torch.randn(2, n_k, 1, 16, generator=generator).to(device, dtype)
    cu_q, cu_k = (
        torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
        for lengths in (LENGTHS_Q, LENGTHS_K)
    )
    return {"q": q, "k": k, "v": v}, {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (6, 3), "softcap": 2.0}], ids=str)
def test_packed_equals_one_by_one(device, options):
    inputs, bounds = packed_inputs(device)
    found = results(lambda **x: flash_attention(**x, **bounds, **options, return_lse=True), inputs)

    def one_by_one(q, k, v):
        outs, lses = [], []
        for i in range(len(LENGTHS_Q)):
            rows = slice(*bounds["cu_seqlens_q"][i : i + 2].tolist())
            keys = slice(*bounds["cu_seqlens_k"][i : i + 2].tolist())
            single = (x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys]))
            out, lse = flash_attention(*single, **options, return_lse=True)
            outs.append(out[0].transpose(0, 1))
            lses.append(lse[0].transpose(0, 1))
        return torch.cat([*outs, q[-3:] * 0]), torch.cat([*lses, torch.full_like(lses[0][:3], float("-inf"))])

    expected = results(one_by_one, inputs)
    for name, value in found.items():
        # The tiles of a sequence are the same in both, so the bits are.
        assert torch.equal(value, expected[name]), name


def test_packed_dropout_equals_padded(device):
    inputs, bounds = packed_inputs(device)
    dropout = {"dropout_p": 0.4, "seed": 3}
    packed = flash_attention(**inputs, **bounds, **dropout)
    third = slice(*bounds["cu_seqlens_q"][3:5].tolist()), slice(*bounds["cu_seqlens_k"][3:5].tolist())
    q, k, v = (inputs[n][third[n != "q"]].transpose(0, 1)[None] for n in "qkv")
    padded = flash_attention(*(x.expand(4, -1, -1, -1) for x in (q, k, v)), **dropout)
    assert torch.equal(packed[third[0]].transpose(0, 1), padded[3])


def test_kernels_and_reference_drop_the_same(device):
    case = Case(64, 65, 65, 1, False, None, None, False, 0.5, torch.float32, False)
    for seed in (2**40 + 5, 2**40 + 6):
        dropped = []
        for path in ("triton", "reference"):
            with backend(path):  # Values of 1 add up the probabilities that are kept, key by key.
                inputs = case.inputs(device) | {"v": torch.eye(65, 64, device=device)[None, None]}
                dropped.append(flash_attention(**inputs, dropout_p=0.5, seed=seed) == 0)
        assert torch.equal(*dropped)
        assert 0.4 < dropped[0].float().mean() < 0.6


def test_dropout_draws_from_the_generator(device):
    q = torch.randn(1, 1, 33, 16, device=device)
    torch.manual_seed(5)
    first, second = (flash_attention(q, q, q, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(5)
    again = flash_attention(q, q, q, dropout_p=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("layout", ["sliced", "columns apart", "one element off", "expanded heads", "sequence first"])
def test_any_strides(device, layout):
    values = torch.randn(3, 2, 2, 33, 16, generator=torch.Generator().manual_seed(2)).to(device)
    if layout == "sliced":
        wide = torch.zeros(2, 33, 2, 3, 24, device=device)
        made = [wide[..., i, 8:].transpose(1, 2) for i in range(3)]
    elif layout == "columns apart":
        made = [torch.zeros(2, 2, 16, 33, device=device).transpose(2, 3) for _ in range(3)]
    elif layout == "one element off":
        made = [torch.zeros(values[0].numel() + 1, device=device)[1:].view(values[0].shape) for _ in range(3)]
    elif layout == "sequence first":
        made = [torch.zeros(33, 2, 2, 16, device=device).permute(1, 2, 0, 3) for _ in range(3)]
    else:
        values = values[:, :, :1].expand(3, 2, 2, 33, 16)
        made = [x[:, :1].clone().expand(2, 2, 33, 16) for x in values]
    if layout != "expanded heads":
        made = [x.copy_(y) for x, y in zip(made, values, strict=True)]
    names = ("q", "k", "v")
    found = results(lambda **x: flash_attention(**x, causal=True), dict(zip(names, made, strict=True)))
    plain = [x.contiguous() for x in made]
    expected = results(lambda **x: flash_attention(**x, causal=True), dict(zip(names, plain, strict=True)))
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_expanded_output_gradient(device):
    inputs = {name: x.requires_grad_() for name, x in PLAIN.inputs(device).items()}
    out = flash_attention(**inputs)
    expanded = torch.autograd.grad(out.sum(), inputs.values(), retain_graph=True)
    dense = torch.autograd.grad(out, inputs.values(), torch.ones(out.shape, device=device))
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_autograd_of_the_reference():
    case = Case(8, 5, 7, 2, True, (3, -1), 2.0, True, 0.3, torch.float64, False)
    inputs = {name: x.requires_grad_() for name, x in case.inputs("cpu").items()}
    names = list(inputs)

    def function(*tensors):
        return flash_attention(**dict(zip(names, tensors, strict=True)), **case.options(), return_lse=True)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize(("S", "T"), [(9, 9), (1, 9), (4, 9), (9, 4)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (2, -1)}], ids=str)
def test_fused_cpu_path_is_the_definition(S, T, options):
    q, k = torch.randn(2, 6, S, 16).double(), torch.randn(2, 2, T, 16).double()
    fused = flash_attention(q, k, k, **options)
    torch.testing.assert_close(fused, flash_attention(q, k, k, **options, return_lse=True)[0])


Q = torch.zeros(1, 4, 5, 16)
K = torch.zeros(1, 2, 5, 16)
CU = torch.tensor([0, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Q[0], K[0], K[0]), {}, "packed sequences need cu_seqlens_q"),
        ((Q, K, K[:, :, :4]), {}, "same shape"),
        ((Q, K.half(), K), {}, "k is torch.float16"),
        ((Q, K[..., :8], K[..., :8]), {}, "differ in batch or D"),
        ((Q[..., :12], K, K), {}, "differ in batch or D"),
        (3 * (torch.zeros(1, 1, 2, 257),), {}, "the head width D is from 1 to 256; got 264"),
        ((Q[:, :3], K, K), {}, "multiple of key/value heads"),
        ((Q.int(), K.int(), K.int()), {}, "floating dtype"),
        ((Q, K, K), {"window": (1, -2)}, "window is two integers"),
        ((Q, K, K), {"softcap": 0.0}, "softcap is positive"),
        ((Q, K, K), {"dropout_p": 1.0}, "dropout_p lies in"),
        ((Q, K, K), {"sinks": torch.zeros(2)}, "one number a query head"),
        ((Q, K, K), {"scale": float("nan")}, "scale is finite"),
        ((Q, K, K), {"cu_seqlens_k": CU}, "without cu_seqlens_q"),
        (
            (Q[0].transpose(0, 1), K[0].transpose(0, 1), K[0].transpose(0, 1)),
            {"cu_seqlens_q": CU.long()},
            "int32",
        ),
    ],
)
def test_what_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        flash_attention(*arguments, **options)
