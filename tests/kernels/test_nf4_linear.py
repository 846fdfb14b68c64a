"""nf4_linear: as exact as decoding followed by PyTorch's products, forward and backward, by every kernel."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import (
    assert_as_exact_as,
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    layouts,
    random_tensor,
)
from llmfast.kernels import backend, dequantize_nf4, from_bitsandbytes, nf4_linear, quantize_nf4
from llmfast.kernels.frame.launch import CHIPS, Chip
from llmfast.kernels.nf4.decode import decode_assembly
from llmfast.kernels.nf4.launch import strategy
from llmfast.kernels.nf4.layout import Layout
from llmfast.kernels.nf4.reference import GROUP, code_values
from llmfast.kernels.nf4.table_kernel import byte_table, takes

SCALE = 0.5


def inputs_of(tokens, rows, width, dtype, device, layout="contiguous", rank=0, bias=False):
    made = {"x": random_tensor((tokens, width), dtype, device, layout)}
    if bias:
        made["bias"] = random_tensor((rows,), dtype, device, seed=2)
    if rank:
        made["lora_a"] = random_tensor((rank, width), dtype, device, seed=3) / width**0.5
        made["lora_b"] = random_tensor((rows, rank), dtype, device, seed=4)
    return made


def weight_of(rows, width, device, block_size=64, double_quant=True):
    weight = random_tensor((rows, width), torch.float32, device, seed=1) / width**0.5
    return quantize_nf4(weight, block_size, double_quant)


def ours(w):
    return lambda **inputs: nf4_linear(**inputs, w=w, lora_scale=SCALE)


def decode_then_multiply(w):
    """What people write: the weight decoded to the dtype of x, and PyTorch's products."""

    def function(x, bias=None, lora_a=None, lora_b=None):
        wide = dequantize_nf4(w, torch.float32).to(x.dtype)
        y = F.linear(x, wide, bias)
        return y if lora_a is None else y + SCALE * F.linear(F.linear(x, lora_a), lora_b)

    return function


def assert_matches_float64(w, inputs, grad_layout="contiguous"):
    assert_matches(ours(w), decode_then_multiply(w), inputs, grad_layout)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    tokens=st.sampled_from([0, 1, 3, 9, 16, 17]),
    rows=st.sampled_from([1, 33, 70]),
    width=st.sampled_from([64, 192, 100, 512]),
    block_size=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    layout=layouts,
    grad_layout=layouts,
    rank=st.sampled_from([0, 8, 20]),
    options=st.booleans(),
)
def check_any_shape(device, tokens, rows, width, block_size, dtype, layout, grad_layout, rank, options):
    w = weight_of(rows, width, device, block_size, double_quant=options)
    inputs = inputs_of(tokens, rows, width, dtype, device, layout, rank, bias=options)
    assert_matches_float64(w, inputs, grad_layout)


@pytest.mark.numeric
def test_any_shape_stride_and_dtype(device):
    check_any_shape(device)


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("tokens", "how"),
    [(1, "few tokens"), (16, "few tokens"), (17, "tiles"), (70, "tiles"), (257, "workspace")],
)
def test_every_kernel_with_everything_on(device, tokens, how):
    w = weight_of(40, 1024, device)
    assert strategy(tokens, w.layout, torch.float16) == how
    assert_matches_float64(w, inputs_of(tokens, 40, 1024, torch.float16, device, rank=8, bias=True))


def test_widths_that_no_kernel_takes_are_decoded_first(device):
    for width, block_size in ((100, 64), (96, 64), (33, 32)):
        w = weight_of(5, width, device, block_size)
        assert strategy(1, w.layout, torch.float16) == "workspace"
        assert_matches_float64(w, inputs_of(2, 5, width, torch.float16, device, rank=4))


@pytest.mark.numeric
def test_reference_path_in_every_dtype():
    w = weight_of(20, 128, "cpu")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        assert_matches_float64(w, inputs_of(6, 20, 128, dtype, "cpu", rank=4, bias=True))


def test_linear_of_bitsandbytes_on_the_cpu_agrees():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from llmfast.kernels import to_bitsandbytes

    w = weight_of(48, 128, "cpu")
    theirs = to_bitsandbytes(w)
    for function in (
        lambda x: nf4_linear(x, w),
        lambda x: bitsandbytes.matmul_4bit(x, theirs, theirs.quant_state),
    ):
        assert_matches(function, decode_then_multiply(w), {"x": random_tensor((7, 128))})


@pytest.mark.parametrize("tokens", [1, 20, 300])
def test_weights_that_bitsandbytes_packed_as_fp4_are_read(device, tokens):
    functional = pytest.importorskip("bitsandbytes.functional")
    from bitsandbytes.nn import Params4bit

    weight = random_tensor((40, 128), seed=1)
    packed, state = functional.quantize_4bit(weight, None, None, 64, True, "fp4")
    w = from_bitsandbytes(Params4bit(packed, quant_state=state, bnb_quantized=True)).to(device)
    assert w.layout.quant_type == "fp4"
    assert_matches_float64(w, inputs_of(tokens, 40, 128, torch.float16, device, rank=4, bias=True))


