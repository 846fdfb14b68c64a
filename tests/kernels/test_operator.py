"""How functions become operators: what watches operators sees ours, and without a watcher the results are the same."""

import pytest
import torch
from kernel_testing import random_tensor
from llmfast.kernels import backend, linear_cross_entropy, rms_norm, swiglu
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture
def inputs(device):
    return random_tensor((4, 32), device=device), random_tensor((32,), device=device, seed=1)


class Calls(TorchDispatchMode):
    """The names of the operators called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._opname)
        return func(*args, **kwargs or {})


def test_a_mode_sees_operators_of_both_passes(inputs):
    """What selective checkpoints and counters of operations rest on."""
    x, weight = (tensor.requires_grad_() for tensor in inputs)
    with Calls() as calls:
        rms_norm(x, weight).sum().backward()
    assert "norm" in calls.names
    assert "norm_backward" in calls.names


def test_a_tensor_of_another_class_sees_operators(inputs):
    """Distributed and fake tensors are subclasses, whose memory no kernel may touch."""
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in inputs]
    y = rms_norm(*fake)
    assert isinstance(y, FakeTensor)
    assert y.shape == (4, 32)


def test_meta_tensors_have_shapes_only(inputs):
    x, weight = (tensor.to("meta") for tensor in inputs)
    assert rms_norm(x, weight).shape == (4, 32)
    hidden, head = torch.empty(4096, 32, device="meta"), torch.empty(1024, 32, device="meta")
    with backend("auto"):  # on a device of no kernels the definition
        loss = linear_cross_entropy(hidden, head, torch.empty(4096, dtype=torch.long, device="meta"))
    assert loss.shape == ()


def test_whole_numbers_serve_as_floats(inputs):
    """An int compiled into a kernel as one would be another kernel, of whole numbers."""
    x, weight = inputs
    assert torch.equal(rms_norm(x, weight, eps=1, weight_offset=1), rms_norm(x, weight, eps=1.0, weight_offset=1.0))


def test_the_dispatcher_gives_the_same_bits(inputs):
    x, weight = (tensor.requires_grad_() for tensor in inputs)
    operator, *_ = torch.ops.llmfast.norm(x, weight, None, None, 1e-6, 0.0, False)
    function = rms_norm(x, weight)
    assert torch.equal(function, operator)
    grad = random_tensor((4, 32), device=x.device.type, seed=2)
    for one, other in zip(
        torch.autograd.grad(function, (x, weight), grad),
        torch.autograd.grad(operator, (x, weight), grad),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_no_graph_is_recorded_where_no_gradient_can_be_asked_for(inputs):
    x, weight = inputs
    assert rms_norm(x, weight).grad_fn is None
    with torch.no_grad():
        assert rms_norm(x.requires_grad_(), weight).grad_fn is None
    with torch.inference_mode():
        assert rms_norm(x, weight).is_inference()


def test_forward_mode_is_refused_and_not_zero(inputs):
    x, _ = inputs
    with pytest.raises(ValueError, match=r"no rules for torch.func's transforms"):
        torch.func.jvp(lambda x: swiglu(x, x), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(ValueError, match=r"no rules for .* forward-mode derivatives"):
            swiglu(dual, dual)


def test_a_second_derivative_of_a_loss_found_with_its_gradients_is_refused_and_not_zero(device):
    """What is saved are numbers, of which autograd knows no more: without a word, a penalty on the gradient would
    count nothing."""
    hidden, head = (random_tensor((600, 16), device=device, seed=seed).requires_grad_() for seed in (0, 1))
    with backend("reference"):
        loss = linear_cross_entropy(hidden, head, torch.zeros(600, dtype=torch.long, device=device))
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not written"):
        (loss.detach() + grad.sum()).backward()
