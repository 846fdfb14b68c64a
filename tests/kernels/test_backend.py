"""Which path an op takes, that it says so, and that importing the kernels needs neither Triton nor a GPU."""

import importlib
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from llmfast.kernels import backend, rms_norm
from llmfast.kernels.frame.backend import use_triton
from llmfast.kernels.frame.launch import Chip

# The name llmfast.kernels.backend is the function; this is the file.
module = importlib.import_module("llmfast.kernels.frame.backend")


class OnCuda:
    """As much of a CUDA tensor as the choice looks at."""

    is_cuda = True

    def __init__(self, dtype=torch.float32):
        self.device, self.dtype = torch.device("cuda", 0), dtype


@pytest.fixture
def chip(monkeypatch):
    """Pretends to a GPU of a capability; warnings start anew."""
    monkeypatch.setattr(module, "_warned", set())
    monkeypatch.setattr(module, "HAS_TRITON", True)

    def pretend(capability):
        facts = Chip(10 * capability[0] + capability[1], 0, 1)
        monkeypatch.setitem(sys.modules["llmfast.kernels.frame.launch"]._chips, OnCuda().device, facts)

    return pretend


def test_cpu_tensors_take_plain_pytorch_even_where_the_interpreter_is_on():
    assert not use_triton(torch.ones(1))


def test_reference_forbids_and_leaving_the_block_restores():
    with backend("triton"):
        with backend("reference"):
            assert not use_triton(OnCuda())
        assert use_triton(OnCuda())
    assert not use_triton(torch.ones(1))


def test_a_call_lasts_until_the_next():
    backend("reference")
    try:
        assert not use_triton(OnCuda())
    finally:
        backend("auto")


def test_unknown_choice_is_refused_by_name():
    with pytest.raises(ValueError, match="backend is one of auto, triton, reference, got 'cuda'"):
        backend("cuda")


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_supported_chips_take_triton_silently(chip, capability):
    chip(capability)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_triton(OnCuda(), None)


def test_the_driver_is_asked_once_for_a_device(monkeypatch):
    """Trap: a question to the driver in every call of every op."""
    asked = []

    def properties(device):
        asked.append(device)
        return SimpleNamespace(major=9, minor=0, shared_memory_per_block_optin=1, multi_processor_count=1)

    monkeypatch.setattr(sys.modules["llmfast.kernels.frame.launch"], "_chips", {})
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(module, "HAS_TRITON", True)
    assert all(use_triton(OnCuda()) for _ in range(3))
    assert asked == [OnCuda().device]


def test_unsupported_chip_warns_once_and_says_why(chip):
    chip((7, 5))
    with pytest.warns(UserWarning, match=r"plain PyTorch: compute capability 7.5 is older than 8.0"):
        assert not use_triton(OnCuda())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use_triton(OnCuda())


def test_unsupported_dtype_warns_and_says_why(chip):
    chip((9, 0))
    with pytest.warns(UserWarning, match="there is no kernel for torch.float64"):
        assert not use_triton(OnCuda(torch.float64))


def test_forced_triton_refuses_what_it_would_compute_less_exactly():
    with backend("triton"), pytest.raises(ValueError, match=r"no kernel for torch.float64.*auto"):
        rms_norm(torch.ones(1, 4, dtype=torch.float64))


def test_missing_triton_warns_and_says_why(chip, monkeypatch):
    chip((9, 0))
    monkeypatch.setattr(module, "HAS_TRITON", False)
    with pytest.warns(UserWarning, match="the package triton is not installed"):
        assert not use_triton(OnCuda())
    with backend("triton"), pytest.raises(ValueError, match="needs the package triton"):
        use_triton(OnCuda())


def test_cpu_tensor_forced_to_triton_without_the_interpreter_says_what_to_do(monkeypatch):
    monkeypatch.setattr(module, "HAS_TRITON", True)
    monkeypatch.setattr(module, "INTERPRETING", False)
    with backend("triton"), pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        rms_norm(torch.ones(1, 4))


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # what an installation without it looks like to an import
import torch
import llmfast.kernels as kernels
x = torch.ones(2, 4, requires_grad=True)
kernels.swiglu(kernels.rms_norm(x, torch.ones(4))).sum().backward()
kernels.rope(torch.ones(1, 2, 1, 4))
assert not torch.cuda.is_initialized()
"""


def test_works_without_triton_and_touches_no_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TRITON], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_reference_compiles_whole_and_stays_differentiable():
    def block(x):
        return rms_norm(x, residual=x)[0]

    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    assert torch.autograd.gradcheck(block, x)
