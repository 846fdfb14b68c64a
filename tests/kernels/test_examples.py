"""The examples in the docstrings run as they stand: a plain PyTorch module around each op."""

import copy
import textwrap

import llmfast.kernels as kernels
import pytest
import torch
from kernel_testing import assert_as_exact_as

ARGUMENTS = {
    "rms_norm": (16,),
    "layer_norm": (16,),
    "swiglu": (16, 24),
    "geglu": (16, 24),
    "gelu": (16, 24),
    "rope": (16, 2),
}

PROGRAMS = [
    "NF4Linear",
    "cross_entropy",
    "int8_linear",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "lora_linear",
    "lora_mlp",
    "nf4_linear",
    "quantize_nf4",
    "tiled_mlp",
    "vocab_parallel_cross_entropy",
]


def code_of(op):
    return textwrap.dedent(getattr(kernels, op).__doc__.partition("Example::\n")[2])


def example(op):
    """The module that a docstring defines."""
    code = code_of(op)
    names = {"torch": torch, op: getattr(kernels, op)}
    exec(code, names)
    (module,) = (value for value in names.values() if isinstance(value, type))
    return module


@pytest.mark.parametrize("op", ARGUMENTS)
def test_example_trains(op):
    module = example(op)(*ARGUMENTS[op])
    module(torch.randn(2, 3, 16)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("op", ["rms_norm", "swiglu", "rope"])
def test_example_gives_the_same_through_the_kernels(op, device):
    torch.manual_seed(0)
    module = example(op)(*ARGUMENTS[op]).to(device)
    x = torch.randn(2, 3, 16, device=device)
    with kernels.backend("reference"):
        expected, exact_module = module(x), copy.deepcopy(module).double()
        exact = exact_module(x.double())
    found = module(x)
    with kernels.backend("reference"):
        assert_as_exact_as("output", found, expected, exact, lambda: exact_module(x.double()))


@pytest.mark.parametrize("op", PROGRAMS)
def test_example_runs(op):
    names = {"torch": torch} | {name: getattr(kernels, name) for name in kernels.__all__}
    exec(code_of(op), names)
    assert any(isinstance(value, torch.Tensor) and value.isfinite().all() for value in names.values())
