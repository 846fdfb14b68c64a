"""Batch-invariant mode: a row has the same bits alone, among others, and decoded step by step."""

import threading

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import interpret_products_as_tensor_cores_do, random_tensor
from llmfast.kernels import (
    backend,
    batch_invariant,
    cross_entropy,
    flash_attention,
    flash_decode,
    geglu,
    gelu,
    int8_linear,
    is_batch_invariant,
    layer_norm,
    linear_cross_entropy,
    lora_linear,
    nf4_linear,
    quantize_int8,
    quantize_nf4,
    rms_norm,
    swiglu,
)
from torch import nn

WIDTH = 192


@pytest.fixture(autouse=True)
def tensor_cores(monkeypatch):
    interpret_products_as_tensor_cores_do(monkeypatch)


def rows_of(x, y=None):
    """x (N, WIDTH): each op of rows, as a function of rows alone."""
    device, dtype = x.device.type, x.dtype

    def weight(*shape, seed):
        return random_tensor(shape, dtype, device, seed=seed) / WIDTH**0.5

    packed, (codes, scale) = quantize_nf4(weight(40, WIDTH, seed=1)), quantize_int8(weight(40, WIDTH, seed=2))
    low, high = weight(8, WIDTH, seed=3), weight(40, 8, seed=4)
    head, odd_head = weight(300, WIDTH, seed=5) * 8, weight(301, WIDTH, seed=6) * 8

    def losses(head):
        def function(x, target):
            return linear_cross_entropy(x, head, target, reduction="none", return_lse=True, softcap=9.0, z_loss=1e-3)

        return function

    return {
        "rms_norm": lambda x, t: rms_norm(x, x[0] * 0 + 1, residual=x),
        "layer_norm": lambda x, t: layer_norm(x, residual=x),
        "swiglu": lambda x, t: swiglu(x, x),
        "geglu": lambda x, t: geglu(x, x),
        "gelu": lambda x, t: gelu(x),
        "nf4_linear": lambda x, t: nf4_linear(x, packed, None, low, high),
        "int8_linear": lambda x, t: int8_linear(x, codes, scale),
        "lora_linear": lambda x, t: lora_linear(x, weight(40, WIDTH, seed=7), lora_a=low, lora_b=high),
        "cross_entropy": lambda x, t: cross_entropy(x, t % WIDTH, reduction="none", return_lse=True),
        "cross_entropy of an odd vocabulary": lambda x, t: cross_entropy(x[:, :-1], t % 190, reduction="none"),
        "linear_cross_entropy": losses(head),
        "linear_cross_entropy of an odd vocabulary": losses(odd_head),
    }


NAMES = list(rows_of(torch.zeros(1, WIDTH)))


def outputs(found):
    return found if isinstance(found, tuple) else (found,)


