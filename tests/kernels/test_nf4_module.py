"""NF4Linear: its bits survive everything that modules go through."""

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_testing import assert_as_exact_as, random_tensor
from llmfast.kernels import NF4Linear, dequantize_nf4, quantize_nf4
from torch import nn

PROCESSES = Path(__file__).parents[1] / "lib" / "nf4_processes.py"


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return NF4Linear.from_linear(nn.Linear(64, 40))


def test_computes_what_the_linear_layer_of_its_numbers_does(layer):
    x = random_tensor((3, 64))
    expected = nn.functional.linear(x, dequantize_nf4(layer.quantized), layer.bias)
    wide = [tensor.double() for tensor in (x, dequantize_nf4(layer.quantized), layer.bias)]
    algorithm = partial(nn.functional.linear, *wide)
    assert_as_exact_as("output", layer(x), expected, algorithm(), algorithm)
    assert repr(layer) == (
        "NF4Linear(in_features=64, out_features=40, bias=True, block_size=64, double_quant=True, quant_type=nf4)"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_changes_the_bias_and_no_bit_of_the_weight(layer, dtype):
    before = layer.weight.clone()
    layer.to(dtype)
    assert torch.equal(layer.weight, before)
    assert layer.weight.dtype == torch.uint8
    assert layer.bias.dtype == dtype
    assert layer(random_tensor((3, 64), dtype)).dtype == dtype


def test_weight_is_frozen_and_the_optimizer_leaves_it(layer):
    before = layer.weight.clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1.0)
    layer(random_tensor((3, 64))).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)


def test_state_dict_through_safetensors_into_a_layer_on_the_meta_device(layer, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    empty = NF4Linear(64, 40, device="meta")
    empty.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=True)
    assert torch.equal(empty.weight, layer.weight)
    assert torch.equal(empty(torch.ones(1, 64)), layer(torch.ones(1, 64)))
    fresh = NF4Linear(64, 40)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.weight, layer.weight)


def test_deep_copy_has_bits_of_its_own(layer):
    other = copy.deepcopy(layer)
    assert torch.equal(other.weight, layer.weight)
    other.weight.zero_()
    assert layer.weight.any()


def test_empty_layer_is_zero():
    assert not NF4Linear(64, 8)(torch.ones(1, 64)).any()


def test_loads_what_bitsandbytes_saved_inside_a_model():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    theirs = nn.Sequential(bitsandbytes.nn.Linear4bit(128, 48, quant_type="nf4", compress_statistics=False))
    theirs = nn.Sequential(theirs, nn.Linear(48, 4)).to("cpu")
    ours = nn.Sequential(nn.Sequential(NF4Linear(128, 48)), nn.Linear(48, 4))
    ours.load_state_dict(theirs.state_dict())  # strict: every entry is known
    x = random_tensor((3, 128)).requires_grad_()  # with a gradient, lest bitsandbytes rearranges its weight
    weight, bias = dequantize_nf4(ours[0][0].quantized).double(), ours[0][0].bias.double()
    last = (ours[1].weight.double(), ours[1].bias.double())

    def algorithm():
        return nn.functional.linear(nn.functional.linear(x.double(), weight, bias), *last)

    for found in (ours(x), theirs(x)):
        assert_as_exact_as("output", found, None, algorithm(), algorithm)
    assert not ours[0][0].layout.double_quant
    with pytest.raises(RuntimeError, match=r"0\.0\.weight must be \(48, 64\), got \(48, 128\) from bitsandbytes"):
        nn.Sequential(nn.Sequential(NF4Linear(64, 48)), nn.Linear(48, 4)).load_state_dict(theirs.state_dict())


def test_torch_compile_takes_it_whole(layer):
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = random_tensor((3, 64)).requires_grad_()
    eager = layer(x)
    assert torch.equal(compiled(x), eager)
    found, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (compiled(x), eager))
    assert torch.equal(found, expected)


def test_layer_around_a_tensor_shares_its_memory():
    w = quantize_nf4(random_tensor((8, 64), torch.bfloat16))
    layer = NF4Linear.from_tensor(w)
    assert layer.weight.data_ptr() == w.bytes.data_ptr()
    assert layer.dtype == torch.bfloat16
    assert layer.bias is None


@pytest.mark.skipif(torch.__version__ < "2.12", reason="FSDP2 of torch 2.11 takes floating-point parameters only")
def test_two_processes_shard_gather_train_and_send_bit_for_bit(tmp_path):
    """The trap: 4-bit weights held as bfloat16 shards, whose NaNs came back as other bits."""
    out = tmp_path / "facts.json"
    done = subprocess.run([sys.executable, "-P", PROCESSES, out], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(out.read_text())
    assert len(facts) == 7
    assert all(facts.values()), facts
