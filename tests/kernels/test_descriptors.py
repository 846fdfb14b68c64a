"""Descriptors made without Triton's checks are those that Triton makes."""

import gc
import weakref

import pytest
import torch

pytest.importorskip("triton", reason="they are Triton's")

from llmfast.kernels.frame.descriptors import descriptor
from triton.tools.tensor_descriptor import TensorDescriptor


@pytest.mark.parametrize("block", [(1, 1, 16, 64), (1, 1, 32, 64)])
def test_they_equal_tritons_and_share_nothing(block):
    for seed in range(3):
        x = torch.randn(2, 3, 8 * (seed + 1), 64).half()
        made = descriptor(x, list(x.shape), list(x.stride()), block)
        theirs = TensorDescriptor(x, list(x.shape), list(x.stride()), list(block))
        assert type(made) is TensorDescriptor
        assert {name: value for name, value in vars(made).items() if name != "base"} == {
            name: value for name, value in vars(theirs).items() if name != "base"
        }
        assert made.base is x


def test_no_tensor_is_kept_alive():
    block = (1, 1, 64, 64)
    for _ in range(2):
        x = torch.zeros(1, 1, 64, 64)
        seen = weakref.ref(x)
        made = descriptor(x, list(x.shape), list(x.stride()), block)
        del x, made
        gc.collect()
        assert seen() is None


def test_the_first_of_a_block_is_checked():
    x = torch.zeros(64, 64)
    with pytest.raises(AssertionError, match="contiguous"):
        descriptor(x, [64, 64], [64, 2], (8, 64))