@pytest.mark.parametrize("block_size", [256, 1024, 4096])
def test_blocks_of_every_size(device, block_size):
    """Blocks longer than a row go through the workspace, the others through the kernels."""
    w = weight_of(24, 1024, device, block_size)
    for tokens in (2, 20):
        assert_matches_float64(w, inputs_of(tokens, 24, 1024, torch.float16, device, rank=4))


def test_shapes_of_more_dimensions_and_of_one(device):
    w = weight_of(8, 64, device)
    x = random_tensor((2, 3, 64), torch.float16, device)
    assert torch.equal(nf4_linear(x, w).view(6, 8), nf4_linear(x.view(6, 64), w))
    assert nf4_linear(x[0, 0], w).shape == (8,)


def test_adapter_in_float32_beside_16_bit_activations(device):
    w = weight_of(8, 64, device)
    inputs = inputs_of(3, 8, 64, torch.float16, device, rank=4)
    lora_a, lora_b = (inputs[name].float().requires_grad_() for name in ("lora_a", "lora_b"))
    y = nf4_linear(inputs["x"], w, None, lora_a, lora_b)
    assert y.dtype == torch.float16
    y.sum().backward()
    assert lora_a.grad.dtype == lora_b.grad.dtype == torch.float32
    assert lora_b.grad.abs().sum() > 0


def test_autocast_computes_in_its_dtype():
    w = weight_of(8, 64, "cpu")
    x = random_tensor((3, 64))
    with torch.autocast("cpu", torch.bfloat16):
        y = nf4_linear(x, w)
    assert torch.equal(y, nf4_linear(x.bfloat16(), w))


def test_backward_pass_keeps_nothing_of_the_decoded_weight():
    """The trap: autograd of a plain product saves the decoded weight of each layer, four times its bytes."""
    w = weight_of(256, 256, "cpu")
    x = random_tensor((2, 256)).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        nf4_linear(x, w)
    assert sum(kept) <= x.nbytes + w.bytes.nbytes


def test_weight_gets_no_gradient_and_only_what_is_wanted_is_computed(device):
    w = weight_of(8, 64, device)
    inputs = inputs_of(3, 8, 64, torch.float16, device, rank=4)
    inputs["lora_a"].requires_grad_()
    nf4_linear(**inputs, w=w).sum().backward()
    assert inputs["lora_a"].grad is not None
    assert inputs["x"].grad is None
    assert w.bytes.grad is None


@pytest.mark.parametrize("tokens", [3, 20])
def test_two_runs_have_equal_bits_and_inputs_stay(device, tokens):
    w = weight_of(40, 512, device)
    inputs = inputs_of(tokens, 40, 512, torch.float16, device, rank=4, bias=True)
    before = w.bytes.clone()
    assert_same_bits(ours(w), inputs)
    assert_keeps_inputs(ours(w), inputs)
    assert torch.equal(w.bytes, before)


def test_torch_compile_takes_it_whole(device):
    w = weight_of(40, 128, device)
    assert_compiles(ours(w), inputs_of(3, 40, 128, torch.float16, device, rank=4, bias=True))


def test_operator_is_well_formed(device):
    w = weight_of(8, 64, device)
    inputs = inputs_of(3, 8, 64, torch.float16, device, rank=4, bias=True)
    x, bias, lora_a, lora_b = (tensor.requires_grad_() for tensor in inputs.values())
    rest = (SCALE, True, *w.layout.arguments)
    torch.library.opcheck(torch.ops.llmfast.frozen_linear.default, (x, w.bytes, bias, lora_a, lora_b, *rest))
    torch.library.opcheck(torch.ops.llmfast.frozen_linear.default, (x, w.bytes, None, None, None, *rest))


