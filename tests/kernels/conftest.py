"""The fixture that sends a test through the Triton kernels, interpreted on the CPU and compiled on a GPU."""

import pytest
from kernel_testing import DEVICES, require_interpreter
from llmfast.kernels import backend


@pytest.fixture(params=DEVICES)
def device(request):
    """The device to put tensors on; ops take their Triton kernels."""
    if request.param == "cpu":
        require_interpreter()
    with backend("triton"):
        yield request.param
