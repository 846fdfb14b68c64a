"""The kernels move the fewest bytes there are: each element of each large tensor once in, once out.

Counted in the interpreter, which sees every address. (Weights are read by each program: they stay in cache.)
"""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from kernel_testing import random_tensor, require_interpreter
from llmfast.kernels import backend, geglu, gelu, layer_norm, rms_norm, rope, swiglu


@contextmanager
def counted_accesses():
    """How often kernels read and wrote each address within the block."""
    require_interpreter()
    from triton.runtime.interpreter import InterpreterBuilder

    reads, writes = Counter(), Counter()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counting_load(self, ptrs, mask, *rest):
        reads.update(ptrs.data[mask.data.astype(bool)].ravel().tolist())
        return load(self, ptrs, mask, *rest)

    def counting_store(self, ptrs, value, mask, *rest):
        writes.update(ptrs.data[mask.data.astype(bool)].ravel().tolist())
        return store(self, ptrs, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch, backend("triton"):
        patch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", counting_store)
        yield reads, writes


def times(accesses, tensor):
    """The numbers of accesses that elements of a contiguous tensor had."""
    start, step = tensor.data_ptr(), tensor.element_size()
    return {accesses[start + index * step] for index in range(tensor.numel())}


X, RESIDUAL, WEIGHT = random_tensor((5, 192)), random_tensor((5, 192), seed=1), random_tensor((192,), seed=2)
Q, K = random_tensor((2, 3, 4, 16)), random_tensor((2, 3, 2, 16), seed=1)


@pytest.mark.parametrize(
    ("op", "large"),
    [
        pytest.param(lambda x: rms_norm(x, WEIGHT), [X], id="rms_norm"),
        pytest.param(
            lambda x, r: layer_norm(x, WEIGHT, WEIGHT, residual=r),
            [X, RESIDUAL],
            id="layer_norm with residual",
        ),
        pytest.param(swiglu, [X], id="swiglu packed"),
        pytest.param(geglu, [X, RESIDUAL], id="geglu"),
        pytest.param(lambda x: gelu(x, WEIGHT), [X], id="gelu with bias"),
        pytest.param(rope, [Q, K], id="rope"),
        pytest.param(lambda q, k: rope(q, k, rotary_dim=8, interleaved=True), [Q, K], id="rope partial"),
    ],
)
def test_each_element_moves_once_forward_and_backward(op, large):
    inputs = [tensor.clone().requires_grad_() for tensor in large]
    with counted_accesses() as (reads, writes):
        outputs = op(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for tensor in inputs:
            assert times(reads, tensor) == {1}
        for tensor in outputs:
            assert times(writes, tensor) == {1}
            assert times(reads, tensor) == {0}
        grads = [torch.ones_like(output) for output in outputs]
        reads.clear()
        writes.clear()
        found = torch.autograd.grad(outputs, inputs, grads)
        for tensor in grads:
            assert times(reads, tensor) == {1}
        for tensor in found:
            assert times(writes, tensor) == {1}
            assert times(reads, tensor) == {0}
        for tensor in (*inputs, *outputs):
            assert times(reads, tensor) <= {0, 1}