def emulate(assembly, packed):
    """What a chip does with the instructions of ``decode_assembly``, by the definition of each in the PTX manual."""
    registers = {"$4": packed}

    def value(name):
        return int(name, 0) if name[0].isdigit() else registers[name]

    def prmt(a, b, selector):
        eight = a | b << 32
        return sum((eight >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i for i in range(4))

    operations = {
        "mov.b32": lambda a: a,
        "and.b32": lambda a, b: a & b,
        "or.b32": lambda a, b: a | b,
        "shr.u32": lambda a, b: a >> b,
        "prmt.b32": prmt,
    }
    for name, target, operands in re.findall(r"^(\w+\.\w+) (\S+), (.*);$", assembly, re.MULTILINE):
        arguments = [value(operand) for operand in operands.split(", ")]
        if name == "prmt.b32":  # the fourth bit of a selector would mean its sign
            assert arguments[2] & 0x8888 == 0
        registers[target] = operations[name](*arguments)
    return [registers[f"${i}"] for i in range(4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_assembly_decodes_every_index_at_every_place(quant_type, dtype):
    """The interpreter runs no assembly, so here it is run instruction by instruction."""
    assembly = decode_assembly(quant_type, dtype)
    code = code_values(quant_type, torch.device("cpu")).to(dtype).view(torch.int16).tolist()
    for index in range(16):
        for place in range(8):
            indices = [(index + step * (at != place)) % 16 for at, step in enumerate((3, 5, 7, 9, 11, 13, 15, 1))]
            packed = sum(nibble << 4 * at for at, nibble in enumerate(indices))
            odd, even = indices[::2], indices[1::2]  # low halves of the bytes, then high halves
            halves = [odd[:2], odd[2:], even[:2], even[2:]]
            expected = [(code[a] & 0xFFFF) | (code[b] & 0xFFFF) << 16 for a, b in halves]
            assert emulate(assembly, packed) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_table_holds_both_numbers_of_each_byte(dtype):
    code = code_values("nf4", torch.device("cpu")).to(dtype)
    pairs = byte_table(dtype, torch.device("cpu")).view(dtype).view(256, 2)
    for byte in range(256):  # the earlier number is the high half
        assert torch.equal(pairs[byte], torch.stack((code[byte >> 4], code[byte & 15])))


def emulate_table(x, w, bias=None, lora_a=None, lora_b=None):
    """``nf4_linear`` by the source of the kernel that has a table in shared memory."""
    emulator = pytest.importorskip("gluon_emulator", reason="Gluon is a part of Triton")
    path = Path(sys.modules["llmfast.kernels.nf4.table_kernel"].__file__)
    (tokens, width), rows = x.shape, w.shape[0]
    y = torch.full((tokens, rows), float("nan"), dtype=x.dtype)

    def pointer(tensor):
        return None if tensor is None else emulator.Pointer(tensor.contiguous().numpy().reshape(-1))

    hidden = None if lora_a is None else F.linear(x, lora_a)
    emulator.Emulator(path, "llmfast.kernels.nf4").launch(
        "table_kernel", -(-rows // 16), 0,
        *map(pointer, (x, w.bytes, byte_table(x.dtype, x.device), bias, hidden, lora_b, y)),
        tokens, rows, width, width, 0 if lora_a is None else len(lora_a), SCALE, *w.layout.scale_starts,
        DOUBLE_QUANT=w.layout.double_quant, GROUP=GROUP, TOKENS=8 if tokens <= 8 else 16,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(
    ("tokens", "rows", "width", "rank"),
    [
        (1, 16, 256, 0),  # seven of eight warps have nothing to do
        (3, 37, 2048, 0),
        (8, 20, 2048 + 256, 4),
        (16, 17, 4096 + 768, 20),
    ],
)
def test_emulated_table_kernel_is_exact(tokens, rows, width, rank, double_quant):
    """The interpreter knows no Gluon: here NumPy runs the kernel's source, and finds loads outside of a tensor."""
    w = weight_of(rows, width, "cpu", double_quant=double_quant)
    inputs = inputs_of(tokens, rows, width, torch.float16, "cpu", rank=rank, bias=rank > 0)

    def algorithm():
        return decode_then_multiply(w)(**{name: tensor.double() for name, tensor in inputs.items()})

    found, peer = emulate_table(w=w, **inputs), decode_then_multiply(w)(**inputs)
    assert_as_exact_as("y", found, peer, algorithm(), algorithm)


@pytest.mark.parametrize(
    ("layout", "taken"),
    [
        (Layout((8, 512)), True),
        (Layout((8, 512), 64, False), True),
        (Layout((8, 320)), False),  # a width that is no whole number of runs
        (Layout((8, 512), 128), False),
    ],
)
def test_table_kernel_takes_blocks_of_64_in_whole_runs(monkeypatch, layout, taken):
    monkeypatch.setattr(sys.modules["llmfast.kernels.nf4.table_kernel"], "AVAILABLE", True)
    for chip in CHIPS.values():
        assert takes(layout, chip) is taken
    assert not takes(layout, Chip(80, 64 * 1024, 304))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 8, 16, 64, 200, 1024])
def test_on_a_gpu_in_both_16_bit_dtypes(dtype, tokens):
    w = weight_of(1000, 4096, "cuda")
    assert_matches_float64(w, inputs_of(tokens, 1000, 4096, dtype, "cuda", rank=16, bias=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(2, 32)}, r"w must be \(N, K\) for x .* got \(8, 64\) for \(2, 32\)"),
        ({"x": torch.ones(2, 64, dtype=torch.int64)}, "x must be a floating-point tensor"),
        ({"bias": torch.ones(7)}, r"bias must have one element a row of w, \(8,\), got \(7,\)"),
        ({"lora_a": torch.ones(4, 64)}, "lora_a and lora_b come together"),
        ({"lora_a": torch.ones(4, 64), "lora_b": torch.ones(8, 3)}, r"must be \(R, 64\) and \(8, R\)"),
    ],
)
def test_errors_name_the_argument(changed, message):
    with pytest.raises(ValueError, match=message), backend("reference"):
        nf4_linear(**{"x": torch.ones(2, 64), "w": weight_of(8, 64, "cpu")} | changed)
