"""What PyTorch's undocumented parts must do for the operators, under each version of PyTorch that runs the tests; and
that no other file of the kernels uses such parts."""

import re
from pathlib import Path

import pytest
import torch
from llmfast.kernels.frame import torch_private as private
from torch.utils._python_dispatch import TorchDispatchMode

SOURCES = Path(private.__file__).parents[1]


def test_other_files_use_no_private_part_of_torch():
    # torch._foreach_* are how PyTorch's own optimizers are written.
    used = re.compile(r"\btorch\._(?!foreach_)|\bforward_ad\._|import .*\btorch\._|_dynamo_marked")
    found = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if any(used.search(line.partition("#")[0]) for line in path.read_text(encoding="utf-8").splitlines())
    }
    assert found == {"frame/torch_private.py"}


def test_modes_transforms_and_traces_are_seen_and_nothing_else():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **kwargs or {})

    def seen():
        return tuple(
            bool(asked())
            for asked in (private.dispatch_modes, private.function_modes, private.transforms_active, private.is_tracing)
        )

    found = {"nothing": seen()}
    with Mode():
        found["dispatch"] = seen()
    with torch.overrides.BaseTorchFunctionMode():
        found["function"] = seen()

    def during(name):
        def look(x):
            found[name] = seen()
            return x + 1

        return look

    torch.vmap(during("vmap"))(torch.ones(2))
    torch.func.grad(lambda x: during("grad")(x).sum())(torch.ones(2))
    torch.jit.trace(during("trace"), torch.ones(2), check_trace=False)
    assert found["nothing"] == (False, False, False, False)
    assert found["dispatch"][0]
    assert found["function"][1]
    assert found["vmap"][2]
    assert found["grad"][2]
    assert found["trace"][3]
    assert seen() == found["nothing"]


def test_a_tensor_that_requires_grad_is_found_among_other_values():
    plain, wanted = torch.ones(1), torch.ones(1, requires_grad=True)
    assert not private.any_requires_grad(plain, None, 1.0, [plain, plain], torch.float32)
    assert private.any_requires_grad(plain, None, 1.0, wanted)
    assert private.any_requires_grad(plain, [plain, wanted])


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_autocast_is_seen_whatever_its_device_is(device):
    assert not private.is_any_autocast_enabled()
    torch.set_autocast_enabled(device, True)  # ``torch.autocast`` refuses a device that is not there.
    try:
        assert private.is_any_autocast_enabled()
    finally:
        torch.set_autocast_enabled(device, False)
    assert not private.is_any_autocast_enabled()


def test_forward_mode_is_seen():
    assert not private.in_forward_mode()
    with torch.autograd.forward_ad.dual_level():
        assert private.in_forward_mode()
    assert not private.in_forward_mode()


class Scaled(torch.autograd.Function):
    """x · factor, and an auxiliary output."""

    grads: tuple = ()

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        extra = torch.zeros(1)
        private.keep(ctx, (x,), (extra,))
        return x * factor, extra

    @staticmethod
    def backward(ctx, grad, extra):
        Scaled.grads = grad, extra, *ctx.saved_tensors
        return None if grad is None else grad * ctx.factor, None


def test_what_is_kept_comes_back_and_absent_gradients_are_none():
    x = torch.ones(3, requires_grad=True)
    y, extra = private.apply_of(Scaled)(x, 2.0)
    assert y.requires_grad
    assert not extra.requires_grad
    (grad,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert torch.equal(grad, torch.full((3,), 2.0))
    assert Scaled.grads[1] is None
    assert torch.equal(Scaled.grads[2], x)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x)


def test_redispatching_goes_below_autograd_and_records_nothing():
    library = torch.library.Library("llmfast_private_test", "DEF")
    library.define("twice(Tensor x, float by) -> Tensor")
    library.impl("twice", lambda x, by: x * by, "CompositeExplicitAutograd")
    reached = []

    def autograd(keyset, *args):
        reached.append(len(reached))
        return private.redispatch_below_autograd(torch.ops.llmfast_private_test.twice.default, keyset, args)

    library.impl("twice", autograd, "Autograd", with_keyset=True)
    x = torch.ones(2, requires_grad=True)
    y = torch.ops.llmfast_private_test.twice.default(x, 2.0)
    assert reached == [0]
    assert torch.equal(y, torch.full((2,), 2.0))
    assert not y.requires_grad
    assert isinstance(torch.ops.llmfast_private_test.twice.default, private.Overload)


def test_torch_compile_keeps_the_answer_of_a_constant_function():
    calls = []

    @private.constant_while_traced
    def answer():
        calls.append(1)
        return 3

    def scaled(x):
        return x * answer()

    compiled = torch.compile(scaled, backend="eager", fullgraph=True)
    for _ in range(3):
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 3.0))
    assert len(calls) == 1
