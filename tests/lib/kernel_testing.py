"""What the tests of kernels share: where they run, how exact they must be, and which tensors they meet.

On a machine without a GPU the Triton kernels run in Triton's interpreter on CPU tensors; with one, the same tests
run on CUDA, under the marker ``gpu``. ``tests/conftest.py`` turns the interpreter on for the whole process, before
Triton is imported. That changes no other test: CPU tensors take the reference path unless ``backend("triton")``
asks for the kernels, as the fixture ``device`` does.
"""

import os
from collections.abc import Callable, Iterable
from functools import cache

import pytest
import torch
from hypothesis import strategies as st
from roundings import largest_difference, rounding_error
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")
LAYOUTS = ["contiguous", "transposed", "sliced", "offset", "expanded", "every_second"]

dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)
widths = st.one_of(st.integers(1, 70), st.sampled_from([128, 255, 256]))
lengths = st.sampled_from([0, 1, 2, 3, 5])


def interpret_products_as_tensor_cores_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor core gives a row of a product the same bits wherever in the tile it stands; the BLAS library that
    Triton's interpreter takes does not. In float64, rounded once, it does."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        total = a.data.astype("float64") @ b.data.astype("float64") + d.data
        return interpreter.TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def require_interpreter() -> None:
    """Skips a test of kernels on the CPU where the interpreter is off, as on a machine with a GPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernels run on the GPU here; TRITON_INTERPRET=1 interprets them on the CPU")


def random_tensor(
    shape: Iterable[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
    seed: int = 0,
) -> Tensor:
    """Normally distributed numbers, the same ones for each layout, device and dtype (but for rounding)."""
    shape = tuple(shape)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)
    if layout == "contiguous" or not shape:
        return values
    if layout == "expanded":
        return values[:1].expand(shape) if shape[0] else values
    if layout == "transposed" and len(shape) > 1:
        holder = values.transpose(0, -2 if len(shape) > 2 else -1).contiguous()
        return holder.transpose(0, -2 if len(shape) > 2 else -1)
    wider = torch.zeros((*shape[:-1], 2 * shape[-1] + 3), dtype=dtype, device=device)
    if layout == "every_second":
        view = wider[..., : 2 * shape[-1] : 2]
    elif layout == "offset":
        flat = torch.zeros(values.numel() + 1, dtype=dtype, device=device)
        view = flat[1:].view(shape)
    else:
        view = wider[..., 2 : 2 + shape[-1]]
    view.copy_(values)
    return view


def assert_as_exact_as(
    name: str,
    ours: Tensor,
    peer: Tensor | None,
    exact: Tensor,
    algorithm: Callable[[], Tensor] | Callable[[], float],
) -> None:
    """The error of ``ours`` against the float64 ``exact`` is at most twice that of PyTorch's own op in the same dtype
    (``peer``, or ``None`` where there is none). Where that op happens to be more exact than its roundings promise, it
    is at most twice what the roundings of ``algorithm`` allow: a function that computes in float64, step by step, what
    the kernel does, or one that returns its ``rounding_error``. One epsilon of the largest number is for the rounding
    of the result itself.
    """
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, not {tuple(exact.shape)}"
    assert peer is None or ours.dtype == peer.dtype, f"{name}: {ours.dtype}, PyTorch's own op gives {peer.dtype}"
    if exact.numel() == 0:
        return
    error = largest_difference(ours, exact)
    rounding = torch.finfo(ours.dtype).eps * exact.masked_fill(exact.isinf(), 0.0).abs().max().item()
    allowed = rounding + (0.0 if peer is None else 2 * largest_difference(peer, exact))
    if not error <= allowed:
        largest = algorithm()
        if isinstance(largest, Tensor):
            largest = rounding_error(lambda: {name: algorithm()}, {name: exact}, ours.dtype)[name]
        allowed = max(allowed, rounding + 2 * largest)
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def results(
    function: Callable,
    inputs: dict[str, Tensor],
    grad_layout: str = "contiguous",
    grad_dtypes: Iterable[torch.dtype] | None = None,
) -> dict[str, Tensor]:
    """Outputs of ``function(**inputs)``, and the gradients of the floating-point inputs for random output
    gradients. These are drawn in the outputs' dtypes, or rounded to ``grad_dtypes``."""
    inputs = {
        name: tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [
        random_tensor(output.shape, dtype, output.device.type, grad_layout, seed=100 + index).to(output.dtype)
        for index, (output, dtype) in enumerate(
            zip(outputs, grad_dtypes or [output.dtype for output in outputs], strict=True)
        )
    ]
    wanted = [tensor for tensor in inputs.values() if tensor.requires_grad]
    found = torch.autograd.grad(outputs, wanted, grads)
    names = [name for name, tensor in inputs.items() if tensor.requires_grad]
    named = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    return named | {f"gradient of {name}": grad for name, grad in zip(names, found, strict=True)}


def assert_matches(
    ours: Callable,
    peer: Callable,
    inputs: dict[str, Tensor],
    grad_layout: str = "contiguous",
    algorithm: Callable | None = None,
) -> None:
    """Outputs and gradients of ``ours`` are as exact as those of ``peer``, which defines them in float64.

    ``algorithm`` computes the same in the kernel's order, where its roundings are others than those of ``peer``.
    """
    found, expected = results(ours, inputs, grad_layout), results(peer, inputs, grad_layout)
    dtypes = [value.dtype for name, value in found.items() if name.startswith("output ")]
    exact_inputs = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    exact = results(peer, exact_inputs, grad_layout, dtypes)
    largest = cache(
        lambda: rounding_error(
            lambda: results(algorithm or peer, exact_inputs, grad_layout, dtypes), exact, lowest(inputs)
        )
    )
    for name, value in found.items():
        assert_as_exact_as(name, value, expected[name], exact[name], lambda name=name: largest()[name])


def lowest(inputs: dict[str, Tensor]) -> torch.dtype:
    """The dtype of the inputs that holds the fewest digits, in which a kernel takes the operands of its products."""
    dtypes = {tensor.dtype for tensor in inputs.values() if tensor.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def assert_same_bits(function: Callable, inputs: dict[str, Tensor]) -> None:
    """Two runs of ``function``, forward and backward, agree in every bit."""
    first, second = results(function, inputs), results(function, inputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between two runs"


def assert_keeps_inputs(function: Callable, inputs: dict[str, Tensor]) -> None:
    """Neither pass writes to an input: autograd would not see it, and gradients would be silently wrong."""
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    results(function, inputs)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), f"{name} was overwritten"


def assert_compiles(function: Callable, inputs: dict[str, Tensor]) -> None:
    """Under ``torch.compile(fullgraph=True)`` the bits of outputs and gradients stay the same."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager = results(function, inputs)
    for name, value in results(compiled, inputs).items():
        assert torch.equal(value, eager[name]), f"{name} differs when compiled"


def products(function: Callable[[], object]) -> int:
    """The multiplications in the matrix products that PyTorch computes in ``function()``, inside operators too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        function()
    shapes = [event.input_shapes for event in profile.events() if event.name in MATRIX_PRODUCTS]
    pairs = [[shape for shape in shapes if len(shape) == 2][-2:] for shapes in shapes]
    return sum(rows * summed * columns for (rows, summed), (_, columns) in pairs)


def far_apart(rows: Tensor) -> Tensor:
    """The two ``rows`` (2, width), 2³¹ elements apart in a storage of which only the touched pages exist."""
    distance = 2**31
    storage = torch.empty(distance + rows.shape[1], dtype=rows.dtype, device=rows.device)
    apart = storage.as_strided(rows.shape, (distance, 1))
    return apart.copy_(rows)