def check_rows(name, device, dtype, rows=150):
    x = random_tensor((rows, WIDTH), dtype, device)
    target = torch.randint(0, 300, (rows,), generator=torch.Generator().manual_seed(1)).to(device)
    function = rows_of(x)[name]
    with batch_invariant():
        whole = outputs(function(x, target))
        # Alone; first, in the middle and last among others; from an address that is no multiple of 16; strided.
        for some in (slice(0, 1), slice(77, 78), slice(rows - 1, rows), slice(1, 18), slice(3, 60, 7)):
            for part, all_rows in zip(outputs(function(x[some], target[some])), whole, strict=True):
                assert torch.equal(part, all_rows[some]), f"{name}: rows {some} of {rows}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_have_the_same_bits_in_every_batch(device, name, dtype):
    check_rows(name, device, dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_have_the_same_bits_by_the_definitions(name, dtype):
    with backend("reference"):
        check_rows(name, "cpu", dtype)


BATCH, HEADS, WIDE = 2, 2, 16


def sequence(length, dtype, device):
    """q with two heads that share one of k and v."""
    heads = (HEADS, 1, 1)
    return (random_tensor((BATCH, n, length, WIDE), dtype, device, seed=i) for i, n in enumerate(heads))


OPTIONS = {
    "causal": {},
    "window": {"window": (40, 0)},
    "softcap and sinks": {"softcap": 5.0, "sinks": True},
}


def check_attention(device, dtype, options, length):
    """Of the whole sequence, of parts of it, in a batch, packed, and of one query at a time."""
    q, k, v = sequence(length, dtype, device)
    options = {"causal": True, "return_lse": True, **options}
    if options.pop("sinks", False):
        options["sinks"] = random_tensor((HEADS,), dtype, device, seed=5)
    with batch_invariant():
        whole = flash_attention(q, k, v, **options)
        alone = flash_attention(q[1:], k[1:], v[1:], **options)
        for found, expected in zip(alone, whole, strict=True):
            assert torch.equal(found, expected[1:])
        for first, last in ((0, 1), (32, 33), (length - 1, length), (5, 60)):
            found = flash_attention(q[:1, :, first:last], k[:1, :, :last], v[:1, :, :last], **options)
            for part, expected in zip(found, whole, strict=True):
                assert torch.equal(part, expected[:1, :, first:last]), f"queries {first} to {last}"
        packed = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        starts = torch.arange(BATCH + 1, device=device, dtype=torch.int32) * length
        out, lse = flash_attention(*packed, cu_seqlens_q=starts, **options)
        assert torch.equal(out.view(BATCH, length, HEADS, WIDE).transpose(1, 2), whole[0])
        assert torch.equal(lse.view(BATCH, length, HEADS).transpose(1, 2), whole[1])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_attention_decodes_the_bits_that_it_prefills(device, dtype, options):
    check_attention(device, dtype, options, 70)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_by_the_definition_decodes_the_bits_that_it_prefills(dtype, options):
    check_attention("cpu", dtype, options, 130)


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_decoding_has_the_same_bits_in_every_batch(device, path):
    """However full the other entries are, and however large the cache."""
    q = random_tensor((3, 2, 1, 16), torch.float16, device)
    cache = random_tensor((2, 3, 1, 700, 16), torch.float16, device, seed=1)
    lengths = torch.tensor([13, 650, 300], dtype=torch.int32, device=device)
    with backend(path), batch_invariant():
        whole = flash_decode(q, *cache, lengths, return_lse=True)
        for i in range(3):
            short = cache[:, i : i + 1, :, : int(lengths[i]) + 1]
            alone = flash_decode(q[i : i + 1], *short, lengths[i : i + 1], return_lse=True)
            for found, expected in zip(alone, whole, strict=True):
                assert torch.equal(found, expected[i : i + 1])


def test_attention_has_the_gradients_of_the_definition():
    tensors = [x.requires_grad_() for x in sequence(20, torch.float64, "cpu")]
    out = flash_attention(*tensors, causal=True)
    grad = random_tensor(out.shape, torch.float64, seed=3)
    expected = torch.autograd.grad(out, tensors, grad)
    with batch_invariant():
        found = torch.autograd.grad(flash_attention(*tensors, causal=True), tensors, grad)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x))


def test_linear_layers_of_a_model_take_part_and_come_back():
    model, x = Model(), random_tensor((9, 64))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(x)
    with batch_invariant(model):
        assert is_batch_invariant()
        whole = model(x)
        with batch_invariant(model.body, model):  # one within the other, with some layers in both
            assert torch.equal(model(x), whole)
        assert torch.equal(model(x[4:5]), whole[4:5])
        whole.sum().backward()
        assert model.state_dict().keys() == state.keys()
    assert not is_batch_invariant()
    assert {type(m) for m in model.modules()} == {Model, nn.Sequential, nn.Linear, nn.GELU}
    assert torch.equal(model(x), before)
    assert model.head.weight.grad.abs().sum() > 0


def test_threads_enter_and_leave_at_any_time():
    """The trap: a switch that restores what it found is off while another thread still needs it."""
    model = Model()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with batch_invariant(model):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with batch_invariant(model):
        thread.start()
        assert entered.wait(10)
    assert is_batch_invariant()
    assert type(model.head) is not nn.Linear
    leave.set()
    thread.join()
    assert not is_batch_invariant()
    assert type(model.head) is nn.Linear


def test_torch_compile_compiles_again_for_the_mode():
    """The trap: a graph compiled outside of the mode that goes on being used inside."""
    torch._dynamo.reset()
    model, x = Model(), random_tensor((4, 64))
    compiled = torch.compile(lambda x: rms_norm(model(x)), fullgraph=True, backend="aot_eager")
    outside = compiled(x)
    with batch_invariant(model):
        inside = compiled(x)
        assert torch.equal(inside, rms_norm(model(x)))
        assert torch.equal(compiled(x[:1]), inside[:1])
    assert torch.equal(compiled(x), outside)


def test_only_models_are_taken():
    with pytest.raises(ValueError, match=r"batch_invariant takes torch\.nn\.Modules, got Tensor"):
        batch_invariant(torch.zeros(2))


def test_outside_of_the_mode_nothing_changes():
    x, weight = random_tensor((5, 64)), random_tensor((300, 64), seed=1)
    target = torch.arange(5)
    plain = F.cross_entropy(x @ weight.T, target)
    with batch_invariant():
        pass
    assert torch.equal(linear_cross_entropy(x, weight, target), cross_entropy(F.linear(x, weight), target))
    torch.testing.assert_close(linear_cross_entropy(x, weight, target), plain)
