"""Arguments that are unusual but allowed give the right numbers on both paths; those that cannot be meant are refused.

The kernels run in Triton's interpreter.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import require_interpreter
from llmfast.kernels import (
    adamw_,
    attention_weights,
    backend,
    cross_entropy,
    flash_attention,
    flash_decode,
    gelu,
    int8_linear,
    layer_norm,
    linear_cross_entropy,
    linear_kl_divergence,
    nf4_linear,
    quantize_int8,
    quantize_nf4,
    rms_norm,
    rope,
    swiglu,
)

NAN, INF = math.nan, math.inf


@pytest.fixture(params=["reference", "triton"], autouse=True)
def path(request):
    require_interpreter()
    with backend(request.param):
        yield request.param


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(x):
    """The same numbers, with others between them in memory."""
    return torch.stack([x, torch.full_like(x, 77)], -1)[..., 0]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3, check_dtype=False)


def test_boundaries_lengths_and_sinks_of_any_stride():
    """Trap: a kernel that reads the numbers between them: wrong results, and memory of others."""
    q, k, v = numbers(9, 4, 8), numbers(12, 2, 8, seed=1), numbers(12, 2, 8, seed=2)
    vectors = {
        "cu_seqlens_q": [0, 4, 9],
        "cu_seqlens_k": [0, 5, 12],
        "seqused_q": [3, 5],
        "seqused_k": [5, 6],
        "leftpad_k": [1, 0],
    }
    vectors = {name: torch.tensor(values, dtype=torch.int32) for name, values in vectors.items()}
    vectors["sinks"] = numbers(4, seed=3)

    def run(strided):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        given = {name: strided(x) for name, x in vectors.items()}
        out = flash_attention(*inputs, causal=True, **given)
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in inputs)]

    with backend("reference"):
        expected = run(torch.clone)
    for found, right in zip(run(spread), expected, strict=True):
        close(found, right)


def test_lengths_of_a_cache_that_are_one_expanded_number():
    q, caches = numbers(3, 4, 1, 16), numbers(2, 3, 2, 12, 16, seed=1)
    length = torch.tensor([7], dtype=torch.int32)
    sinks = numbers(4, seed=2)
    with backend("reference"):
        right = flash_decode(q, *caches, length.repeat(3), leftpad=length.repeat(3) - 5, sinks=sinks)
    close(flash_decode(q, *caches, length.expand(3), leftpad=(length - 5).expand(3), sinks=spread(sinks)), right)


@pytest.mark.parametrize("tokens", [3, 20])
def test_biases_and_scales_of_any_stride(tokens):
    x, weight, bias = numbers(tokens, 64).half(), numbers(48, 64, seed=1) / 8, numbers(48, seed=2).half()
    codes, scale = quantize_int8(weight)
    close(int8_linear(x, codes, spread(scale), spread(bias)), int8_linear(x, codes, scale, bias))
    packed = quantize_nf4(weight)
    close(nf4_linear(x, packed, spread(bias)), nf4_linear(x, packed, bias))
    target = torch.arange(tokens)
    head = weight.half()
    expected = F.cross_entropy(x.double() @ head.double().T + bias.double(), target, reduction="none")
    for method in ("auto", "tiles", "chunks"):
        loss = linear_cross_entropy(x, head, target, spread(bias), reduction="none", method=method)
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=0.05)


def test_tokens_that_do_not_count_see_no_sink_and_may_hold_nan():
    """Trap: rows at the end of a buffer, which nothing has written yet, in the results of those that count."""
    q, k, v = (numbers(9, 2, 8, seed=seed) for seed in range(3))
    sinks = numbers(2, seed=3).requires_grad_()
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    inputs = [x.clone() for x in (q, k, v)]
    for x in inputs:
        x[7:] = NAN
        x.requires_grad_()
    out, lse = flash_attention(*inputs, sinks=sinks, cu_seqlens_q=bounds, return_lse=True)
    expected = flash_attention(q[:7], k[:7], v[:7], sinks=sinks, cu_seqlens_q=bounds).detach()
    close(out[:7], expected)
    assert (out[7:] == 0).all()
    assert (lse[7:] == -INF).all()
    (out.sum() + lse[:7].sum()).backward()
    for x in (*inputs, sinks):
        assert x.grad.isfinite().all()
    used = torch.tensor([2, 4], dtype=torch.int32)
    _, lse = flash_attention(*inputs, sinks=sinks, cu_seqlens_q=bounds, seqused_q=used, return_lse=True)
    assert lse.isfinite().all(1).tolist() == [True, True, False, True, True, True, True, False, False]


@pytest.mark.parametrize("far", [2**31 - 1, 2**31, 2**63])
def test_a_window_beyond_any_length_is_none(far):
    """Trap: its bound, added to a position in 32 bits, wraps around, and all keys are hidden."""
    q, k = numbers(1, 2, 5, 8), numbers(1, 2, 9, 8, seed=1)
    for queries in (q, q[:, :, :1]):
        close(flash_attention(queries, k, k, window=(far, far)), flash_attention(queries, k, k))
        close(flash_attention(queries, k, k, window=(1, far)), flash_attention(queries, k, k, window=(1, -1)))


def test_a_sink_that_is_switched_off():
    q, k = numbers(1, 2, 5, 8), numbers(1, 2, 3, 8, seed=1)
    sinks = torch.tensor([-INF, 1.0])
    _, lse = flash_attention(q, k, k, causal=True, sinks=sinks, return_lse=True)  # The first two queries see no key.
    assert lse[0, :, 0].tolist() == [-INF, 1.0]
    close(lse[:, :1], flash_attention(q, k, k, causal=True, return_lse=True)[1][:, :1])


def test_rows_before_a_cache_are_not_written():
    caches = torch.zeros(2, 1, 2, 8, 16)
    new = torch.ones(1, 2, 3, 16)
    lengths = torch.tensor([-1], dtype=torch.int32)
    flash_decode(numbers(1, 2, 1, 16), *caches, lengths, k_new=new, v_new=new)
    assert caches[:, 0, 0, :, 0].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]] * 2


@pytest.mark.parametrize("layout", ["transposed parameter", "transposed gradient", "gaps"])
def test_an_update_pairs_elements_by_their_index(layout):
    """Trap: PyTorch's fused update pairs them by their places in memory, and writes into gaps."""
    memory = numbers(4, 6)
    param = {"transposed parameter": memory.T, "transposed gradient": memory, "gaps": memory[:, ::2]}[layout]
    plain = param.clone(memory_format=torch.contiguous_format)
    grad = numbers(*param.shape, seed=1)
    given = grad.T.contiguous().T if layout == "transposed gradient" else grad
    hidden = memory[:, 1::2].clone()
    for parameter, gradient in ((param, given), (plain, grad)):
        state = [torch.zeros_like(parameter) for _ in range(2)]
        for step in range(2):
            adamw_([parameter], [gradient], state[:1], state[1:], [torch.tensor(float(step))], lr=0.1)
    close(param, plain)
    if layout == "gaps":
        assert torch.equal(memory[:, 1::2], hidden)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_targets_of_any_integer_dtype(dtype):
    """Trap: in uint8, -100 is the class 156."""
    classes = 100 if dtype == torch.int8 else 200
    target = torch.tensor([classes - 44, 3, classes - 1])
    logits, hidden, head = numbers(3, classes), numbers(3, 8), numbers(classes, 8)
    expected = F.cross_entropy(logits, target, reduction="none")
    close(cross_entropy(logits, target.to(dtype), reduction="none"), expected)
    expected = F.cross_entropy(hidden @ head.T, target)
    for method in ("auto", "chunks"):
        close(linear_cross_entropy(hidden, head, target.to(dtype), method=method), expected)
    divergence = linear_kl_divergence(hidden, head, hidden, -head, target.to(dtype), reduction="none")
    assert (divergence > 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_positions_of_any_integer_dtype(dtype):
    """Trap: uint8 positions that PyTorch takes for a mask of the table."""
    q, cos, sin = numbers(1, 3, 2, 8), numbers(3, 4), numbers(3, 4, seed=1)
    for positions in (torch.tensor([2, 0, 1]), torch.ones(3, dtype=torch.long)):
        expected = rope(q, cos=cos[positions], sin=sin[positions])
        close(rope(q, positions=positions.to(dtype), cos=cos, sin=sin), expected)
        close(rope(q, positions=positions.to(dtype)), rope(q, positions=positions))


def test_a_negative_position_is_no_row_of_the_tables(path):
    def turn():
        return rope(torch.ones(1, 2, 1, 4), positions=torch.tensor([0, -1]), cos=torch.ones(3, 2), sin=torch.ones(3, 2))

    if path == "triton":
        assert turn()[:, 1].isnan().all()
    else:
        with pytest.raises(IndexError):
            turn()


def test_angles_are_exact_at_far_positions_on_both_paths():
    """Trap: in float32 the angle of position 131,071 is wrong by 0.004."""
    position = torch.tensor([131_071])
    frequency = 10000.0 ** -(torch.arange(8, dtype=torch.float64) / 8)
    angle = position.double()[:, None] * frequency
    turned = rope(torch.ones(1, 1, 1, 16), positions=position)[0, :, 0].double()
    expected = torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()], -1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=5e-4)


