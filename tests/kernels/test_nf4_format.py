"""NF4 tensors: bytes equal to bitsandbytes' CPU quantiser, within the error bound, exchanged without loss."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from kernel_testing import random_tensor
from llmfast.kernels import (
    NF4Tensor,
    backend,
    dequantize_nf4,
    from_bitsandbytes,
    from_bitsandbytes_state,
    nf4_linear,
    quantize_nf4,
    to_bitsandbytes,
    to_bitsandbytes_state,
)
from llmfast.kernels.nf4.reference import NF4_CODE

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF_GAP = max(b - a for a, b in pairwise(NF4_CODE)) / 2


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("bitsandbytes")
    import bitsandbytes.functional

    return bitsandbytes.functional


def with_value(value):
    weight = random_tensor((64, 64))
    weight[3, 5] = weight[9, 0] = value
    return weight


WEIGHTS = {
    "random": random_tensor((130, 96)),
    "odd count": random_tensor((37, 33)),
    "less than a block": random_tensor((5, 3)),
    "constant": torch.full((64, 64), 0.3),
    "zero": torch.zeros(64, 64),
    "zero blocks": random_tensor((64, 64)) * (torch.arange(64) % 3 > 0)[:, None],
    "denormal": random_tensor((64, 64)) * 1e-41,
    "huge": random_tensor((64, 64)) * 1e38,
    "nan": with_value(float("nan")),
    "infinite": with_value(-float("inf")),
    "all nan": torch.full((64, 64), float("nan")),
    "ties": torch.tensor(NF4_CODE).repeat(256).view(64, 64).roll(1, 1).lerp(torch.tensor(NF4_CODE).repeat(4), 0.5),
}


def same_bytes(found, expected):
    found, expected = found.reshape(-1), expected.reshape(-1)
    return found.dtype == expected.dtype and torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_bytes_are_those_of_bitsandbytes(peer, name, dtype):
    weight = WEIGHTS[name].to(dtype)
    for block_size in (32, 64, 256, 4096):
        for double_quant in (False, True):
            w = quantize_nf4(weight, block_size, double_quant)
            packed, state = peer.quantize_4bit(weight, None, None, block_size, double_quant, "nf4")
            assert same_bytes(w.packed, packed)
            assert same_bytes(w.absmax, state.absmax)
            if double_quant:
                assert same_bytes(w.nested_absmax, state.state2.absmax)
                assert same_bytes(w.nested_code, state.state2.code)
                assert same_bytes(w.offset, state.offset)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_those_of_bitsandbytes(peer, dtype):
    for quant_type in ("nf4", "fp4"):
        for double_quant in (False, True):
            weight = random_tensor((48, 192), dtype)
            packed, state = peer.quantize_4bit(weight, None, None, 64, double_quant, quant_type)
            found = dequantize_nf4(from_bitsandbytes(parameter(packed, state)))
            assert torch.equal(found, peer.dequantize_4bit(packed, state))


def parameter(packed, state):
    from bitsandbytes.nn import Params4bit

    return Params4bit(packed, quant_state=state, bnb_quantized=True)


@pytest.mark.parametrize("double_quant", [False, True])
def test_error_is_within_the_bound_of_every_block(double_quant):
    weight = torch.cat([random_tensor((64, 64)), torch.rand(64, 64) - 0.5, WEIGHTS["ties"], WEIGHTS["zero"]])
    w = quantize_nf4(weight, 64, double_quant)
    largest = weight.abs().amax(1)
    # Of the code, and of a scale that double quantisation changed.
    allowed = HALF_GAP * largest + (w.scales - largest).abs() + 1e-6 * largest
    assert ((dequantize_nf4(w) - weight).abs().amax(1) <= allowed).all()


def test_double_quantisation_changes_scales_by_less_than_a_step_of_its_code():
    weight = random_tensor((256, 256))
    w = quantize_nf4(weight)
    change = (w.scales - weight.view(-1, 64).abs().amax(1)).abs().view(4, 256).amax(1)
    largest_step = 0.5 * (1 - 0.1) / 64 + 1 / 65535  # between codes of the largest power of ten, and our grid
    assert (change <= 1.01 * largest_step * w.nested_absmax).all()
    assert w.bytes.nbytes * 8 / weight.numel() < 4.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(130, 96), (37, 33), (5, 3), (0, 64), (3, 4, 32)])
def test_kernel_gives_the_numbers_of_the_definition(device, shape, dtype):
    for block_size, double_quant in ((64, True), (32, False), (4096, True)):
        w = quantize_nf4(random_tensor(shape, dtype, device), block_size, double_quant)
        with backend("reference"):
            expected = dequantize_nf4(w)
        assert torch.equal(dequantize_nf4(w), expected)


def test_strided_weight_is_quantised_in_its_own_order():
    weight = random_tensor((32, 64))
    assert torch.equal(quantize_nf4(weight.T.contiguous().T).bytes, quantize_nf4(weight).bytes)


def test_operator_is_well_formed(device):
    w = quantize_nf4(random_tensor((4, 64), device=device))
    arguments = (w.bytes, torch.float32, True, *w.layout.arguments)
    torch.library.opcheck(torch.ops.llmfast.nf4_dequantize.default, arguments)


def test_bits_survive_copies_pickling_and_a_change_of_dtype():
    w = quantize_nf4(random_tensor((16, 64), torch.bfloat16))
    for other in (copy.deepcopy(w), pickle.loads(pickle.dumps(w)), w.to("cpu"), w.to(torch.float16)):
        assert isinstance(other, NF4Tensor)
        assert torch.equal(other.bytes, w.bytes)
        assert other.layout == w.layout
    assert dequantize_nf4(w.to(torch.float16)).dtype == torch.float16
    assert w.dtype == torch.bfloat16
    assert "dtype=torch.bfloat16, device='cpu', block_size=64" in repr(w)


def test_meta_device_has_shapes_only():
    w = quantize_nf4(torch.empty(16, 64, device="meta"))
    assert w.device.type == "meta"
    assert dequantize_nf4(w).shape == (16, 64)
    assert nf4_linear(torch.empty(2, 64, device="meta"), w).shape == (2, 16)


@pytest.mark.parametrize("double_quant", [False, True])
def test_there_and_back_again(peer, double_quant):
    w = quantize_nf4(random_tensor((33, 64), torch.bfloat16), 64, double_quant)
    theirs = to_bitsandbytes(w)
    assert torch.equal(peer.dequantize_4bit(theirs.data, theirs.quant_state), dequantize_nf4(w))
    back = from_bitsandbytes(theirs)
    assert torch.equal(back.bytes, w.bytes)
    assert (back.layout, back.dtype) == (w.layout, w.dtype)


def test_safetensors_of_bitsandbytes_are_read_and_written_byte_by_byte(peer, tmp_path):
    from bitsandbytes.nn import Linear4bit
    from safetensors.torch import load_file, save_file

    layer = Linear4bit(64, 48, quant_type="nf4", compress_statistics=True).to("cpu")
    save_file({f"up.{name}": t.contiguous() for name, t in layer.state_dict().items()}, tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs")
    w = from_bitsandbytes_state(theirs, "up.weight")
    assert torch.equal(dequantize_nf4(w), peer.dequantize_4bit(layer.weight.data, layer.weight.quant_state))

    save_file(to_bitsandbytes_state(w, "up.weight"), tmp_path / "ours")
    ours = load_file(tmp_path / "ours")
    assert set(ours) == set(theirs) - {"up.bias"}
    assert all(same_bytes(ours[name], theirs[name]) for name in ours)


def test_file_that_we_cannot_read_is_refused_by_name(peer):
    entries = to_bitsandbytes_state(quantize_nf4(random_tensor((4, 64))), "w")
    with pytest.raises(ValueError, match=r"no entry v\.quant_state\.bitsandbytes__nf4"):
        from_bitsandbytes_state(entries, "v")
    with pytest.raises(ValueError, match=r"w\.quant_map is not the code of nf4"):
        from_bitsandbytes_state(entries | {"w.quant_map": torch.zeros(16)}, "w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(4, 64, dtype=torch.int8),), "weight must be a floating-point tensor, got torch.int8"),
        (
            (torch.ones(4, 64, dtype=torch.float64),),
            "must be float32, bfloat16 or float16, got torch.float64",
        ),
        ((torch.ones(4, 64), 48), "block_size must be one of 32, 64, .*got 48"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_nf4(*arguments)
    w = quantize_nf4(torch.ones(4, 64))
    with pytest.raises(ValueError, match=r"got torch\.int32"):
        w.to(torch.int32)
    with pytest.raises(ValueError, match=r"bytes must be torch.uint8 of shape"):
        NF4Tensor(w.bytes.float(), w.layout, w.dtype)
