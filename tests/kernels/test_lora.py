"""lora_linear and lora_mlp: adapters on frozen weights of 16 and of 4 bits, as exact as PyTorch's products."""

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import (
    assert_compiles,
    assert_matches,
    assert_same_bits,
    random_tensor,
)
from llmfast.kernels import Adapted, dequantize_nf4, lora_linear, lora_mlp, quantize_nf4

SCALE = 2.0


def frozen(rows, width, dtype, device="cpu", seed=1):
    return random_tensor((rows, width), dtype, device, seed=seed) / width**0.5


def adapter(rows, width, dtype, device="cpu", rank=4, seed=2):
    return frozen(rank, width, dtype, device, seed), frozen(rows, rank, dtype, device, seed + 1)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_lora_linear_is_as_exact_as_pytorch(device, dtype):
    w = frozen(24, 40, dtype, device)

    def ours(x, a, b, bias):
        return lora_linear(x, w, a, b, bias, SCALE)

    def peer(x, a, b, bias):
        return F.linear(x, w.to(x.dtype), bias) + SCALE * F.linear(F.linear(x, a), b)

    a, b = adapter(24, 40, dtype, device)
    inputs = {"x": random_tensor((2, 3, 40), dtype, device), "a": a, "b": b}
    inputs["bias"] = random_tensor((24,), dtype, device, seed=5)
    assert_matches(ours, peer, inputs)
    assert_same_bits(ours, inputs)
    assert_compiles(ours, inputs)


def mlp_inputs(dtype, device, tokens=5, width=64, hidden=128):
    inputs = {"x": random_tensor((tokens, width), dtype, device)}
    for seed, (name, rows, columns) in enumerate(
        (("gate", hidden, width), ("up", hidden, width), ("down", width, hidden))
    ):
        inputs[f"{name}_a"], inputs[f"{name}_b"] = adapter(rows, columns, dtype, device, seed=10 * seed)
    return inputs


def mlp_of(weights):
    def ours(x, **adapters):
        parts = (
            Adapted(w, adapters[f"{name}_a"], adapters[f"{name}_b"], lora_scale=SCALE) for name, w in weights.items()
        )
        return lora_mlp(x, *parts)

    return ours


def plain_mlp(numbers):
    def function(x, **adapters):
        def layer(name, x):
            low = F.linear(F.linear(x, adapters[f"{name}_a"]), adapters[f"{name}_b"])
            return F.linear(x, numbers[name].to(x.dtype)) + SCALE * low

        return layer("down", F.silu(layer("gate", x)) * layer("up", x))

    return function


@pytest.mark.numeric
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_lora_mlp_is_as_exact_as_pytorch(device, dtype, packed):
    sizes = {"gate": (128, 64), "up": (128, 64), "down": (64, 128)}
    weights = {name: frozen(*size, dtype, device, seed) for seed, (name, size) in enumerate(sizes.items())}
    if packed:
        weights = {name: quantize_nf4(w) for name, w in weights.items()}
    numbers = {name: dequantize_nf4(w, torch.float32) if packed else w for name, w in weights.items()}
    inputs = mlp_inputs(dtype, device)
    assert_matches(mlp_of(weights), plain_mlp(numbers), inputs)


def test_lora_mlp_keeps_x_gate_and_up_only():
    weights = {name: frozen(*size, torch.float32) for name, size in (("gate", (512, 64)), ("up", (512, 64)))}
    weights["down"] = frozen(64, 512, torch.float32)
    inputs = {name: tensor.requires_grad_() for name, tensor in mlp_inputs(torch.float32, "cpu", hidden=512).items()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        mlp_of(weights)(**inputs)
    parameters = {t.data_ptr() for t in (*weights.values(), *inputs.values())}
    activations = [t for pointer, t in kept.items() if pointer not in parameters and t.numel()]
    assert sorted(tuple(t.shape) for t in activations if t.shape[1] > 4) == [(5, 512), (5, 512)]


def test_lora_mlp_compiles_and_repeats_bit_by_bit(device):
    weights = {
        "gate": frozen(128, 64, torch.float16, device),
        "up": frozen(128, 64, torch.float16, device, 3),
    }
    weights = {name: quantize_nf4(w) for name, w in weights.items()}
    weights["down"] = frozen(64, 128, torch.float16, device, 4)
    assert_compiles(mlp_of(weights), mlp_inputs(torch.float16, device))
    assert_same_bits(mlp_of(weights), mlp_inputs(torch.float16, device))


def test_operator_is_well_formed(device):
    gate, up = (random_tensor((3, 64), torch.float16, device, seed=s).requires_grad_() for s in (0, 1))
    a, b = (t.requires_grad_() for t in adapter(8, 64, torch.float16, device))
    w = quantize_nf4(frozen(8, 64, torch.float16, device))
    arguments = (gate, up, w.bytes, None, a, b, SCALE, True, *w.layout.arguments)
    torch.library.opcheck(torch.ops.llmfast.swiglu_linear.default, arguments)


def test_weight_that_wants_a_gradient_is_refused():
    w = frozen(8, 64, torch.float32).requires_grad_()
    with pytest.raises(ValueError, match="w is frozen and gets no gradient"):
        lora_linear(torch.ones(2, 64), w, *adapter(8, 64, torch.float32))
    with pytest.raises(ValueError, match=r"w must have the dtype of x, torch\.float16, got torch\.float32"):
        lora_linear(torch.ones(2, 64, dtype=torch.float16), w.detach(), *adapter(8, 64, torch.float32))