def test_weights_of_heads_of_any_width():
    q, k = numbers(1, 2, 3, 12), numbers(1, 1, 3, 12, seed=1)
    expected = (q @ k.mT / 12**0.5).softmax(-1)
    close(attention_weights(q, k), expected)
    close(attention_weights(q, k, heads=[], rows=[0]), expected[:, :0, :1])


ROW, TARGET = numbers(2, 4), torch.tensor([1, 3])
HEAD = numbers(5, 4, seed=1)
WEIGHT = torch.ones(4)


def update(param=WEIGHT, grad=WEIGHT, step=0.0, **options):
    param, step = param.clone(), torch.tensor(step)
    state = [torch.zeros_like(param, dtype=torch.float32) for _ in range(2)]
    adamw_([param], [grad], state[:1], state[1:], [step], **({"lr": 0.1} | options))


def dropped(seed):
    return flash_attention(*numbers(3, 1, 2, 4, 8), dropout_p=0.5, seed=seed)


REFUSED = {
    "softcap is positive, 10,000 at most": lambda: flash_attention(*numbers(3, 1, 2, 4, 8), softcap=1e6),
    "seed must be an integer, got 1.5": lambda: dropped(1.5),
    "seed is an integer of 64 bits": lambda: dropped(2**63),
    "seed is an integer, or an int64 tensor of one element": lambda: dropped(torch.tensor([1, 2])),
    r"grads\[0\] must be dense": lambda: update(grad=WEIGHT.to_sparse()),
    "grads must be a floating-point tensor": lambda: update(grad=WEIGHT.to(torch.complex64)),
    "params must be a floating-point tensor": lambda: update(param=WEIGHT.int()),
    "steps must be a floating-point tensor": lambda: update(step=0),
    "lr must be finite and at least 0, got -0.1": lambda: update(lr=-0.1),
    "lr must be a tensor of one number": lambda: update(lr=torch.ones(2)),
    "betas must be two numbers": lambda: update(betas=(0.9, 0.9, 0.9)),
    "betas must be two numbers in": lambda: update(betas=(1.0, 0.9)),
    "weight_decay must be finite": lambda: update(weight_decay=NAN),
    "scale must be a tensor of one number": lambda: update(scale=0.5),
    "stream must be from 0": lambda: update(param=WEIGHT.bfloat16(), seed=1, stream=-1),
    "softcap must be positive and finite": lambda: cross_entropy(ROW, TARGET, softcap=INF),
    "z_loss must be finite, got nan": lambda: cross_entropy(ROW, TARGET, z_loss=NAN),
    "z_loss must be finite, got inf": lambda: linear_cross_entropy(ROW, HEAD, TARGET, z_loss=INF),
    "ignore_index must be an integer, got 1.5": lambda: cross_entropy(ROW, TARGET, ignore_index=1.5),
    "ignore_index must be an integer, got None": lambda: linear_cross_entropy(ROW, HEAD, TARGET, ignore_index=None),
    "temperature must be positive and finite": lambda: linear_kl_divergence(ROW, HEAD, ROW, HEAD, temperature=INF),
    "eps must be finite and at least 0, got nan": lambda: rms_norm(ROW, WEIGHT, eps=NAN),
    "eps must be finite and at least 0, got -1": lambda: layer_norm(ROW, WEIGHT, eps=-1.0),
    "eps must be finite and at least 0, got None": lambda: rms_norm(ROW, WEIGHT, eps=None),
    "weight_offset must be finite, got inf": lambda: rms_norm(ROW, WEIGHT, weight_offset=INF),
    "weight must be a floating-point tensor, got torch.complex64": lambda: rms_norm(ROW, WEIGHT.to(torch.complex64)),
    "weight must be a floating-point tensor, got torch.int64": lambda: layer_norm(ROW, WEIGHT.long()),
    "residual must be a floating-point": lambda: rms_norm(ROW, WEIGHT, residual=ROW.to(torch.complex64)),
    "up must be a floating-point tensor": lambda: swiglu(ROW, ROW.to(torch.complex64)),
    "bias must be a floating-point tensor": lambda: gelu(ROW, WEIGHT.to(torch.complex64)),
    "base must be finite and at least 1, got nan": lambda: rope(ROW[None, :, None], base=NAN),
    "base must be finite and at least 1, got inf": lambda: rope(ROW[None, :, None], base=INF),
    "rotary_dim must be an integer, got 2.0": lambda: rope(ROW[None, :, None], rotary_dim=2.0),
    "positions must be integers of shape": lambda: rope(ROW[None, :, None], positions=torch.tensor([True, False])),
    "positions must be integers": lambda: rope(ROW[None, :, None], positions=torch.ones(2).to(torch.complex64)),
    "cos must be a floating-point tensor": lambda: rope(ROW[None, :, None], cos=TARGET[:, None], sin=TARGET[:, None]),
    "heads is a sequence of integers; got torch.bool": lambda: attention_weights(
        *numbers(2, 1, 2, 3, 8), heads=[True, False]
    ),
    "rows is a sequence of integers; got torch.float32": lambda: attention_weights(*numbers(2, 1, 2, 3, 8), rows=[0.5]),
    "lora_scale must be finite": lambda: nf4_linear(numbers(2, 64), quantize_nf4(numbers(4, 64)), lora_scale=NAN),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_meant_is_refused(message):
    """Traps: NaN in every result, an imaginary part that is dropped, a mask that is read as indices 0 and 1."""
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
